"""From a student to a directory to sound, and the same in diffusers."""

import importlib.resources
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, LCMScheduler, UNet2DConditionModel
from diffusers.schedulers import scheduling_lcm
from tiny_bundle import SCHEDULER, build_random_bundle, make_unet
from transformers import ClapModel, SpeechT5HifiGan

from musiccm.cli import main
from musiccm.commands.export import read_results
from musiccm.commands.generate import output_paths
from musiccm.diffusion import consistency_boundary
from musiccm.errors import MusiccmError
from musiccm.evaluation.galleries import bundle_index
from musiccm.export import StudentInfo, export_student, student_scheduler
from musiccm.files import replacing_folder
from musiccm.local_models import PACKAGED, local_bundle
from musiccm.models import attention_heads
from musiccm.models.acceleration.networks import CpuConv2d
from musiccm.models.bundle import Bundle
from musiccm.models.bundle.card import write_card
from musiccm.models.bundle.files import TRAINING_INDEX
from musiccm.models.bundle.student_record import sampler_record
from musiccm.models.codec import LatentCodec
from musiccm.models.denoiser import Consistency, Denoiser
from musiccm.pipeline import Pipeline
from musiccm.samplers import INITIAL, Lcm, Stepper, sample_noise, sample_seeds, seeded_noise_fn
from musiccm.similarity.clap_windows import CLAP_PARTS
from musiccm.similarity.index_writer import PlannedClip, write_index
from musiccm.systems.checkpoint_fit import bundle_identity
from tests.leftovers import leave_half_file

INFO = StudentInfo("v_prediction", 3.0, recipe={"seed": 7}, rows=[{"model": "student", "steps": 4, "fd_tagger": 1.25}])
PROMPTS = ["a calm piano melody", "slow organ chords"]


@pytest.fixture(scope="module")
def teacher_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_random_bundle(tmp_path_factory.mktemp("teacher") / "teacher", frames=4, decoder=True)


@pytest.fixture(scope="module")
def student_unet() -> torch.nn.Module:
    torch.manual_seed(11)
    return make_unet(frames=4)


@pytest.fixture(scope="module")
def student_dir(teacher_dir: Path, student_unet: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("student") / "student"
    return export_student(student_unet, Bundle.from_pretrained(teacher_dir), folder, INFO)


@pytest.fixture(scope="module")
def student(student_dir: Path) -> Pipeline:
    return Pipeline.from_pretrained(student_dir)


def test_export_and_reload_gives_equal_sound(
    teacher_dir: Path, student_unet: torch.nn.Module, student: Pipeline
) -> None:
    """The student in memory, sampled by hand, against the one that went through files."""
    teacher = Bundle.from_pretrained(teacher_dir)
    f = Consistency(Denoiser(student_unet, student.schedule, "v_prediction").eval())
    seeds = sample_seeds(3, 1)
    z = Stepper(f, student.schedule, [999, 499], Lcm()).sample(
        teacher.conditioner().text(PROMPTS[:1]), sample_noise(seeds, (4, 4, 4)), seeded_noise_fn(seeds, (4, 4, 4)))
    with torch.no_grad():
        expected = teacher.codec().decode(z)
    # to rounding: the pipeline packs kernels for the processor, and on some these add up in another order
    torch.testing.assert_close(student(PROMPTS[0], steps=2, seed=3), expected, rtol=1e-5, atol=1e-5)


def test_each_decoder_is_the_one_that_was_asked_for(student_dir: Path, teacher_dir: Path, tmp_path: Path) -> None:
    """An export carries its teacher's fast decoder; either can be asked for, and what there is not is said."""
    teacher = Bundle.from_pretrained(teacher_dir)
    seeds = sample_seeds(0, 1)
    makers = {name: Pipeline.from_pretrained(student_dir, decoder=name) for name in (None, "fast", "original")}
    sounds = {name: maker(PROMPTS[0]) for name, maker in makers.items()}
    z = makers[None].latents(makers[None].conditioner.text(PROMPTS[:1]), seeds)
    with torch.no_grad():
        slow = LatentCodec(teacher.vae, teacher.vocoder, teacher.mel).decode(z)
        fast = teacher.part("decoder")(teacher.codec("none").standardise(makers[None].codec.denormalise(z)))
    torch.testing.assert_close(sounds["original"], slow)
    torch.testing.assert_close(sounds["fast"], fast)
    assert torch.equal(sounds[None], sounds["fast"])
    shutil.copytree(student_dir, tmp_path / "without")
    shutil.rmtree(tmp_path / "without/decoder")
    assert torch.equal(Pipeline.from_pretrained(tmp_path / "without")(PROMPTS[0]), sounds["original"])
    with pytest.raises(MusiccmError, match="has no fast decoder"):
        Pipeline.from_pretrained(tmp_path / "without", decoder="fast")
    with pytest.raises(MusiccmError, match="one of fast, original, found 'quick'"):
        Pipeline.from_pretrained(student_dir, decoder="quick")


@pytest.mark.parametrize(("names", "bytes_at_most"), [
    (["tiny", "tiny-student"], 50e6), (["tiny-tango", "tiny-tango-student"], 35e6),
    (["tiny-melody", "tiny-melody-student"], 40e6)])
def test_packaged_bundles_fit_into_a_wheel(names: list[str], bytes_at_most: float) -> None:
    """Features for evaluations included; together below what a package index takes, 100 MB a file."""
    folder = Path(str(importlib.resources.files("musiccm"))) / "bundles"
    assert {path.name for path in folder.iterdir()} <= set(PACKAGED.values()), "every bundle has a name"
    assert sum(file.stat().st_size for name in names for file in (folder / name).rglob("*") if file.is_file()) <= (
        bytes_at_most)


@pytest.mark.parametrize("name", list(PACKAGED))
def test_packaged_bundles_make_sound(name: str) -> None:
    if name.startswith(("musiccm-tiny-tango", "musiccm-tiny-melody")) and local_bundle(name) is None:
        pytest.skip(f"not built in this clone: make bundle-{name.split('-')[2]}")
    pipeline = Pipeline.from_pretrained(name)
    waveform = pipeline("a calm piano melody over soft strings", steps=2, seed=0)[0]
    assert len(waveform) == round(pipeline.duration_s * pipeline.sample_rate_hz) == 81920
    assert 0.01 < waveform.abs().max() <= 1.0


def test_half_precision_export_sounds_nearly_the_same(
    teacher_dir: Path, student_unet: torch.nn.Module, student: Pipeline, tmp_path: Path
) -> None:
    half = export_student(student_unet, Bundle.from_pretrained(teacher_dir), tmp_path / "half", INFO, torch.float16)
    ours, theirs = student(PROMPTS[0], steps=1), Pipeline.from_pretrained(half)(PROMPTS[0], steps=1)
    assert not torch.equal(ours, theirs)
    torch.testing.assert_close(ours, theirs, atol=1e-2, rtol=0)


def test_exported_scheduler_is_ours(student_dir: Path, student: Pipeline) -> None:
    theirs = LCMScheduler.from_pretrained(student_dir / "scheduler")
    torch.testing.assert_close(theirs.alphas_cumprod.double(), student.schedule.alphas_cumprod, atol=1e-6, rtol=1e-4)
    for t in (0, 19, 499, 999):
        ours = [c.item() for c in consistency_boundary(torch.tensor([t]))]
        assert ours == pytest.approx([float(c) for c in theirs.get_scalings_for_boundary_condition_discrete(t)])


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_student_scheduler_reaches_the_same_latents(student_dir: Path, student: Pipeline, steps: int) -> None:
    seeds = sample_seeds(0, 1)
    cond = student.conditioner.text(PROMPTS[:1])
    ours = student.latents(cond, seeds, steps)
    scheduler = LCMScheduler.from_pretrained(student_dir / "scheduler")
    scheduler.set_timesteps(steps)
    z = sample_noise(seeds, student.latent_shape)
    for step, t in enumerate(scheduler.timesteps):
        with torch.no_grad():
            output = student.bundle.unet(z, t, None, class_labels=cond).sample
        # The scheduler draws its noise itself; replaying ours needs its formula's other half only.
        result = scheduler.step(output, t, z, generator=torch.Generator().manual_seed(0))
        if step + 1 == steps:
            z = result.denoised
            break
        abar = scheduler.alphas_cumprod[scheduler.timesteps[step + 1]]
        z = abar.sqrt() * result.denoised + (1 - abar).sqrt() * sample_noise(seeds, student.latent_shape, step)
    torch.testing.assert_close(ours, z, atol=2e-4, rtol=1e-4)


def test_own_heads_of_a_released_shape_go_along(
    teacher_dir: Path, student_dir: Path, student_unet: torch.nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where this small U-Net is taken for a released one with other heads, its student says whose it has."""
    assert "attention_heads" not in json.loads((student_dir / "musiccm.json").read_text())
    monkeypatch.setitem(attention_heads.HEAD_CHANNELS, 16, 4)
    monkeypatch.setattr(attention_heads, "LEVELS", (1, 2))
    folder = export_student(student_unet, Bundle.from_pretrained(teacher_dir), tmp_path / "own", INFO)
    unet = Bundle.from_pretrained(folder).unet
    assert tuple(unet.config.attention_head_dim) == tuple(student_unet.config.attention_head_dim) == (1, 2)


def test_a_clip_does_not_depend_on_its_batch(student: Pipeline) -> None:
    both = student(PROMPTS, steps=2, seed=5)
    torch.testing.assert_close(student(PROMPTS[0], steps=2, seed=5)[0], both[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(student(PROMPTS, steps=2, seed=5, batch_size=1), both, atol=1e-5, rtol=0)
    assert both.shape == (2, round(student.duration_s * student.sample_rate_hz))
    assert not torch.allclose(student(PROMPTS, steps=2, seed=6), both, atol=1e-5)


def test_teacher_is_sampled_with_guidance(teacher_dir: Path) -> None:
    teacher = Pipeline.from_pretrained(teacher_dir)
    assert not teacher.is_student
    guided, plain = (teacher(PROMPTS[0], steps=2, guidance_scale=scale) for scale in (None, 1.0))
    assert guided.shape == plain.shape and not torch.allclose(guided, plain)
    with pytest.raises(MusiccmError, match="the model is a teacher, which ddim, heun"):
        teacher(PROMPTS[0], steps=1, sampler={"name": "lcm", "gamma": 0.5})


@pytest.mark.parametrize("prompts", [[], "", "  ", ["fine", ""], [None]])
def test_empty_prompts_are_refused(student: Pipeline, prompts: object) -> None:
    with pytest.raises(MusiccmError, match="prompt"):
        student(prompts)  # type: ignore[arg-type]


@pytest.mark.parametrize("steps", [0, -1, 51, 1.5])
def test_unknown_step_counts_are_refused(student: Pipeline, steps: object) -> None:
    with pytest.raises(MusiccmError, match="steps"):
        student(PROMPTS[0], steps=steps)  # type: ignore[arg-type]


def test_guidance_is_refused(student: Pipeline) -> None:
    with pytest.raises(MusiccmError, match="guidance_scale"):
        student(PROMPTS[0], guidance_scale=3.0)


@pytest.mark.parametrize(("key", "value", "right"), [
    ("_class_name", "DDIMScheduler", "LCMScheduler"), ("_class_name", None, "LCMScheduler"),
    ("prediction_type", "epsilon", "v_prediction"), ("original_inference_steps", 25, 50),
    ("original_inference_steps", 30, 50), ("timestep_scaling", 1.0, 10.0), ("num_train_timesteps", 500, 1000),
    ("beta_start", 0.00085, 0.0015), ("beta_end", 0.012, 0.0195), ("beta_schedule", "linear", "scaled_linear"),
    ("trained_betas", [0.1] * 1000, None), ("sigma_data", 1.0, 0.5),
])
def test_altered_scheduler_is_refused(
    student_dir: Path, tmp_path: Path, key: str, value: object, right: object
) -> None:
    copy = shutil.copytree(student_dir, tmp_path / "copy")
    path = copy / "scheduler" / "scheduler_config.json"
    written = path.read_text()
    path.write_text(json.dumps({**json.loads(written), key: value}))
    with pytest.raises(MusiccmError) as caught:
        Pipeline.from_pretrained(copy)
    said = str(caught.value)
    assert f"scheduler_config.json: {key} is {value!r}" in said and repr(right) in said.split(repr(value), 1)[1]
    path.write_text(written)
    assert Pipeline.from_pretrained(copy).is_student


@pytest.mark.parametrize("key", ["original_inference_steps", "beta_end", "num_train_timesteps"])
def test_a_scheduler_that_lacks_a_key_is_refused(student_dir: Path, tmp_path: Path, key: str) -> None:
    copy = shutil.copytree(student_dir, tmp_path / "copy")
    path = copy / "scheduler" / "scheduler_config.json"
    content = json.loads(path.read_text())
    right = content.pop(key)
    path.write_text(json.dumps(content))
    with pytest.raises(MusiccmError, match=rf"{key}.* with {right}"):
        Pipeline.from_pretrained(copy)


def test_an_export_from_before_the_schedule_was_recorded_opens(student_dir: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(student_dir, tmp_path / "copy")
    path = copy / "musiccm.json"
    content = json.loads(path.read_text())
    known = ("prediction_type", "guidance_scale", "original_inference_steps", "timestep_scaling", "recipe")
    content["distillation"] = {"gamma": 0.25} | {key: content["distillation"][key] for key in known}
    path.write_text(json.dumps(content))
    stepper = Pipeline.from_pretrained(copy).stepper()
    assert (stepper.timesteps, stepper.sampler) == ([999, 759, 499, 259], Lcm(0.25)), "version 0.1 stated gamma alone"


def test_the_record_states_the_sampler(student_dir: Path, tmp_path: Path) -> None:
    record = json.loads((student_dir / "musiccm.json").read_text())["distillation"]
    assert record["timesteps"] == list(range(19, 1000, 20))
    assert (record["sampling_steps"], record["default_steps"]) == ([1, 2, 4, 8], 4)
    assert (record["beta_start"], record["beta_end"], record["sigma_data"]) == (0.0015, 0.0195, 0.5)
    copy = shutil.copytree(student_dir, tmp_path / "copy")
    settings = json.loads((copy / "musiccm.json").read_text())
    settings["distillation"]["default_steps"] = 2
    (copy / "musiccm.json").write_text(json.dumps(settings))
    assert Pipeline.from_pretrained(copy).stepper().timesteps == [999, 499]
    settings["distillation"]["timesteps"][7] = 160
    (copy / "musiccm.json").write_text(json.dumps(settings))
    with pytest.raises(MusiccmError, match="timesteps"):
        Pipeline.from_pretrained(copy)


def test_packaged_student_states_its_own_scheduler() -> None:
    """Its record was completed after it was made: by the numbers of the scheduler that it is sampled with."""
    bundle = Bundle.from_pretrained("musiccm-tiny-student")
    theirs = LCMScheduler.from_pretrained(bundle.path / "scheduler").config
    record = bundle.settings["distillation"]
    for key in ("prediction_type", "original_inference_steps", "timestep_scaling", "num_train_timesteps", "beta_start",
                "beta_end", "beta_schedule", "trained_betas"):
        assert record[key] == theirs[key]
    assert record["sigma_data"] == 0.5 and record["timesteps"] == list(range(19, 1000, 20))


def test_packaged_card_is_that_of_its_record(tmp_path: Path) -> None:
    bundle = Bundle.from_pretrained("musiccm-tiny-student")
    settings = bundle.settings
    write_card(tmp_path / "card.md", "tiny-student", settings["distillation"], settings["results"],
               bundle.latent_shape(), settings["base"]["path"], settings["results_notes"])
    assert (bundle.path / "README.md").read_text() == (tmp_path / "card.md").read_text()


def test_borrowed_parts(
    teacher_dir: Path, student_unet: torch.nn.Module, student: Pipeline, tmp_path: Path
) -> None:
    shutil.copytree(teacher_dir, tmp_path / "teacher")
    teacher = Bundle.from_pretrained(teacher_dir)
    light = export_student(student_unet, teacher, tmp_path / "light", INFO, base="../teacher")
    assert not (light / "vae").exists() and bundle_index(Bundle.from_pretrained(light)) is None
    for brings in (tmp_path / "teacher", teacher_copy := Path(shutil.copytree(teacher_dir, tmp_path / "copied"))):
        key = {"clap": teacher.content_hash(CLAP_PARTS), "sample_rate_hz": 1, "window_samples": 1, "hop_samples": 1}
        clips = [PlannedClip("a", "a.flac", [0.0])]
        write_index(brings / TRAINING_INDEX, key, {}, clips, 2, lambda *_: torch.eye(2)[:1])
    whole = export_student(student_unet, Bundle.from_pretrained(teacher_copy), tmp_path / "whole", INFO)
    for folder, owner in ((light, tmp_path / "teacher"), (whole, whole)):  # borrowed, and brought along
        index = bundle_index(Bundle.from_pretrained(folder))
        assert index is not None and (folder / index.folder).resolve() == owner / TRAINING_INDEX
    assert torch.equal(Pipeline.from_pretrained(light)(PROMPTS[0], steps=1), student(PROMPTS[0], steps=1))
    config = tmp_path / "teacher" / "vae" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "scaling_factor": 2.0}))
    with pytest.raises(MusiccmError, match="borrowed"):
        Pipeline.from_pretrained(light)


def test_card_states_the_results(student_dir: Path) -> None:
    card = (student_dir / "README.md").read_text()
    assert "| student | 4 | 1.25 |" in card and "pipeline_tag: text-to-audio" in card and "seed: 7" in card
    assert "50 timesteps (19, 39, ..., 999)" in card and "meant for 1, 2, 4, 8 steps; 4 is the default" in card


@pytest.mark.parametrize("packaged", [False, True])
def test_plain_classes_open_an_export_and_agree(
    student_dir: Path, monkeypatch: pytest.MonkeyPatch, packaged: bool
) -> None:
    """The card's own snippet makes our latents; the libraries' VAE and vocoder make our mel and sound of them."""
    ours = Pipeline.from_pretrained("musiccm-tiny-student" if packaged else student_dir, decoder="original")
    folder = ours.bundle.path
    text, seeds = "a calm piano melody", sample_seeds(0, 1)
    embedding = ours.conditioner.text([text])
    latents, heard = ours.latents(embedding, seeds, sampler="lcm"), ours(text, sampler="lcm")

    snippet = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    draws = [sample_noise(seeds, ours.latent_shape, step) for step in (INITIAL, 0, 1, 2)]  # in place of diffusers' own
    monkeypatch.setattr(scheduling_lcm, "randn_tensor", lambda *_, **__: draws.pop(0))
    monkeypatch.setattr(torch, "randn", lambda *_: draws.pop(0))
    theirs: dict = {}
    exec(snippet.replace("PATH_OF_THIS_FOLDER", str(folder)), theirs)
    assert not draws and theirs["scheduler"].timesteps.tolist() == [999, 759, 499, 259]
    assert type(theirs["clap"]) is ClapModel and type(theirs["unet"]) is UNet2DConditionModel
    torch.testing.assert_close(theirs["text"], embedding, atol=1e-5, rtol=0)
    torch.testing.assert_close(theirs["x0"], latents, atol=2e-4, rtol=1e-4)

    vae = AutoencoderKL.from_pretrained(theirs["parts"], subfolder="vae").eval()
    vocoder = SpeechT5HifiGan.from_pretrained(theirs["parts"], subfolder="vocoder", dtype=torch.float32).eval()
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (vae.config.latents_mean, vae.config.latents_std))
    with torch.no_grad():
        raw = torch.nn.functional.pixel_shuffle(theirs["x0"], ours.bundle.latent_patch) * std + mean
        mel = torch.nn.functional.pixel_shuffle(vae.decode(raw).sample, math.isqrt(vae.config.in_channels))[:, 0]
        sound = vocoder(mel)[:, : mel.shape[1] * 160]
    torch.testing.assert_close(mel, ours.codec.decode_mel(latents), atol=2e-3, rtol=1e-3)
    torch.testing.assert_close(sound, heard, atol=2e-3, rtol=0)
    assert sound.std() > 1e-3


@pytest.mark.parametrize(
    ("stated", "samplers", "own"),
    [
        ({"gamma": 1.0}, ("ddim", "lcm, gamma 1"), "the two agree"),  # as version 0.1 wrote it
        ({"gamma": 0.6}, ("ddim", "lcm, gamma 0.6"), "gamma 0.6 by default, and agrees with diffusers at `--gamma 1`"),
        ({"sampler": {"name": "tcd", "gamma": 0.3}}, ("heun", "tcd, gamma 0.3"),
         "by tcd by default, and agrees with diffusers at `--sampler lcm --gamma 1`"),
    ],
)
def test_card_tells_decoders_and_samplers(tmp_path: Path, stated: dict, samplers: tuple[str, str], own: str) -> None:
    results = {**stated, "rows": [
        {"model": model, "steps": 4, "fd_tagger": fd, **more,
         **({"sampler": samplers[model != "teacher"]} if "sampler" in stated else {})}
        for model, fd, more in (("teacher", 1.0, {"latency_s": 0.125, "from_cache": True}),
                                ("student", 1.5, {"latency_s": 0.25, "from_cache": True, "latency_batches": 1}),
                                ("student_fast", 1.75, {"latency_s": 0.5}), ("student_shipped", 9.5, {}))
    ], "machine": {"device": "old", "threads": 2}}
    about = {"gallery": "all", "clips": 7, "windows": 14, "experiment": 7, "lacks": "what the teacher learned"}
    results["sim_aa_gallery"] = {"sim_aa": about}
    (tmp_path / "results.json").write_text(json.dumps(results))
    rows, sampler, notes = read_results(tmp_path / "results.json", must_exist=True)
    assert notes == ["sim_aa: 7 training clips, 14 windows; not compared with what the teacher learned",
                     "Times: device old, threads 2"]
    # a teacher's time that an older version took from its cache is another run's, one that says its batches is not
    assert [row.get("latency_s") for row in rows] == [None, 0.25, 0.5]
    record = {"guidance_scale": 3.0, "sampler": sampler, **sampler_record(student_scheduler(SCHEDULER, INFO).config)}
    write_card(tmp_path / "card.md", "x", record, rows, (4, 4, 4), notes=notes)
    card = (tmp_path / "card.md").read_text()
    for text in (f"| teacher | 4 | original | {samplers[0]} | 1 |", f"| student | 4 | original | {samplers[1]} | 1.5 |",
                 f"| student | 4 | fast | {samplers[1]} | 1.75 |", own):
        assert text in card
    assert "9.5" not in card and f"\n{notes[0]}.\n" in card


def test_export_refuses(teacher_dir: Path, student_unet: torch.nn.Module, student_dir: Path, tmp_path: Path) -> None:
    teacher = Bundle.from_pretrained(teacher_dir)
    with pytest.raises(MusiccmError, match="not empty"):
        export_student(student_unet, teacher, student_dir, INFO)
    (tmp_path / "music").mkdir()
    (tmp_path / "music" / "song.wav").touch()
    with pytest.raises(MusiccmError, match="is no bundle"):
        export_student(student_unet, teacher, tmp_path / "music", INFO, overwrite=True)
    assert (tmp_path / "music" / "song.wav").exists()
    shutil.rmtree(tmp_path / "music")
    with pytest.raises(MusiccmError, match="gamma"):
        export_student(student_unet, teacher, tmp_path / "g",
                       StudentInfo("v_prediction", 3.0, sampler={"name": "lcm", "gamma": 1.5}))
    with pytest.raises(MusiccmError, match="sigma_data"):
        export_student(student_unet, teacher, tmp_path / "a", StudentInfo("v_prediction", 3.0, sigma_data=1.0))
    broken = make_unet(frames=4)
    broken.conv_out.bias.data.fill_(float("nan"))
    with pytest.raises(MusiccmError, match="not finite"):
        export_student(broken, teacher, tmp_path / "b", INFO)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def run_dir(teacher_dir: Path, student_unet: torch.nn.Module, tmp_path: Path) -> Path:
    """What a distillation run leaves."""
    run = tmp_path / "version_0"
    (run / "checkpoints").mkdir(parents=True)
    state = {f"student_ema_slow.module.{k}": v for k, v in student_unet.state_dict().items()}
    torch.save({"state_dict": {**state, "student.conv_in.bias": torch.zeros(16)}, "global_step": 12,
                "student": {"distillation.prediction_type": "v_prediction", "distillation.grid_points": 50}},
               run / "checkpoints" / "last.ckpt")
    row = {"steps": 4, "fd_tagger": 1.5}
    rows = [{"model": model, **row} for model in ("teacher", "student", "student_shipped")]
    (run / "results.json").write_text(json.dumps({"rows": rows, "gamma": 0.5}))
    (run / "config.yaml").write_text(json.dumps({"model": {
        "class_path": "musiccm.systems.musiccm.MusicCM",
        "init_args": {"bundle": str(teacher_dir), "seed": 3, "distillation": {"guidance_scale": 2.5}},
    }}))
    return run


def test_results_of_other_weights_are_on_no_card(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """As a run leaves it that was tested at step 8 and went on to step 12."""
    path = run_dir / "results.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"training": {"steps": 8, "updates": 8}}))
    command = ["export", "--checkpoint", str(run_dir / "checkpoints" / "last.ckpt"), "--out", str(tmp_path / "out")]
    assert main([*command, "--results", str(path)]) == 2
    assert "measured at step 8" in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert main(command) == 0 and "results.json is left out" in caplog.text
    settings = json.loads((tmp_path / "out" / "musiccm.json").read_text())
    assert not settings["results"] and "fd_tagger" not in (tmp_path / "out" / "README.md").read_text()


def test_export_and_generate_commands(run_dir: Path, student: Pipeline, tmp_path: Path) -> None:
    out = tmp_path / "exported"
    assert main(["export", "--checkpoint", str(run_dir / "checkpoints" / "last.ckpt"), "--out", str(out)]) == 0
    exported = Pipeline.from_pretrained(out)
    assert exported.record["guidance_scale"] == 2.5 and exported.record["recipe"]["global_step"] == 12
    assert exported.record["sampler"] == {"name": "lcm", "gamma": 0.5}
    assert [row["model"] for row in exported.bundle.settings["results"]] == ["teacher", "student"]
    expected = student(PROMPTS, steps=1, seed=4)
    assert torch.equal(exported(PROMPTS, steps=1, seed=4), expected)
    wav = tmp_path / "sound" / "out.wav"
    assert main(["generate", *PROMPTS, "--model", str(out), "--steps", "1", "--seed", "4", "--device", "cpu",
                 "--out", str(wav), "--level", "none"]) == 0
    from musiccm.audio.io import read_audio

    for path, wave in zip(output_paths(wav, 2), expected, strict=True):
        heard, rate = read_audio(path)
        assert rate == 16000
        torch.testing.assert_close(heard, wave.clamp(-1, 1), atol=1e-4, rtol=0)


def test_an_export_states_its_teacher(run_dir: Path, teacher_dir: Path, tmp_path: Path) -> None:
    """Also where the run's own argument `teacher` is in its `config.yaml`, as Lightning writes it, and is null."""
    checkpoint, config = run_dir / "checkpoints" / "last.ckpt", run_dir / "config.yaml"
    teacher, other = Bundle.from_pretrained(teacher_dir), build_random_bundle(tmp_path / "other", frames=4, seed=1)

    def stated(given: object, taught_by: str | None, *options: str) -> tuple[object, object]:
        content, weights = json.loads(config.read_text()), torch.load(checkpoint)
        content["model"]["init_args"]["teacher"] = given
        config.write_text(json.dumps(content))
        torch.save({**weights, "student": {**weights["student"], "bundle": taught_by}}, checkpoint)
        assert main(["export", "--checkpoint", str(checkpoint), "--out", str(tmp_path / "out"), "--overwrite",
                     *options]) == 0
        recipe = Pipeline.from_pretrained(tmp_path / "out").record["recipe"]
        return recipe["teacher"], recipe["teacher_hash"]

    own = bundle_identity(teacher)
    assert stated(None, own) == (str(teacher_dir), teacher.content_hash(["unet", "scheduler"]))
    assert stated(None, None) == (str(teacher_dir), None)  # an older checkpoint
    assert stated(None, own, "--bundle", str(other)) == (str(other), None)
    denoiser = {"class_path": "mine.Teacher"}
    assert stated(denoiser, own) == (denoiser, None)


@pytest.mark.parametrize("name", ["musiccm-tiny", "musiccm-tiny-tango", "musiccm-tiny-melody"])
def test_packaged_students_state_their_teacher(name: str) -> None:
    teacher, student = Bundle.from_pretrained(name), Bundle.from_pretrained(f"{name}-student")
    recipe = student.settings["distillation"]["recipe"]
    assert recipe["teacher"] == name and recipe["teacher_hash"] == teacher.denoiser_hash()
    card = (student.path / "README.md").read_text()
    assert f"- teacher: {name}\n- teacher_hash: {teacher.denoiser_hash()}\n" in card


def test_an_export_is_made_by_one_process_at_a_time_and_the_same_twice(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def contents(folder: Path) -> dict[str, bytes]:
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    export = ["export", "--checkpoint", str(run_dir / "checkpoints" / "last.ckpt"), "--overwrite", "--out"]
    assert main([*export, str(tmp_path / "a" / "x")]) == 0 and main([*export, str(tmp_path / "b" / "x")]) == 0
    first = contents(tmp_path / "a" / "x")
    assert len(first) > 8 and first == contents(tmp_path / "b" / "x")
    with pytest.raises(KeyboardInterrupt), replacing_folder(tmp_path / "a" / "x"):  # another process, until it is ended
        leave_half_file(tmp_path / "a")
        assert main([*export, str(tmp_path / "a" / "x")]) == 2
        assert f"{tmp_path / 'a' / 'x'}: in use by `" in capsys.readouterr().err
        raise KeyboardInterrupt
    assert contents(tmp_path / "a" / "x") == first
    assert main([*export, str(tmp_path / "a" / "x")]) == 0
    assert contents(tmp_path / "a" / "x") == first and [p.name for p in (tmp_path / "a").iterdir()] == ["x"]


def test_commands_say_what_is_wrong(
    run_dir: Path, student_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = run_dir / "checkpoints" / "last.ckpt"
    foreign = run_dir / "checkpoints" / "foreign.ckpt"
    torch.save({"state_dict": {"weight": torch.zeros(1)}}, foreign)
    torn = run_dir / "checkpoints" / "torn.ckpt"
    torn.write_bytes(checkpoint.read_bytes()[:1000])
    other = run_dir / "other.yaml"
    other.write_text((run_dir / "config.yaml").read_text().replace("2.5", "2.5, \"prediction_type\": \"epsilon\""))
    export = ["export", "--out", str(tmp_path / "x"), "--checkpoint"]
    generate = ["generate", "--model", str(student_dir), "--out", str(tmp_path / "x.wav")]
    for arguments, said in [
        ([*export, str(run_dir / "none.ckpt"), "--config", str(run_dir / "config.yaml")], "no such checkpoint"),
        ([*export, str(foreign)], "student_ema_slow"),
        ([*export, str(torn)], "not a readable checkpoint"),
        ([*export, str(checkpoint), "--config", str(run_dir / "none.yaml")], "config.yaml"),
        ([*export, str(checkpoint), "--config", str(other)], "prediction_type = 'v_prediction'"),
        ([*export, str(checkpoint), "--results", str(run_dir / "none.json")], "no such results"),
        ([*generate, ""], "prompt 1"),
        ([*generate, "music", "--steps", "99"], "steps"),
        ([*generate, "music", "--guidance-scale", "3"], "guidance"),
        (["generate", "music", "--model", str(tmp_path / "none")], "no bundle"),
        (["generate", "music", "--model", str(student_dir), "--out", "x.txt"], ".wav"),
    ]:
        assert main(arguments) != 0, arguments
        assert said in capsys.readouterr().err, arguments
    assert not (tmp_path / "x").exists()


def test_an_accelerated_pipeline_makes_the_same_sound(student_dir: Path, student: Pipeline, monkeypatch) -> None:
    """Up to rounding, which few network calls do not blow up: differences 80 dB below the sound."""
    monkeypatch.setattr("musiccm.models.acceleration.networks.WIDE", 8)  # the test bundle's layers are narrow
    fast = Pipeline.from_pretrained(student_dir).accelerate()
    plain, ours = student(PROMPTS, steps=4, seed=1), fast(PROMPTS, steps=4, seed=1)
    assert any(isinstance(layer, CpuConv2d) for layer in fast.denoiser.unet.modules())
    assert (ours - plain).norm() < 1e-4 * plain.norm()
    alone = fast(PROMPTS[:1], steps=4, seed=1)
    assert (ours[:1] - alone).norm() < 1e-4 * alone.norm(), "the second prompt is nothing to the first"
    assert not ours.is_inference() and not fast.compose(PROMPTS[0], 0.7, steps=1).is_inference()
    for wrong in (fast.accelerate, lambda: fast.to("cpu")):
        with pytest.raises(MusiccmError, match="accelerate"):
            wrong()


def test_a_compiled_pipeline_makes_the_same_sound(student_dir: Path, student: Pipeline, monkeypatch) -> None:
    """Here the compiler hands the network back as it is, for a real one takes a minute to read it."""
    asked = {}
    monkeypatch.setattr(torch, "compile", lambda network, **options: asked.update(options) or network)
    compiled = Pipeline.from_pretrained(student_dir).accelerate(backend="inductor")
    assert asked == {"backend": "inductor", "mode": "reduce-overhead", "dynamic": False}
    plain, ours = student(PROMPTS, steps=4, seed=1), compiled(PROMPTS, steps=4, seed=1)
    assert (ours - plain).norm() < 1e-4 * plain.norm()


def test_a_network_in_bf16_makes_nearly_the_same_latents() -> None:
    plain, half = (Pipeline.from_pretrained("musiccm-tiny-student") for _ in range(2))
    half.accelerate(half=True)
    cond = plain.conditioner.prompts(PROMPTS)
    z, rounded = (pipeline.latents(cond, [1, 2], steps=1) for pipeline in (plain, half))
    assert rounded.dtype == torch.float32
    assert (rounded - z).norm() < 0.03 * z.norm()

"""MeLoDy's parts joined: caches, the renderer's stage on them, few-step students, their export and their sound."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from pytorch_lightning import Trainer
from small_corpus import write_corpus
from tiny_melody import DPD, FRAMES, PER, SAMPLES, TOKENS, WIDTH, build_random_melody
from torch import Tensor

from musiccm.audio import fixed_window, read_audio
from musiccm.cli import main
from musiccm.data.module import MusicDataModule
from musiccm.diffusion import Angle, Condition
from musiccm.errors import MusiccmError
from musiccm.export import StudentInfo, export_student
from musiccm.models.bundle import Bundle
from musiccm.models.denoiser import Consistency
from musiccm.models.melody.frame_denoiser import FrameDenoiser
from musiccm.models.melody.tokenizer import tokenizer_of
from musiccm.pipeline import Pipeline
from musiccm.samplers import FrameNoise, HeldFrames, Stepper, make_sampler
from musiccm.samplers.chunks import ChunkWindows, fill_piece, tokens_of
from musiccm.systems.distillation import DistilledSystem
from musiccm.systems.dmd2 import DMD2, Matching
from musiccm.systems.lcm import LCM
from musiccm.systems.pcm import PCM
from musiccm.systems.settings import Adversarial, Distillation, Optimization, Phase
from musiccm.systems.stages.dual_path import DualPathStage

PROMPT = "slow organ chords"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus, `base`, `melody`, and an experiment with both of its caches, in a folder."""
    folder = tmp_path_factory.mktemp("melody")
    write_corpus(folder / "corpus")
    melody = build_random_melody(folder)
    data = {"root": str(folder / "corpus"), "kind": "latent", "bundle": str(melody), "tokenizer": str(melody),
            "cache_dir": str(folder / "latents"), "tokens_dir": str(folder / "tokens"), "clip_samples": SAMPLES,
            "batch_size": 4, "val_clips": 2, "windows_per_track": 2}
    path = folder / "x.yaml"
    path.write_text(yaml.safe_dump({"data": {"class_path": "musiccm.data.module.MusicDataModule", "init_args": data}}))
    for what in ("latents", "tokens"):
        assert main(["prepare", what, "--config", str(path), "--split", "train", "--device", "cpu"]) == 0
    return folder


def module(world: Path, **changed: Any) -> MusicDataModule:
    return MusicDataModule(**{**yaml.safe_load((world / "x.yaml").read_text())["data"]["init_args"], **changed})


def trainer(folder: Path, steps: int, **more: Any) -> Trainer:
    return Trainer(max_steps=steps, max_epochs=-1, accelerator="cpu", logger=False, enable_progress_bar=False,
                   enable_model_summary=False, enable_checkpointing=False, default_root_dir=folder,
                   num_sanity_val_steps=0, check_val_every_n_epoch=None, val_check_interval=steps, **more)


def test_a_bundle_says_what_it_is_and_borrows_clap_and_evaluators(world: Path) -> None:
    bundle = Bundle.from_pretrained(world / "melody")
    assert bundle.latent_shape() == (4, FRAMES, 1) and bundle.sample_rate_hz == 16000
    assert bundle.base is not None and bundle.root_of("text_encoder") == bundle.base.path
    assert set(bundle.settings["base"]["parts"]) == {
        "text_encoder", "tokenizer", "feature_extractor", "evaluators/tagger", "evaluators/audiomae"}
    assert {path.name for path in bundle.path.iterdir() if path.is_dir()} == {
        "audio_vae", "semantic_tokenizer", "semantic_lm", "dual_path", "scheduler"}
    assert type(bundle.kind.denoiser(bundle.network, Angle(), "v_prediction")) is FrameDenoiser
    # the base has a U-Net and a mel's VAE, which are not this bundle's
    for part in ("unet", "vae"):
        assert bundle.has(part)
        with pytest.raises(MusiccmError, match=f"{part}: needs a U-Net on the latents of a mel"):
            getattr(bundle, part)
    assert Bundle.from_pretrained(world / "base").kind.network == "unet"


def test_the_latent_cache_holds_the_moments_of_sound_with_its_tokens_beside(world: Path) -> None:
    data, bundle = module(world), Bundle.from_pretrained(world / "melody")
    data.setup("fit")
    cache, vae = data.latent_cache("train"), bundle.codec()
    row = 7
    clip = data.clips("train")[cache.index.clip_of(row)]
    sound = fixed_window(read_audio(clip.path)[0], SAMPLES, int(cache.index.starts_N[row]))
    expected = vae.posterior(sound[None])
    mean, std = cache.moments(np.asarray([row]))
    torch.testing.assert_close(mean, expected.mean, rtol=2e-3, atol=2e-3)  # stored in half precision
    torch.testing.assert_close(std, expected.std, rtol=2e-3, atol=2e-3)
    batch = next(iter(data.train_dataloader()))
    assert batch.latents_BCTF.shape == (4, 4, FRAMES, 1)
    assert batch.semantic_BL is not None and batch.semantic_BL.shape == (4, TOKENS)
    assert batch.audio_BD is not None and batch.text_BD.shape == (4, 32)  # CLAP's, as its kind of cache has them


def test_the_renderer_learns_from_both_caches(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world / "melody", tmp_path / "melody")
    shutil.copytree(world / "base", tmp_path / "base")
    shape = {key: value for key, value in DPD.items() if key != "token_width"}
    torch.manual_seed(0)
    stage = DualPathStage(shape, bundle=str(tmp_path / "melody"), chunks=4, warmup_steps=1, lr=1e-2, ema_decay=0.9)
    assert stage.part.shape.token_width == WIDTH
    losses = []
    stage.on_before_zero_grad = lambda optimizer: losses.append(  # type: ignore[method-assign]
        float(stage.trainer.callback_metrics.get("train/loss", torch.tensor(2.0))))
    trainer(tmp_path, 30).fit(stage, datamodule=module(world))
    assert np.mean(losses[-8:]) < 0.9 * np.mean(losses[1:9])
    after = Bundle.from_pretrained(tmp_path / "melody").network.state_dict()
    torch.testing.assert_close(after, stage.best.state_dict())


def test_tokens_and_latents_of_others_are_refused(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world / "melody", tmp_path / "melody")
    tokenizer = tokenizer_of(tmp_path / "melody")
    tokenizer.centroids_KD.add_(1.0)
    tokenizer.save_pretrained(tmp_path / "melody/semantic_tokenizer")
    stage = DualPathStage(DPD, bundle=str(tmp_path / "melody"))
    with pytest.raises(MusiccmError, match="holds tokens of another tokenizer"):
        trainer(tmp_path, 1).fit(stage, datamodule=module(world))
    with pytest.raises(MusiccmError, match="data.tokens_dir: expected the cache of semantic tokens"):
        trainer(tmp_path, 1).fit(stage, datamodule=module(world, tokens_dir=None))
    shutil.copytree(world / "base", tmp_path / "base")
    with pytest.raises(MusiccmError, match="another tokenizer"):  # what was trained on the other's tokens
        Pipeline.from_pretrained(tmp_path / "melody")


SHORT = {"guidance_scale": 2.0, "audio_condition_share": 0.0, "prediction_type": "v_prediction"}


def distilled(world: Path, name: str) -> DistilledSystem:
    bundle, torch_seed = str(world / "melody"), 0
    torch.manual_seed(torch_seed)
    if name == "lcm":
        settings = Distillation(**SHORT, warm_start_steps=1, curriculum=[Phase(1.0, 100, 1)], target_ema_decay=0.5,
                                continuation_share=0.5, inpainting_share=0.2)
        return LCM(bundle, settings, Optimization(lr=1e-3, warmup_steps=1))
    return DMD2(bundle, Distillation(**SHORT), Matching(steps=[1, 2], critic_steps=1, gan_weight=0.0),
                optimization=Optimization(lr=1e-3, warmup_steps=1))


@pytest.mark.parametrize("name", ["lcm", "dmd2"])
def test_the_renderer_is_distilled_exported_and_sampled(world: Path, name: str) -> None:
    system, data = distilled(world, name), module(world)
    before = {key: value.clone() for key, value in system.student.state_dict().items()}
    trainer(world, 3, limit_val_batches=1).fit(system, datamodule=data)
    moved = [key for key, value in system.student.state_dict().items() if not torch.equal(value, before[key])]
    assert "out.weight" in moved and all(torch.isfinite(p).all() for p in system.student.parameters())
    folder = export_student(system.student, Bundle.from_pretrained(world / "melody"), world / f"student-{name}",
                            StudentInfo("v_prediction", 2.0), base="../melody")
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {"dual_path", "scheduler"}
    student = Pipeline.from_pretrained(folder)
    assert student.is_student
    for steps in (1, 2, 4):
        made = student(PROMPT, steps, seed=3)
        assert made.shape == (1, SAMPLES) and torch.isfinite(made).all()
    # tokens are those that the teacher would render
    torch.testing.assert_close(student.conditioner.prompts([PROMPT], [3]).tokens_BLD,
                               Pipeline.from_pretrained(world / "melody").conditioner.prompts([PROMPT], [3]).tokens_BLD)
    # one call by hand: f of the noise under the tokens
    cond = student.conditioner.prompts([PROMPT], [3])
    noise = FrameNoise(3, (4, FRAMES, 1))(-1, 0, FRAMES)[None]
    f = Consistency(FrameDenoiser(system.student.eval(), Angle(), "v_prediction"))
    with torch.no_grad():
        expected = f(noise, torch.tensor([999]), cond)
    torch.testing.assert_close(student.latents(cond, [3], steps=1), expected, rtol=1e-4, atol=1e-5)


def test_rows_of_the_renderer_need_no_checkpoint_and_are_laid_out(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The packaged experiment on a small bundle: `musiccm test`, then the paper's tables."""
    data = yaml.safe_load((world / "x.yaml").read_text())["data"]["init_args"]
    rows = [f"teacher_{tokens}_{angles}" for tokens in ("lm", "oracle") for angles in ("uniform", "proposed")]
    evaluation = {"class_path": "musiccm.callbacks.evaluation.Evaluation", "init_args": {
        "decoders": ["original"], "teacher_steps": [], "steps": [], "guidance_scale": 2.5, "limit": 4, "batch_size": 4,
        "more_models": dict.fromkeys(rows, [5]), "panel_labels": [], "progress": False}}
    config = tmp_path / "rows.yaml"
    config.write_text(yaml.safe_dump({
        "base": "melody/rows", "experiment": "rows", "model": {"init_args": {"bundle": str(world / "melody")}},
        "trainer": {"accelerator": "cpu", "default_root_dir": str(tmp_path), "callbacks": [evaluation]},
        "data": {"init_args": {**data, "demo_corpora": []}}}))
    assert main(["test", "--config", str(config)]) == 0
    capsys.readouterr()
    assert main(["tables", "--protocol", "melody", "--config", str(config), "--runs",
                 str(tmp_path / "lightning_logs")]) == 0
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    found = {tuple(cells[:3]): cells for cells in lines if len(cells) == 9}
    for tokens in ("the real clip's", "language model's"):
        for angles in ("uniform", "proposed"):
            assert found[tokens, angles, "5"][3] == "10" and float(found[tokens, angles, "5"][4]) > 0
            assert found[tokens, angles, "20"][4] == "-"
    assert found["language model's", "proposed", "5"][7:] == ["7.23", "0.49"]
    assert float(found["real clips", "", ""][4]) > 0


def test_a_student_that_borrows_nothing_has_all_that_it_needs(world: Path, tmp_path: Path) -> None:
    teacher = Bundle.from_pretrained(world / "melody")
    folder = export_student(teacher.network, teacher, tmp_path / "student", StudentInfo("v_prediction", 2.0))
    student = Pipeline.from_pretrained(folder)
    assert Bundle.from_pretrained(folder).base is None
    piece = student.compose(PROMPT, 1.0, steps=2, seed=1)
    assert len(piece) == 16000 and torch.isfinite(piece).all()
    assert len(student.conditioner.ids(torch.randn(1, SAMPLES), 16000)[0]) == TOKENS  # by the tagger that came along


def test_a_student_makes_chunks_beside_held_ones(world: Path) -> None:
    bundle = Bundle.from_pretrained(world / "melody")
    f = Consistency(FrameDenoiser(bundle.network, Angle(), "v_prediction"))
    stepper = Stepper(f, f.denoiser.schedule, [999, 499], make_sampler("lcm"))
    cond = bundle.network_conditioner().prompts([PROMPT], [1])
    assert isinstance(cond, Condition)
    clean, held = torch.randn(1, 4, FRAMES, 1), torch.arange(FRAMES) < 80
    made = fill_piece(stepper, ChunkWindows(FRAMES, 80, PER), tokens_of(cond, FRAMES, PER),
                      [FrameNoise(1, (4, FRAMES, 1))], clean, held)
    assert torch.equal(made[:, :, :80], clean[:, :, :80]) and not torch.equal(made[:, :, 80:], clean[:, :, 80:])


@pytest.mark.parametrize("objective", [LCM, PCM])
def test_what_is_held_is_clean_for_student_teacher_and_target(world: Path, objective: type[LCM]) -> None:
    torch.manual_seed(3)
    settings = Distillation(**SHORT, continuation_share=0.5, inpainting_share=0.5)
    system = objective(str(world / "melody"), settings)
    cond = system.conditioner.prompts([PROMPT] * 4, [1, 2, 3, 4])
    z0, t_B = torch.randn(4, 4, FRAMES, 1), torch.tensor([999, 799, 599, 399])
    held = system.held_frames(z0, torch.Generator().manual_seed(1))
    assert held is not None and held.held_BT.any(1).all() and not held.held_BT.all(1).any()
    there = held.held_BT[:, None, :, None]

    def ends(z: Tensor, held: HeldFrames | None) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return system.both_ends(z, t_B, cond, Phase(1.0, 100, 2), "heun", "online", "target", held)

    z = system.schedule.add_noise(z0, torch.randn_like(z0), t_B)
    found, whole = ends(z, held), ends(z, None)
    torch.testing.assert_close(found[0][there.expand_as(z0)], found[1][there.expand_as(z0)])  # nothing to learn there
    if objective is LCM:  # whose ends are both clean
        other = ends(torch.where(there, z + 1.0, z), held)  # whatever noise lies on what is held
        for end, same in zip(found, other, strict=True):
            assert torch.equal(end, same) and torch.equal(end[there.expand_as(z0)], z0[there.expand_as(z0)])
    for end, without in zip(found, whole, strict=True):  # what is made goes by what is held
        assert not torch.allclose(end[~there.expand_as(z0)], without[~there.expand_as(z0)], atol=1e-3)


def test_what_needs_a_mel_or_a_u_net_is_refused(world: Path) -> None:
    bundle = str(world / "melody")
    with pytest.raises(MusiccmError, match="matching.gan_weight.*set it to 0"):
        DMD2(bundle, Distillation(**SHORT), Matching(steps=[1]))
    with pytest.raises(MusiccmError, match="adversarial.weight.*set it to 0"):
        DMD2(bundle, Distillation(**SHORT), Matching(steps=[1], gan_weight=0.0), Adversarial(weight=1.0))
    with pytest.raises(MusiccmError, match="inpainting_share: expected 0 for DMD2, which trains on whole clips"):
        DMD2(bundle, Distillation(**SHORT, continuation_share=0.1), Matching(steps=[1], gan_weight=0.0))
    with pytest.raises(MusiccmError, match="takes no held frames"):
        LCM(str(world / "base"), Distillation(continuation_share=0.1))
    with pytest.raises(MusiccmError, match="expected at most 1 together, found 1.1 of 4 chunks"):
        Distillation(continuation_share=0.6, inpainting_share=0.5).check()
    with pytest.raises(MusiccmError, match="variable: needs a U-Net"):
        LCM(bundle, Distillation(**{**SHORT, "guidance": "variable"}))
    with pytest.raises(MusiccmError, match="audio_condition_share: expected 0"):
        LCM(bundle, Distillation(**{**SHORT, "audio_condition_share": 0.5}))
    with pytest.raises(MusiccmError, match="its audio VAE makes sound itself"):
        Pipeline.from_pretrained(bundle, decoder="fast")

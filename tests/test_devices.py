"""What every part computes on another device is what it computes on the CPU, from the same inputs and the same seeds.

On a GPU where there is one; and everywhere on a device that stands for it (`pretend_device`), on which whatever was
left behind on the CPU stops the computation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from gaussian import MUSICLDM
from one_step import batch_of
from tiny_bundle import CAPTIONS, build_random_bundle, make_unet
from tiny_melody import DPD, build_random_melody
from tiny_tokens import build_token_bundle, make_token_unet
from torch.utils._pytree import tree_map

from musiccm.audio import LogMel
from musiccm.audio.io import write_audio
from musiccm.audio.windows import keyed_generator
from musiccm.data.batch import LatentBatch
from musiccm.diffusion import Angle, Condition, NoiseSchedule, pool_condition
from musiccm.embedders.registry import load_embedder
from musiccm.evaluation.candidates import Comparison, candidates
from musiccm.evaluation.evaluator import Evaluator
from musiccm.evaluation.suite import FeatureExtractor, MetricSuite
from musiccm.evaluation.text_audio import bundle_clap
from musiccm.export import StudentInfo, export_student
from musiccm.long_form import read_clip
from musiccm.losses import discriminator_loss
from musiccm.losses.spectral import MultiResolutionStft
from musiccm.losses.waveform_adversarial import waveform_adversarial
from musiccm.models.bundle import Bundle
from musiccm.models.melody.frame_denoiser import FrameDenoiser
from musiccm.models.melody.tokenizer import tokenizer_of
from musiccm.models.spectrogram_discriminator import SpectrogramDiscriminator
from musiccm.pipeline import Pipeline
from musiccm.samplers import (
    ChunkWindows,
    Crops,
    FrameNoise,
    Lcm,
    SharedProcess,
    Stepper,
    Wavefront,
    fill_piece,
    sample_shared,
    stream_piece,
    teacher_stepper,
    tokens_of,
)
from musiccm.systems.clap_tuned import ClapTerm
from musiccm.systems.clap_tuning import ClapTuning
from musiccm.systems.consistency_tta import WEIGHTINGS, ConsistencyTTA
from musiccm.systems.musiccm import MusicCM
from musiccm.systems.settings import Adversarial, Distillation, Optimization, Phase
from musiccm.systems.stages.dual_path import DualPathStage, no_tokens
from musiccm.systems.stages.renderer_unet import RendererUNetStage
from musiccm.systems.stages.teacher import TeacherStage
from tests.pretend_device import TwoPlaces, install
from tests.stages import stage_of, waves

SCHEDULE = NoiseSchedule.from_config(MUSICLDM)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(build_random_bundle(tmp_path_factory.mktemp("bundles") / "teacher", decoder=True))


@pytest.fixture(params=["pretend", pytest.param("cuda", marks=pytest.mark.gpu)])
def other(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "cuda":
        yield request.param
        return
    # torch counts devices at the first backward pass of a process, and has no thread for one that comes later
    with torch.autograd.set_multithreading_enabled(False):
        yield install()


def same(computed: Callable[[str], Any], other: str, rtol: float = 1e-4, atol: float = 1e-4) -> None:
    """Compare nested results of `computed(device)`."""
    expected, found = (tree_map(lambda leaf: leaf.detach().cpu() if isinstance(leaf, torch.Tensor) else leaf,
                                computed(device)) for device in ("cpu", other))
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)


def test_the_device_refuses_what_a_gpu_refuses() -> None:
    device = install()
    x = torch.arange(6.0, device=device).view(2, 3)
    assert x.device.type == device and x.sum().item() == 15.0
    assert torch.equal((2 * x).cpu(), 2 * torch.arange(6.0).view(2, 3))
    for wrong in (lambda: x + torch.ones(2, 3), lambda: torch.cat([x, torch.ones(1, 3)]),
                  lambda: torch.ones(3)[torch.tensor([1], device=device)], lambda: x.where(torch.ones(2, 3) > 0, x),
                  lambda: torch.randn(2, device=device, generator=torch.Generator())):
        with pytest.raises(TwoPlaces):
            wrong()
    for right in (lambda: x * torch.tensor(2.0), lambda: x[torch.tensor([1])], lambda: x[:, [0, 2]],
                  lambda: torch.ones(2, 3).to(x) + x, lambda: x.clone().copy_(torch.ones(2, 3))):
        assert right().device.type == device
    with pytest.raises((RuntimeError, TypeError)):
        x.numpy()


@pytest.mark.parametrize(("features", "solver", "jumps"), [
    ("audiomae", "ddim", 2), pytest.param("clap", "heun", "to_zero", marks=pytest.mark.slow)])
def test_losses_of_a_training_step(bundle: str, other: str, features: str, solver: str, jumps: int | str) -> None:
    """Warm start, distillation, both sides of the adversarial loss, their gradients, averages and validation."""

    def step(device: str) -> dict[str, Any]:
        torch.manual_seed(0)
        distillation = Distillation(tail=0.2, audio_condition_share=0.5, solver=solver,
                                    curriculum=[Phase(1.0, 500, jumps)])
        system = MusicCM(bundle, distillation, Adversarial(features=features, crop_frames=4, head_width=8))
        batch, generator, logged = batch_of(system).to(device), keyed_generator(0, "devices"), {}
        system.to(device)
        system._progress = lambda: 0.0
        system.log = lambda name, value, **_: logged.update({name: value})
        z0 = system.codec.normalise(batch.latents_BCTF)
        cond_BD = system._condition(batch, generator)
        warm, _ = system.warm_start_loss(z0, cond_BD, generator)
        x0, distil, _ = system.distil(z0, cond_BD, generator)
        judged = system._losses(z0, x0, batch.text_BD, generator)
        (warm + distil + judged["loss_g"]).backward()
        loss_d, _ = discriminator_loss(system.discriminator, judged["real"], judged["fake"], judged["cond"], 1e-5)
        loss_d.backward()
        norms = [torch.nn.utils.clip_grad_norm_(part.parameters(), 1e9)
                 for part in (system.student, system.discriminator)]
        with torch.no_grad():
            for parameter in system.student.parameters():
                parameter += 0.01
        system.student_ema_slow.update(system.student)
        with torch.inference_mode():
            system.validation_step(batch, 0)
        return {"warm": warm, "distil": distil, "loss_g": judged["loss_g"], "loss_d": loss_d, "norms": norms,
                "moved": system.student_ema_slow.distance(system.student), **logged}

    same(step, other, rtol=1e-3, atol=1e-3)


def test_losses_of_intervals(bundle: str, other: str) -> None:
    """ConsistencyTTA's, of a student that is told its scale, on a grid between whole timesteps; and its validation."""

    def step(device: str) -> dict[str, Any]:
        distillation = Distillation(prediction_type="sample", distance="squared", solver="heun", grid="linspace",
                                    grid_points=17, guidance="variable", warm_start_steps=1, warm_start_snr=5.0)
        system = ConsistencyTTA(bundle, distillation)
        batch, generator, logged = batch_of(system).to(device), keyed_generator(0, "devices"), {}
        system.to(device)
        system.log = lambda name, value, **_: logged.update({name: value})
        z0 = system.codec.normalise(batch.latents_BCTF)
        cond_BD = system._condition(batch, generator)
        warm, _ = system.warm_start_loss(z0, cond_BD, generator)
        index_B, noise = torch.tensor([16, 0]), torch.randn(z0.shape, generator=generator).to(device)
        found, losses = system.at(index_B, z0, noise, cond_BD, "heun", "online", "target"), []
        for weighting in WEIGHTINGS:
            system.intervals.weighting = weighting
            weight_B = system.weights(system.grid[index_B].to(device))
            losses.append(system.loss(found._replace(weight_B=weight_B))[0])
        (warm + sum(losses)).backward()
        norm = torch.nn.utils.clip_grad_norm_(system.student.parameters(), 1e9)
        with torch.inference_mode():
            drawn, _, _ = system.objective(batch, z0, cond_BD, generator)
            system.validation_step(batch, 0)
        return {"warm": warm, "losses": losses, "drawn": drawn, "norm": norm, **logged}

    same(step, other, rtol=1e-3, atol=1e-3)


def test_the_loss_by_clap(bundle: str, other: str) -> None:
    """From the student's answer to pure noise through decoder and CLAP, clip by clip, and its gradient."""

    def step(device: str) -> dict[str, Any]:
        torch.manual_seed(0)
        term = ClapTerm(sample="one_step", weighting="uniform")
        system = ClapTuning(bundle, clap=term, optimization=Optimization(gradient_checkpointing=True))
        batch, generator = batch_of(system, 2).to(device), keyed_generator(0, "devices")
        system.to(device)
        z0 = system.codec.normalise(batch.latents_BCTF)
        loss, parts = system.clap_term(batch, z0, z0, batch.text_BD, generator)
        loss.backward()
        return {**parts, "loss": loss, "norm": torch.nn.utils.clip_grad_norm_(system.student.parameters(), 1e9)}

    same(step, other, rtol=1e-3, atol=1e-3)


def test_token_conditions(tmp_path: Path, other: str) -> None:
    """A teacher stage, a student's warm start, the heads' condition and a clip of a bundle with a T5."""
    path = build_token_bundle(tmp_path / "tokens")
    config = {key: value for key, value in make_token_unet().config.items() if not key.startswith("_")}
    text = Bundle.from_pretrained(path).conditioner().text(CAPTIONS[:3])
    latents = torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(5))

    def compute(device: str) -> dict[str, Any]:
        torch.manual_seed(0)
        batch, generator = LatentBatch(latents, text, None, list("abc"), CAPTIONS[:3]).to(device), keyed_generator(0, 1)
        stage = TeacherStage(config, bundle=str(path), condition_dropout=0.5, audio_condition_share=0.0).to(device)
        stage.setup("fit")
        system = MusicCM(str(path), Distillation(), Adversarial(weight=0.0)).to(device)
        z0, cond = system.codec.normalise(batch.latents_BCTF), system._condition(batch, generator)
        return {"stage": stage.loss(batch, keyed_generator(0, 2))[0], "heads": pool_condition(batch.text_BD),
                "warm": system.warm_start_loss(z0, cond, generator)[0],
                "clips": Pipeline.from_pretrained(path).to(device)(CAPTIONS[:2], 1)}

    same(compute, other, rtol=1e-3, atol=1e-3)


def test_samplers(other: str) -> None:
    def sample(device: str) -> list[torch.Tensor]:
        shape = (2, 8, 3)
        stepper = Stepper(lambda z, t, cond: torch.tanh(z) * cond[:, :1, None, None] + t[:, None, None, None] / 999,
                          SCHEDULE, [999, 759, 499, 259], Lcm(0.6))
        noise, cond_BD = FrameNoise(5, shape)(0, 0, 8)[None].to(device), torch.ones(1, 2, device=device)
        teacher = teacher_stepper(stepper.f, SCHEDULE, lambda count: 0.5 * cond_BD, 5, 3.0)
        found = [teacher.sample(cond_BD, noise)]
        for fusion in ("uniform", "triangular", "swap"):
            process = SharedProcess(stepper, Crops(20, 8, 4), FrameNoise(5, shape), fusion, device)
            found.append(sample_shared(process, lambda _: cond_BD[0], 3))
            kept = {"kept_CTF": torch.ones(2, 20, 3), "kept_T": torch.arange(20) < 5}
            found.append(sample_shared(process, lambda _: cond_BD[0], 3, **kept))
            front = Wavefront(process, lambda _: cond_BD[0])
            parts = []
            while not front.finished:
                parts.append(front.tick())
            found.append(torch.cat(parts, dim=1))
        return found

    same(sample, other)


@pytest.mark.parametrize("decoder", ["fast", "original"])
def test_pipelines(bundle: str, tmp_path: Path, other: str, decoder: str) -> None:
    """Clips of student and teacher, a piece, a stream, and edits of a clip."""
    torch.manual_seed(11)
    info = StudentInfo("v_prediction", 3.0, sampler={"name": "lcm", "gamma": 0.6})
    beside = Path(bundle).with_name(f"student-{decoder}-{other}")
    student = export_student(make_unet(), Bundle.from_pretrained(bundle), beside, info, base=f"../{Path(bundle).name}")

    def sound(device: str) -> list[torch.Tensor]:
        pipeline = Pipeline.from_pretrained(student, decoder=decoder).to(device)
        clips = pipeline(CAPTIONS[:2], 2)
        path = tmp_path / "clip.wav"
        if not path.exists():
            write_audio(path, clips[0], pipeline.sample_rate_hz)
        clip, editor = read_clip(pipeline, path), pipeline.editor(2)
        if decoder == "original":  # the rest is the same code
            return [clips, pipeline.compose(CAPTIONS[0], 2.0, 1)]
        found = [clips, pipeline.compose([(0.0, CAPTIONS[0]), (1.5, CAPTIONS[1])], 3.0, 2),
                 torch.cat(list(pipeline.stream(CAPTIONS[0], 2.0, 2))),
                 editor.extend(clip, CAPTIONS[0], 2.0).waveform_CS,
                 editor.vary(clip, CAPTIONS[0], 0.5).waveform_CS]
        teacher = Pipeline.from_pretrained(bundle, decoder=decoder).to(device)
        return [*found, teacher(CAPTIONS[:1], 2)]

    same(sound, other)


def test_an_evaluation(bundle: str, other: str) -> None:
    """Real and generated clips by tagger and CLAP: every metric of the table but the times."""

    def rows(device: str) -> list[dict[str, Any]]:
        opened = Bundle.from_pretrained(bundle)
        tagger = load_embedder("tagger", bundle=opened, device="cuda" if device == "cuda" else "cpu").to(device)
        clap = bundle_clap(opened)
        extractor = FeatureExtractor([tagger], clap.audio, 16000)
        train = ["t0", "t1"], torch.eye(32)[:2]
        suite = MetricSuite({"tagger": True}, train, extractor.groups, options={"is": {"splits": 2}},
                            also={name: ["tagger"] for name in ("kad", "fd_inf")})
        evaluator = Evaluator(extractor, suite, batch_size=4, device=device, progress=False, clap=clap)
        batch = waves()
        evaluator.set_reference([batch], len(batch.ids))
        system = MusicCM(bundle, adversarial=Adversarial(weight=0.0)).to(device)
        both = candidates(Comparison(system, {"name": "lcm", "gamma": 0.5}), {"student": [2], "teacher": [2]})
        found = [evaluator.run(candidate).row for candidate in both]
        real = evaluator.distance_of_real([batch])
        return [{key: value for key, value in row.items() if isinstance(value, int | float) and "latency" not in key}
                for row in [*found, real]]

    same(rows, other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["vae", "vocoder", "decoder", "audio_vae", "audiomae", "teacher"])
def test_losses_of_the_stages(bundle: str, other: str, name: str) -> None:
    def losses(device: str) -> list[Any]:
        stage = stage_of(name, bundle)
        stage._trainer = None
        batch: Any = waves(4)
        if name == "teacher":
            stage.setup("fit")
            batch = batch_of(MusicCM(bundle, adversarial=Adversarial(weight=0.0)), 4)
        stage = stage.to(device)
        if name in ("vocoder", "decoder"):
            stage.on_fit_start()
        batch = batch.to(device)
        total, parts = stage.loss(batch, keyed_generator(0, "loss"))
        total.backward()
        with torch.no_grad():
            measured = stage.measure(batch, keyed_generator(0, "measure"))
            measured.pop("ids", None)  # of which there is nothing to compare
        norm = torch.nn.utils.clip_grad_norm_(stage.part.parameters(), 1e9)
        return [total, {key: value for key, value in parts.items() if value.ndim == 0}, measured, norm]

    same(losses, other, rtol=1e-3, atol=1e-3)


def test_losses_of_waveforms(other: str) -> None:
    def losses(device: str) -> list[Any]:
        torch.manual_seed(0)
        discriminator = SpectrogramDiscriminator((64, 128), width=4).to(device)
        sound = waves(2).waveform_BS[:, :4000].to(device)
        fake = (0.9 * sound).requires_grad_(True)
        fooling, judging, _ = waveform_adversarial(discriminator, fake, sound)
        stft, _ = MultiResolutionStft((64, 128)).to(device)(fake, sound)
        (fooling + judging + stft).backward()
        return [fooling, judging, stft, fake.grad, LogMel().to(device)(sound)]

    same(losses, other, rtol=1e-3)


UNET = {"channels": 4, "widths": [16, 32], "attention": [], "told_width": 8, "angle_width": 8, "frames_per_token": 10,
        "frames": 160}


@pytest.mark.parametrize(("kind", "shape"), [(DualPathStage, DPD), (RendererUNetStage, UNET)], ids=["dual", "unet"])
def test_renderers(kind: type[DualPathStage], shape: dict[str, Any], other: str, tmp_path: Path) -> None:
    """Their loss and measures, and a piece that goes on chunk by chunk, guided."""
    bundle = build_random_melody(tmp_path)
    latents = torch.randn(2, 4, 240, 1, generator=torch.Generator().manual_seed(0))
    ids = torch.randint(24, (2, 24), generator=torch.Generator().manual_seed(1))

    def compute(device: str) -> list[Any]:
        torch.manual_seed(0)
        stage = kind(shape, bundle=str(bundle), condition_dropout=0.5, inpainting_share=0.5)
        torch.nn.init.normal_(stage.part.out.weight)
        stage = stage.to(device)
        clips = LatentBatch(latents[:, :, :160], torch.zeros(2, 1), None, ["a", "b"], ["a", "b"],
                            ids[:, :16]).to(device)
        total, parts = stage.loss(clips, keyed_generator(0, "loss"))
        total.backward()
        norm = torch.nn.utils.clip_grad_norm_(stage.part.parameters(), 1e9)
        measured = stage.summarise([stage.measure(clips, keyed_generator(0, "measure"))])
        vectors = tokenizer_of(bundle).vectors(ids).to(device)
        cond = Condition(vectors, torch.ones(vectors.shape[:2], dtype=torch.bool, device=device))
        denoiser = FrameDenoiser(stage.part, Angle(), "v_prediction")
        stepper = teacher_stepper(denoiser, Angle(), lambda count: no_tokens(cond), 3, 2.0,
                                  {"name": "dpm-solver++", "schedule": "angle_proposed"})
        windows, noises = ChunkWindows(160, 80, 10), [FrameNoise(seed, (4, 160, 1)) for seed in range(2)]
        before, asked = latents[:, :, :100].to(device), tokens_of(cond, 240, 10)
        piece = fill_piece(stepper, windows, asked, noises, latents.to(device), torch.arange(240) < 100)
        streamed = list(stream_piece(stepper, windows, asked, noises, (4, 1), 240, before, device))
        return [total, parts["mse_BT"], norm, measured, piece, streamed]

    same(compute, other, rtol=1e-3, atol=1e-3)

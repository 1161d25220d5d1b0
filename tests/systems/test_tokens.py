"""A bundle that conditions by tokens goes the whole way: cache, teacher, student, export, clips and long pieces."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers.schedulers import scheduling_lcm
from pytorch_lightning import Trainer
from small_corpus import write_corpus
from tiny_tokens import build_token_bundle, make_token_unet

from musiccm.cli import main
from musiccm.commands._encode import summary
from musiccm.data.batch import LatentBatch
from musiccm.data.latent_cache.dataset import LatentCache
from musiccm.data.module import MusicDataModule
from musiccm.diffusion import Condition
from musiccm.evaluation.candidates import Comparison, candidates
from musiccm.evaluation.distilled import as_distilled
from musiccm.export import StudentInfo, export_student
from musiccm.models.bundle import Bundle
from musiccm.models.denoiser import Consistency, Denoiser
from musiccm.pipeline import Pipeline
from musiccm.samplers import INITIAL, Lcm, Stepper, sample_noise, sample_seeds, seeded_noise_fn
from musiccm.systems.encoding.encoder import TOKEN_PARTS, CorpusEncoder
from musiccm.systems.musiccm import MusicCM
from musiccm.systems.settings import Adversarial, Distillation, Optimization, Phase
from musiccm.systems.stages.teacher import TeacherStage

SAMPLES = 4 * 16 * 160
PROMPTS = ["a calm piano melody over soft strings", "slow organ chords"]


class Made:
    """What the steps below leave behind, each made by the one before."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.root = folder, write_corpus(folder / "corpus", 20, 4)
        self.bundle = build_token_bundle(folder / "bundle", unet=False)
        self.cache = folder / "cache"
        experiment = {"data": {"class_path": "musiccm.data.module.MusicDataModule", "init_args": {
            "root": str(self.root), "kind": "latent", "clip_samples": SAMPLES, "bundle": str(self.bundle),
            "cache_dir": str(self.cache), "windows_per_track": 2}}}
        (folder / "tokens.yaml").write_text(json.dumps(experiment))
        self.encode = ["prepare", "latents", "--config", str(folder / "tokens.yaml"), "--shard-size", "4"]
        assert main(self.encode) == 0
        torch.manual_seed(0)
        config = {key: value for key, value in make_token_unet().config.items() if not key.startswith("_")}
        self.stage = TeacherStage(config, bundle=str(self.bundle), condition_dropout=0.5, audio_condition_share=0.0)
        self.fit(self.stage, 3)
        self.system = MusicCM(
            str(self.bundle), Distillation(warm_start_steps=1, curriculum=[Phase(1.0, 100, 1)]),
            Adversarial(crop_frames=2, head_width=8), Optimization(lr=1e-3))
        self.before = {name: value.clone() for name, value in self.system.state_dict().items()}
        self.fit(self.system, 3)
        self.student = export_student(self.system.denoiser("slow").unet, Bundle.from_pretrained(self.bundle),
                                      folder / "student", StudentInfo("v_prediction", 3.0))

    def data(self) -> MusicDataModule:
        return MusicDataModule(str(self.root), "latent", SAMPLES, batch_size=4, val_clips=2, seed=3, bundle=str(
            self.bundle), cache_dir=str(self.cache), windows_per_track=2)

    def batch(self) -> LatentBatch:
        data = self.data()
        data.setup("fit")
        return next(iter(data.train_dataloader()))

    def fit(self, system: torch.nn.Module, steps: int) -> None:
        Trainer(max_steps=steps, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
                enable_checkpointing=False, limit_val_batches=1, default_root_dir=self.folder,
                ).fit(system, datamodule=self.data())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    yield Made(tmp_path_factory.mktemp("tokens"))


def items_of(cond: Condition) -> list[torch.Tensor]:
    return [tokens[mask] for tokens, mask in zip(cond.tokens_BLD, cond.mask_BL, strict=True)]


def test_the_cache_holds_what_the_text_encoder_gives(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    cache, conditioner = LatentCache(made.cache / "train"), Bundle.from_pretrained(made.bundle).conditioner()
    texts = list(cache.index.captions)
    assert len(texts) == 26 and len(cache) == 40, "twenty clips share six of their captions"
    stored = cache.text(torch.arange(26).numpy())
    for text, tokens in zip(texts, items_of(stored), strict=True):
        alone = conditioner.text([text]).tokens_BLD[0]
        assert len(tokens) == len(alone)
        torch.testing.assert_close(tokens, alone, rtol=2**-10, atol=1e-4)  # float16
    lost = made.cache / "train/text-00001.safetensors"
    whole = lost.read_bytes()
    lost.unlink()
    assert main(made.encode) == 0 and lost.read_bytes() == whole
    report = json.loads((made.cache / "encoding.json").read_text())
    assert list(report["shares"]) == ["read", "mel", "vae", "text", "write"] and report["captions"] == 10
    assert "of the work: read" in capsys.readouterr().out and report["captions_cut"] == 0


def test_captions_that_are_cut_are_counted(made: Made) -> None:
    bundle = Bundle.from_pretrained(made.bundle)
    encoder = CorpusEncoder(bundle, SimpleNamespace(pending=False, loader=None), TOKEN_PARTS)  # type: ignore[arg-type]
    encoder.conditioner.max_tokens = 4
    found = encoder._encode_text(["a", "a calm piano melody and slow organ chords"])
    assert found["lengths"].tolist()[1] == 4
    alone = SimpleNamespace(root_device="cpu", all_gather=lambda own: own, is_global_zero=False)
    report = encoder.finish(alone)  # type: ignore[arg-type]
    assert report["captions_cut"] == 1
    assert "1 captions have more tokens than the text encoder reads" in summary(report | {"captions": 2})


def test_a_teacher_sees_captions_or_the_empty_text_under_its_own_mask(made: Made) -> None:
    batch, stage = made.batch(), made.stage
    conditioner = Bundle.from_pretrained(made.bundle).conditioner()
    draws = torch.rand(2, 4, 1, generator=torch.Generator().manual_seed(4))[1, :, 0]  # the second row drops
    assert 0 < (draws < 0.5).sum() < 4
    given = items_of(stage.condition(batch, torch.Generator().manual_seed(4)))
    empty = conditioner.text([""]).tokens_BLD[0]
    for tokens, dropped, own in zip(given, draws < 0.5, items_of(batch.text_BD), strict=True):
        assert torch.equal(tokens, empty if dropped else own)
    assert (made.bundle / "unet/config.json").is_file() and stage.global_step == 3


def test_a_student_learns_from_the_guided_teacher(made: Made) -> None:
    system, batch = made.system, made.batch()
    now = system.state_dict()
    moved = {name.split(".")[0] for name, value in made.before.items() if not torch.equal(value, now[name])}
    assert moved == {"student", "student_ema_target", "student_ema_slow", "discriminator"}
    assert all(torch.isfinite(value).all() for value in now.values())
    assert system.discriminator.cond_width == system.conditioner.width + 32
    # guidance item by item, without any padding
    z, t = torch.randn(4, 4, 4, 4, generator=torch.Generator().manual_seed(1)), torch.tensor([999, 500, 100, 700])
    with torch.no_grad():
        guided = system.guided_teacher(batch.text_BD)(z, t)
        for n, tokens in enumerate(items_of(batch.text_BD)):
            alone = Condition(tokens[None], torch.ones(1, len(tokens), dtype=torch.bool))
            with_text, without = (system.teacher(z[n : n + 1], t[n : n + 1], cond)
                                  for cond in (alone, system.conditioner.text([""])))
            torch.testing.assert_close(guided[n : n + 1], without + 3.0 * (with_text - without), rtol=1e-3, atol=1e-3)


def test_the_export_makes_the_very_sound_of_the_student(made: Made) -> None:
    student, unet = Pipeline.from_pretrained(made.student), made.system.denoiser("slow").unet
    f, seeds = Consistency(Denoiser(unet, student.schedule, "v_prediction").eval()), sample_seeds(3, 2)
    conditioner = Bundle.from_pretrained(made.bundle).conditioner()
    for n, prompt in enumerate(PROMPTS):
        stepper, own = Stepper(f, student.schedule, [999, 499], Lcm()), seeds[n : n + 1]
        z = stepper.sample(conditioner.text([prompt]), sample_noise(own, (4, 4, 4)), seeded_noise_fn(own, (4, 4, 4)))
        with torch.no_grad():
            expected = student.codec.decode(z)
        torch.testing.assert_close(student(PROMPTS, steps=2, seed=3)[n : n + 1], expected, rtol=1e-3, atol=1e-4)
    index = json.loads((made.student / "model_index.json").read_text())
    assert index["text_encoder"] == ["transformers", "T5EncoderModel"] and index["_class_name"] == "DiffusionPipeline"


def test_the_cards_snippet_samples_it(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, seeds = Pipeline.from_pretrained(made.student), sample_seeds(0, 1)
    latents = ours.latents(ours.conditioner.text(["a calm piano melody"]), seeds, sampler="lcm")
    snippet = (made.student / "README.md").read_text().split("```python\n")[1].split("```")[0]
    assert "Clap" not in snippet
    draws = [sample_noise(seeds, ours.latent_shape, step) for step in (INITIAL, 0, 1, 2)]
    monkeypatch.setattr(scheduling_lcm, "randn_tensor", lambda *_, **__: draws.pop(0))
    monkeypatch.setattr(torch, "randn", lambda *_: draws.pop(0))
    theirs: dict = {}
    exec(snippet.replace("PATH_OF_THIS_FOLDER", str(made.student)), theirs)
    torch.testing.assert_close(theirs["x0"], latents, rtol=1e-4, atol=1e-4)


def test_a_student_that_borrows_its_text_encoder(made: Made) -> None:
    teacher = Bundle.from_pretrained(made.bundle)
    folder = export_student(made.system.denoiser("slow").unet, teacher, made.folder / "small",
                            StudentInfo("v_prediction", 3.0), base="../bundle")
    assert not (folder / "text_encoder").exists()
    assert json.loads((folder / "model_index.json").read_text())["_class_name"] == "DiffusionPipeline"
    prompt = PROMPTS[0]
    assert torch.equal(Pipeline.from_pretrained(folder)(prompt), Pipeline.from_pretrained(made.student)(prompt))


def test_long_pieces_streams_and_commands(made: Made, tmp_path: Path) -> None:
    plan, student = [(0.0, PROMPTS[0]), (1.0, PROMPTS[1])], Pipeline.from_pretrained(made.student)
    piece = student.compose(plan, 2.0, 2, seed=5)
    assert len(piece) == 32000 and torch.isfinite(piece).all() and piece.abs().max() > 0
    assert not torch.allclose(piece, student.compose(PROMPTS[0], 2.0, 2, seed=5), atol=1e-4), "the second text is heard"
    streamed = torch.cat(list(student.stream(plan, 2.0, steps=2, seed=5)))
    torch.testing.assert_close(streamed, piece, rtol=1e-3, atol=1e-4)
    teacher = Pipeline.from_pretrained(made.bundle)
    torch.testing.assert_close(teacher(PROMPTS, steps=2)[1:], teacher.codec.decode(teacher.latents(
        teacher.conditioner.text(PROMPTS[1:]), sample_seeds(0, 2)[1:], 2)), rtol=1e-3, atol=1e-3)
    assert main(["generate", PROMPTS[1], "--model", str(made.student), "--out", str(tmp_path / "a.wav")]) == 0


def test_what_is_evaluated_is_sampled_by_the_same_conditions(made: Made) -> None:
    noise, seeds = sample_noise([1, 2], (4, 4, 4)), [1, 2]
    with torch.no_grad():
        for model in candidates(Comparison(as_distilled(made.system)), {"teacher": [2], "student": [2]}):
            together = model.sample(model.encode(PROMPTS), noise, seeds)
            alone = model.sample(model.encode(PROMPTS[1:]), noise[1:], seeds[1:])
            torch.testing.assert_close(together[1:], alone, rtol=1e-3, atol=1e-3)

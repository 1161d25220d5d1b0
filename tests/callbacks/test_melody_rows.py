"""Rows of a renderer by tokens and angle schedule: what they are told, and that none takes another's features."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import soundfile
import torch
from pytorch_lightning.loggers import CSVLogger
from tiny_bundle import CAPTIONS
from tiny_melody import SAMPLES, build_random_melody
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from musiccm.callbacks.evaluation import Evaluation
from musiccm.config import load_experiment
from musiccm.diffusion import Angle, StudentGuidance, student_grid
from musiccm.errors import MusiccmError
from musiccm.evaluation.candidates import MODELS, clip_seed, initial_noise
from musiccm.evaluation.clip_features import read_about, read_features
from musiccm.models.bundle import Bundle
from musiccm.models.denoiser import Consistency
from musiccm.models.melody.kind import MelodyKind

N, SCALE = 4, 2.0
ROWS = [f"teacher_{tokens}_{schedule}" for tokens in ("lm", "oracle") for schedule in ("uniform", "proposed")]


class Clips(Dataset):
    """Noise, the same every time; those of another seed are other clips under the same captions."""

    def __init__(self, first: int = 0, seed: int = 0) -> None:
        self.first, self.seed = first, seed

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(100 * self.seed + self.first + i)
        sound = torch.randn(SAMPLES, generator=generator) * torch.linspace(0.02, 0.3, SAMPLES)
        return {"waveform_S": sound, "tags_G": torch.zeros(0), "id": f"clip/{self.first + i}",
                "caption": CAPTIONS[i % len(CAPTIONS)], "attributes": {"instrument": ("piano", "organ")[i % 2]},
                "start_s": 0.0}


class Data(pl.LightningDataModule):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.seed = seed

    def waveforms(self, split: str, limit: int | None = None) -> Dataset:
        return Clips({"test": 0, "val": N, "train": 2 * N}[split], self.seed if split == "test" else 0)

    def train_clap_audio(self) -> tuple[list[str], Tensor]:
        return ["t0", "t1"], torch.eye(32)[:2]

    def test_dataloader(self) -> DataLoader:
        return DataLoader([0])


class System(pl.LightningModule):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self.bundle = bundle = Bundle.from_pretrained(path)
        self.codec, self.conditioner = bundle.codec(), bundle.network_conditioner()
        self.schedule = Angle()
        self.teacher = bundle.kind.denoiser(bundle.network, self.schedule, "v_prediction")
        self.grid, self.guidance_scale, self.student_guidance = student_grid(), SCALE, StudentGuidance()

    def consistency(self, which: str) -> Consistency:
        return Consistency(self.teacher)

    def test_step(self, batch: Tensor) -> None:
        return None


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_random_melody(tmp_path_factory.mktemp("melody"))


def run(root: Path, bundle: Path, name: str, clips: int = 0, **options: Any) -> dict[tuple[str, int], dict[str, Any]]:
    evaluation = Evaluation(**{
        "steps": [], "teacher_steps": [], "decoders": ["original"], "guidance_scale": SCALE, "limit": N,
        "batch_size": 3, "progress": False, "panel_labels": ["teacher_oracle_proposed@2"], "n_panels": 1, "draws": 5,
        "more_models": dict.fromkeys(ROWS, [2, 3]), **options})
    pl.Trainer(default_root_dir=root, logger=CSVLogger(str(root), "runs", name), callbacks=[evaluation],
               accelerator="cpu", enable_progress_bar=False, enable_model_summary=False,
               ).test(System(bundle), Data(clips), verbose=False)
    found = json.loads((root / "runs" / name / "results.json").read_text())
    return {(row["model"], row["steps"]): row for row in found["rows"]}


def test_rows_by_tokens_and_schedule_keep_to_themselves(bundle: Path, tmp_path: Path) -> None:
    first = run(tmp_path, bundle, "a")
    assert list(first) == [("floor", 0), *((name, steps) for name in ROWS for steps in (2, 3))]
    for (name, steps), row in first.items():
        if name != "floor":
            schedule, calls = name.rpartition("_")[2], 2 * steps  # guided
            assert row["sampler"] == f"ddim, schedule angle_{schedule}" and row["network_calls"] == calls
            assert row["guidance_scale"] == SCALE and row.get("tokens") == (16 if "_lm_" in name else None)
    assert len({row["fd_tagger"] for row in first.values()}) == len(first), "every row is of clips of its own"

    files = list((tmp_path / "lightning_logs" / ".features").iterdir())
    models = {(key.get("model"), key.get("steps")) for key in (read_about(path)["key"] for path in files)}
    assert len(files) == len(models) and models >= {(name, steps) for name in ROWS for steps in (2, 3)}
    clips = [read_features(path)[0].networks["tagger"].embedding_RE for path in files]
    assert not any(torch.allclose(a, b, atol=1e-6) for i, a in enumerate(clips) for b in clips[:i])

    # the same captions with other real clips: what is told their tokens is made again, what is written is not
    again, others = run(tmp_path, bundle, "b"), run(tmp_path, bundle, "c", clips=1)
    for row in first:
        if row[0] != "floor":
            assert again[row]["from_cache"] and again[row]["fd_tagger"] == pytest.approx(first[row]["fd_tagger"])
            assert others[row].get("from_cache", False) == ("_lm_" in row[0]), row

    # nor do rows of other draws of the tokens
    settings = json.loads((bundle / "musiccm.json").read_text())
    (bundle / "musiccm.json").write_text(json.dumps({**settings, "semantic_tokens": {"temperature": 0.5}}))
    try:
        colder = run(tmp_path, bundle, "d", more_models={"teacher_lm_uniform": [2]})["teacher_lm_uniform", 2]
    finally:
        (bundle / "musiccm.json").write_text(json.dumps(settings))
    assert "from_cache" not in colder and colder["fd_tagger"] != first["teacher_lm_uniform", 2]["fd_tagger"]


def test_oracle_tokens_are_those_of_the_real_clip(bundle: Path, tmp_path: Path) -> None:
    """Two guided steps by hand, with the paper's formulas."""
    run(tmp_path, bundle, "a", more_models={"teacher_oracle_proposed": [2]}, spread=2, spread_noises=2)
    (path,) = (tmp_path / "runs" / "a" / "samples").glob("*.wav")
    system = System(bundle)
    cond = system.conditioner.vectors(system.conditioner.ids(Clips()[0]["waveform_S"][None], 16000))
    null = system.conditioner.null(1)
    z = initial_noise([clip_seed(0, "clip/0")], system.bundle.latent_shape(), "cpu")
    steps = [math.pi / 12 + 2 * math.pi * t / 18 for t in (2, 1)]  # pi / 6T + 2 pi t / (3 T (T + 1)), noisiest first
    assert sum(steps) == pytest.approx(math.pi / 2)
    angle = math.pi / 2
    with torch.no_grad():
        for step in steps:
            with_tokens, without = (system.bundle.network(z, torch.tensor([angle]), told.tokens_BLD, told.mask_BL)[0]
                                    for told in (cond, null))
            v = without + SCALE * (with_tokens - without)
            z, angle = math.cos(step) * z - math.sin(step) * v, angle - step
        expected = system.codec.decode(z)[0]
    made = torch.from_numpy(soundfile.read(path)[0]).float()
    torch.testing.assert_close(made, expected.clamp(-1, 1), rtol=0, atol=2e-3)
    assert expected.abs().max() > 0.02


def test_a_model_that_is_told_captions_has_no_such_rows(bundle: Path, tmp_path: Path) -> None:
    system = System(bundle)
    system.conditioner = system.bundle.conditioner()  # CLAP's
    evaluation = Evaluation(more_models={"teacher_oracle_uniform": [2]}, progress=False)
    with pytest.raises(MusiccmError, match="teacher_oracle_uniform: expected a model that renders semantic tokens"):
        evaluation.setup(pl.Trainer(default_root_dir=tmp_path, logger=False), system, "test")


def test_the_experiment_asks_for_each_row_once() -> None:
    (evaluation,) = load_experiment("melody/rows")["trainer"]["callbacks"]
    asked = evaluation["init_args"]
    assert asked["more_models"] == dict.fromkeys(ROWS, [20, 10, 5]) and set(ROWS) <= set(MODELS)
    assert asked["guidance_scale"] == MelodyKind.guidance_scale

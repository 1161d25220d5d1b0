"""The callbacks on a whole bundle with random weights, through a real Trainer."""

from __future__ import annotations

import io
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import soundfile
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from tiny_bundle import CAPTIONS, build_random_bundle
from tiny_system import SAMPLES, Clips, Data, N, System
from torch.utils.data import DataLoader, Dataset

from musiccm.callbacks.evaluation import Evaluation
from musiccm.callbacks.panels import Panels
from musiccm.cli import main
from musiccm.commands._features import pack_features
from musiccm.data.waveforms import collate_waveforms
from musiccm.embedders import Embeddings
from musiccm.errors import MusiccmError
from musiccm.evaluation.clip_features import ClipFeatures, read_about, read_features, write_features
from musiccm.evaluation.evaluator import Evaluator
from musiccm.evaluation.feature_cache import decoder_hashes, teacher_hash
from musiccm.evaluation.text_audio import measuring_clap
from musiccm.models.bundle import Bundle
from musiccm.systems.lcm import LCM


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_random_bundle(tmp_path_factory.mktemp("bundle"), frames=8, decoder=True)


def trainer(root: Path, callbacks: list[pl.Callback], checkpoints: bool = False, **kwargs: Any) -> pl.Trainer:
    return pl.Trainer(
        default_root_dir=root, logger=TensorBoardLogger(str(root / "lightning_logs"), name="tiny"), callbacks=callbacks,
        accelerator="cpu", enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=checkpoints,
        **kwargs,
    )


def test_test_writes_the_table_once_computed_and_once_from_the_cache(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = []
    for version in range(2):
        evaluation = Evaluation(
            steps=[1, 2], teacher_steps=[2, 1], more_models={"teacher_unguided": [2]}, limit=5, batch_size=3,
            n_panels=2, progress=False,
            panel_labels=["teacher@2", "student@1"],
        )
        trainer(tmp_path, [evaluation]).test(System(bundle), Data(), verbose=False)
        folder = tmp_path / "lightning_logs" / "tiny" / f"version_{version}"
        found.append(json.loads((folder / "results.json").read_text()))
        assert {path.name for path in folder.iterdir()} >= {
            "results.json", "results.txt", "nearest_training_clips.json", "samples"
        }
        assert "student" in capsys.readouterr().out
    first, second = found
    read = Bundle.from_pretrained(bundle)
    assert first["teacher"] == {"hash": teacher_hash(read), "decoders": decoder_hashes(read)}
    assert (first["experiment"], first["n"], first["floor"]) == ("tiny", 5, "other real clips")
    models = [("floor", 0, None, None), ("teacher", 1, 2, 3.0), ("teacher", 2, 4, 3.0), ("teacher_unguided", 2, 2, 1.0),
              ("student", 1, 1, None), ("student", 2, 2, None)]
    rows = {(row["model"], row["steps"], row["decoder"]): row for row in first["rows"]}
    for decoder in ("fast", "original"):
        own = [row for row in first["rows"] if row["decoder"] == decoder]
        assert [(r["model"], r["steps"], r.get("network_calls"), r.get("guidance_scale")) for r in own] == models
    assert rows["student", 2, "fast"]["fd_tagger"] != rows["student", 2, "original"]["fd_tagger"]
    for (model, _, decoder), row in rows.items():
        assert math.isfinite(row["fd_tagger"]) and row["fd_tagger"] > 0
        assert row["floor_fd_tagger"] == rows["floor", 0, decoder]["fd_tagger"]
        if model == "floor":
            assert row["excess_fd_tagger"] == 0 and "latency_s" not in row and "acc_instrument" not in row
            continue
        assert row["excess_fd_tagger"] == pytest.approx(row["fd_tagger"] - row["floor_fd_tagger"])
        assert 0 <= row["acc_instrument"] <= 1 and "acc_drums" not in row
        assert row["latency_s"] == pytest.approx(
            row["latency_text_s"] + row["latency_sampler_s"] + row["latency_decode_s"], rel=0.5
        )
    assert -1 <= first["references"]["test_set_ta"] <= first["references"]["retrieval_max_ta"] + 2
    assert first["references"]["n_fd_tagger_real"] == 5 and first["references"]["fd_tagger_real"] > 0
    assert first["references"]["fd_tagger_real"] == pytest.approx(second["references"]["fd_tagger_real"], rel=1e-6)
    assert "fd_tagger_real" in (folder / "results.txt").read_text()
    for old, new in zip(first["rows"], second["rows"], strict=True):
        teacher = new["model"].startswith("teacher")
        assert (new.get("from_cache", False), new.get("features_from")) == (teacher, "cache" if teacher else None)
        assert new["fd_tagger"] == pytest.approx(old["fd_tagger"], rel=1e-6)
        if teacher:
            assert new["network_calls"] == old["network_calls"]
            assert new["latency_s"] > 0 and new["latency_s"] != old["latency_s"], "a time of another run"
            assert (old["latency_batches"], new["latency_batches"]) == (2, 1)
    kept = [read_about(path) for path in (tmp_path / "lightning_logs" / ".features").iterdir()]
    assert len(kept) == 6 and {entry["key"]["decoder"] for entry in kept} == {"fast", "original"}
    samples = sorted(path.name for path in (folder / "samples").glob("*.wav"))
    assert samples == [f"clip_{i}_{model}.wav" for i in (0, 1) for model in ("student_1", "teacher_2")]
    audio = [soundfile.read(folder.parent / f"version_{v}" / "samples" / samples[0])[0] for v in (0, 1)]
    assert audio[0].shape == (SAMPLES,) and abs(audio[0] - audio[1]).max() < 1e-3
    assert (folder / "samples" / "clip_0.png").stat().st_size > 1000


def test_validation_logs_all_figures_of_each_step_count(bundle: Path, tmp_path: Path) -> None:
    run = trainer(tmp_path, [Evaluation(val_steps=[1, 2], val_limit=4, batch_size=4, kad=["tagger"])])
    run.validate(System(bundle), Data(), verbose=False)
    found = {key: float(value) for key, value in run.callback_metrics.items()}
    names = ("fd_tagger", "kad_tagger", "kl_tagger", "kl_tagger_exact", "ta_similarity", "sim_aa_90", "sim_aa_95",
             "acc_instrument", "latency_s", "network_calls")
    assert {f"val/{name}_{steps}" for name in names for steps in (1, 2)} <= set(found)
    assert all(math.isfinite(value) for value in found.values())
    assert (found["val/n_1"], found["val/n_2"], found["val/network_calls_2"]) == (4, 4, 2)
    assert "val/is_tagger_mean_1" not in found  # four clips say nothing over ten splits


def test_a_checkpoint_keeps_the_best_of_a_monitored_figure(bundle: Path, tmp_path: Path) -> None:
    saver = ModelCheckpoint(
        dirpath=tmp_path / "best", filename="{step}", monitor="val/fd_tagger_1", save_top_k=-1,
        auto_insert_metric_name=False,
    )
    watch = Evaluation(val_steps=[1], val_teacher_steps=[2], val_limit=4, batch_size=4)
    run = trainer(tmp_path, [watch, saver], checkpoints=True, max_steps=2, num_sanity_val_steps=0)
    run.fit(System(bundle), Data())
    assert sorted(path.name for path in (tmp_path / "best").iterdir()) == ["1.ckpt", "2.ckpt"]
    # The student does not change here, and the same clips and noise give the same figure.
    assert len({float(score) for score in saver.best_k_models.values()}) == 1
    assert saver.best_model_score == run.callback_metrics["val/fd_tagger_1"] > 0
    # Guided by 3, the teacher is another model than the student of its own weights; its row was computed once.
    first = float(run.callback_metrics["val/fd_tagger_teacher_2"])
    assert math.isfinite(first) and first != float(run.callback_metrics["val/fd_tagger_1"])
    (kept,) = (tmp_path / "lightning_logs" / ".features").iterdir()
    features, _ = read_features(kept)
    assert len(features) == 4
    moved = Embeddings(features.networks["tagger"].embedding_RE + 1.0, [1] * 4, features.networks["tagger"].logits_BG)
    other = ClipFeatures(features.ids, {"tagger": moved}, features.clap_ND)
    write_features(kept, other, [CAPTIONS[i % len(CAPTIONS)] for i in range(4)], read_about(kept))
    again = trainer(tmp_path, [Evaluation(val_steps=[1], val_teacher_steps=[2], val_limit=4, batch_size=4)])
    again.validate(System(bundle), Data(), verbose=False)
    assert abs(float(again.callback_metrics["val/fd_tagger_teacher_2"]) - first) > 1, "taken from the file"
    more = trainer(tmp_path, [Evaluation(val_steps=[1], val_teacher_steps=[2], val_limit=5, batch_size=4)])
    more.validate(System(bundle), Data(), verbose=False)
    assert float(more.callback_metrics["val/fd_tagger_teacher_2"]) < first + 1, "of clips that were not kept"


def test_a_test_reads_no_more_clips_than_it_scores(bundle: Path, tmp_path: Path) -> None:
    """The loop takes one batch of the loader, and the callback reads its three clips itself."""
    read: list[int] = []

    class Counted(Clips):
        def __getitem__(self, i: int) -> dict[str, Any]:
            read.append(i)
            return super().__getitem__(i)

    class Long(Data):
        def waveforms(self, split: str, limit: int | None = None) -> Dataset:
            return Counted() if split == "test" else super().waveforms(split, limit)

        def test_dataloader(self) -> DataLoader:
            return DataLoader(Counted(), batch_size=2, collate_fn=collate_waveforms)

    evaluation = Evaluation(steps=[1], teacher_steps=[], decoders=["fast"], limit=3, batch_size=3, n_panels=0,
                            progress=False)
    trainer(tmp_path, [evaluation]).test(LCM(str(bundle)), Long(), verbose=False)
    assert sorted(read) == [0, 0, 1, 1, 2]
    assert json.loads((tmp_path / "lightning_logs/tiny/version_0/results.json").read_text())["n"] == 3


def test_captions_are_embedded_once_by_what_measures(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the similarities and for whether real clips are told by their captions (`own_captions`)."""
    asked: list[str] = []

    def counting(*arguments: Any) -> Any:
        found = measuring_clap(*arguments)
        assert found is not None

        def text(captions: list[str]) -> torch.Tensor:
            asked.extend(captions)
            return found.text(captions)

        return replace(found, text=text)

    class Nine(Clips):
        def __len__(self) -> int:
            return 9

        def __getitem__(self, i: int) -> dict[str, Any]:
            return super().__getitem__(i) | {"caption": f"piece {i}"}

    class NineClips(Data):
        def waveforms(self, split: str, limit: int | None = None) -> Dataset:
            return Nine() if split == "test" else super().waveforms(split, limit)

    monkeypatch.setattr("musiccm.callbacks.evaluation.measuring_clap", counting)
    evaluation = Evaluation(steps=[1], teacher_steps=[2], decoders=["fast"], limit=9, batch_size=4, n_panels=0,
                            progress=False)
    trainer(tmp_path, [evaluation]).test(System(bundle), NineClips(), verbose=False)
    assert asked == [f"piece {i}" for i in range(9)]
    found = json.loads((tmp_path / "lightning_logs/tiny/version_0/results.json").read_text())["own_captions"]
    assert found["n"] == 9 and 0 <= found["low"] <= found["share"] <= found["high"] <= 1


class WithRenderings(Data):
    """Has other renderings of the test clips, under their ids and captions."""

    def other_renderings(self, split: str, limit: int | None = None, number: int = 1) -> Dataset:
        clips = Clips()

        class Renderings(Dataset):
            key = {"rendering": number}

            def __len__(self) -> int:
                return N

            def __getitem__(self, i: int) -> dict[str, Any]:
                noise = 0.1 * torch.randn(SAMPLES, generator=torch.Generator().manual_seed(100 * number + i))
                return clips[i] | {"waveform_S": noise}

        return Renderings()


def test_features_come_with_a_bundle(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = tmp_path / "own"
    shutil.copytree(bundle, own)

    def results(folder: str, **options: Any) -> dict[tuple, dict[str, Any]]:
        evaluation = Evaluation(**{"steps": [1], "teacher_steps": [2], "limit": 6, "batch_size": 4, "n_panels": 0,
                                   "spread": 3, "spread_noises": 2, "progress": False, **options})
        trainer(tmp_path / folder, [evaluation]).test(System(own), WithRenderings(), verbose=False)
        found = json.loads((tmp_path / folder / "lightning_logs/tiny/version_0/results.json").read_text())
        assert found["floor"] == "other renderings of the same captions" and "fd_tagger_real" not in found["references"]
        return {(row["model"], row["decoder"]): row for row in found["rows"]}

    first = results("first")
    assert first["floor", "fast"]["kl_tagger"] is not None, "it answers the captions"
    kept = tmp_path / "first" / "lightning_logs" / ".features"
    assert main(["pack", "features", "--from", str(kept), "--to", str(own), "--rows", "teacher@2", "floor@0"]) == 0
    said = capsys.readouterr().out
    assert all(text in said for text in ("teacher@2 by fast, n = 9", "teacher@2 by original", "floor@0 by original"))
    second = results("second", cache_dir=None)
    for place, row in second.items():
        ours = place[0] != "student"
        assert row.get("features_from") == ("bundle" if ours else None)
        for key in ("fd_tagger", "excess_fd_tagger", "ta_similarity", "spread_tagger"):
            assert row[key] == pytest.approx(first[place][key], rel=5e-3, abs=1e-4), (place, key)  # in half precision
    assert second["teacher", "fast"]["latency_s"] > 0, "a time is of the run that prints it"
    # fewer clips than were packed, and another seed of the noise
    assert results("fewer", cache_dir=None, limit=5)["teacher", "fast"]["features_from"] == "bundle"
    assert "features_from" not in results("other", cache_dir=None, seed=1)["teacher", "fast"]
    with pytest.raises(MusiccmError, match="no features of .* for teacher@50"):
        pack_features(["--from", str(kept), "--to", str(own), "--rows", "teacher@50"])
    with pytest.raises(MusiccmError, match="--n must be at least 1"):
        pack_features(["--from", str(kept), "--to", str(own), "--n", "0"])


def test_a_time_budget_takes_fewer_clips_and_says_so(
    bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Evaluator, "pace_s", lambda self, candidate: 0.5 * candidate.steps)
    run = trainer(tmp_path, [Evaluation(val_steps=[1, 2], val_limit=6, batch_size=4, time_budget_s=5.0)])
    run.validate(System(bundle), Data(), verbose=False)
    assert [float(run.callback_metrics[f"val/n_{steps}"]) for steps in (1, 2)] == [3, 3]
    assert float(run.callback_metrics["val/n_reference_1"]) == 6
    assert "at 1.5 s a clip, 5 s allow 3 of 6 clips" in caplog.text
    with pytest.raises(MusiccmError, match="time_budget_s"):
        Evaluation(time_budget_s=0.0)


def test_pace_is_that_of_a_clip_with_all_that_is_done_to_it(bundle: Path, tmp_path: Path) -> None:
    watch = Evaluation(val_steps=[1], val_limit=6, batch_size=2, time_budget_s=1e-6)
    run = trainer(tmp_path, [watch])
    run.validate(System(bundle), Data(), verbose=False)
    assert float(run.callback_metrics["val/n_1"]) == 2  # the fewest


def test_several_networks_each_under_its_own_name(bundle: Path, tmp_path: Path) -> None:
    evaluation = Evaluation(
        steps=[1], teacher_steps=[], decoders=["fast"], limit=5, batch_size=5, n_panels=0, progress=False,
        embedders=["clap", "tagger"], kad=["clap"], metrics={"mauve": ["tagger"], "coverage": ["tagger"]},
    )
    trainer(tmp_path, [evaluation]).test(System(bundle), Data(), verbose=False)
    folder = tmp_path / "lightning_logs" / "tiny" / "version_0"
    found = json.loads((folder / "results.json").read_text())
    assert set(found["embedders"]) == {"bundle_clap", "tagger"}
    row = next(row for row in found["rows"] if row["model"] == "student")
    assert row["fd_tagger"] != row["fd_bundle_clap"] and "kl_bundle_clap" not in row and row["kl_tagger"] is not None
    assert found["references"]["fd_bundle_clap_real"] > 0
    assert row["kad_tagger"] is not None and {"kad_bundle_clap_real", "mauve_tagger_real"} <= set(found["references"])
    text = (folder / "results.txt").read_text()
    assert row["kad_bundle_clap"] is not None and "KAD ↓" in text and "kad_tagger ↓" in text
    assert 0 < row["mauve_tagger"] <= 1 and f"{row['mauve_tagger']:.3f}" in text and "mauve_tagger ↑" in text
    # in halves of other clips, five are too few
    assert row["coverage_tagger"] is None and all(
        f"{name}_tagger ↑" in text for name in ("coverage", "density", "precision", "recall"))
    assert 0 < text.index("fd_bundle_clap ↓") < text.index("fd_tagger ↓")


def test_networks_that_cannot_be_had_stop_the_run_before_its_first_step(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MUSICCM_WEIGHTS", raising=False)
    monkeypatch.chdir(tmp_path)
    for arguments, message in (
        ({"embedders": ["pann"]}, "pann"), ({"embedders": ["nobody"]}, "nobody"),
        ({"weights": {"pann": "x.pth"}}, "evaluation.weights: expected names among embedders"),
        ({"val_steps": [1, 64]}, "evaluation.val_steps: expected at most 50, .* found 64"),
        ({"val_teacher_steps": [1001]}, "evaluation.val_teacher_steps: expected at most 1000"),
    ):
        run = trainer(tmp_path, [Evaluation(**arguments)], max_steps=1)
        with pytest.raises(MusiccmError, match=message):
            run.fit(System(bundle), Data())
        assert run.global_step == 0
    with pytest.raises(MusiccmError, match="at least one name"):
        Evaluation(embedders=[])
    for gamma in (-0.1, 1.5, math.nan):
        with pytest.raises(MusiccmError, match=r"evaluation.gamma: expected a number in \[0, 1\]"):
            Evaluation(sampler={"name": "lcm", "gamma": gamma})


def test_figures_asked_of_nobody_are_refused(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(MusiccmError, match="found .'pann'"):
        trainer(tmp_path, [Evaluation(val_limit=4, kad=["pann"])]).validate(System(bundle), Data(), verbose=False)
    with pytest.raises(MusiccmError, match=r"evaluation.metrics.mauve: expected names among .* found ..pann"):
        Evaluation(metrics={"mauve": ["pann"]})
    with pytest.raises(MusiccmError, match=r"evaluation.metrics: expected names among .*mauve.*, found ..fd"):
        Evaluation(metrics={"fd": ["tagger"]})


def test_numbers_that_cannot_be_are_refused_by_their_option() -> None:
    for options, says in (({"spread": 1}, "evaluation.spread: expected 0 or at least 2 captions"),
                          ({"spread": -1}, "evaluation.spread: expected at least 0, found -1"),
                          ({"draws": 1}, "evaluation.draws: expected at least 2, found 1"),
                          ({"decoders": ["slow"]}, "evaluation.decoders: expected names among fast, original"),
                          ({"decoders": []}, "evaluation.decoders: .* found none")):
        with pytest.raises(MusiccmError, match=says):
            Evaluation(**options)


def test_no_validation_where_none_is_asked_for(bundle: Path, tmp_path: Path) -> None:
    silent = trainer(tmp_path, [Evaluation(every_n_validations=0)])
    silent.validate(System(bundle), Data(), verbose=False)
    assert not silent.callback_metrics


def test_a_packaged_student_that_cannot_be_scored_stops_the_run_before_its_first_step(
    bundle: Path, tmp_path: Path
) -> None:
    system = System(bundle)
    expected = {"nowhere/at/all": "packaged_student: .*nowhere/at/all", str(bundle): "found a teacher"}
    for student, message in expected.items():
        run = trainer(tmp_path, [Evaluation(packaged_student=student)], max_steps=1)
        with pytest.raises(MusiccmError, match=message):
            run.fit(system, Data())
        assert run.global_step == 0
        with pytest.raises(MusiccmError, match=message):
            trainer(tmp_path, [Evaluation(packaged_student=student)]).test(system, Data(), verbose=False)


def test_panels_show_the_teacher_once_and_the_student_as_it_goes(bundle: Path, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    panels = Panels(prompts=CAPTIONS[:2], steps=[1], teacher_steps=2, every_n_steps=2)
    trainer(tmp_path, [panels], max_steps=5, max_epochs=9, limit_val_batches=0).fit(System(bundle), Data())
    events = accumulator.EventAccumulator(str(tmp_path / "lightning_logs" / "tiny" / "version_0"))
    events.Reload()
    assert sorted(events.Tags()["audio"]) == [
        f"{model}/audio_{i}" for model in ("student@1", "teacher@2") for i in (0, 1)
    ]
    assert [event.step for event in events.Audio("teacher@2/audio_0")] == [0]
    assert [event.step for event in events.Images("student@1/mels")] == [0, 2, 4, 5]
    for i, prompt in enumerate(CAPTIONS[:2]):
        assert events.SummaryMetadata(f"student@1/audio_{i}").display_name == prompt, "what the card is headed with"
    waveform, rate = soundfile.read(io.BytesIO(events.Audio("teacher@2/audio_1")[0].encoded_audio_string))
    assert rate == 16000 and len(waveform) == SAMPLES and abs(waveform).max() > 0


def test_panels_are_files_where_no_tensorboard_is(bundle: Path, tmp_path: Path, caplog) -> None:
    panels = Panels(prompts=CAPTIONS[:2], steps=[1], teacher_steps=2, every_n_steps=2)
    csv = CSVLogger(str(tmp_path), name="runs", version="version_0")
    fit = pl.Trainer(accelerator="cpu", devices=1, logger=csv, callbacks=[panels], max_steps=2, limit_val_batches=0,
                     enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    fit.fit(System(bundle), Data())
    folder = tmp_path / "runs" / "version_0" / "panels"
    made = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))
    student = ["student_1.png", "student_1_0.wav", "student_1_1.wav"]
    teacher = ["teacher_2.png", "teacher_2_0.wav", "teacher_2_1.wav"]
    assert made == [f"step_0/{name}" for name in student + teacher] + [f"step_2/{name}" for name in student]
    assert sum(str(folder) in message for message in caplog.messages) == 1, "said once"

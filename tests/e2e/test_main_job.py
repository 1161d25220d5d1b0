"""From fit to a waveform in a user's hands, by the commands that users type."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from musiccm import cli
from musiccm.evaluation.candidates import clip_seed
from musiccm.pipeline import Pipeline

from .conftest import CLIP_SAMPLES, TEST_TRACKS, World, checkpoints, evaluation

pytestmark = pytest.mark.e2e

FIGURES = {"fd_tagger", "is_tagger_mean", "is_tagger_std", "kl_tagger", "ta_similarity", "sim_aa_90", "sim_aa_95",
           "latency_s"}
PROMPT = "a calm piano melody over soft strings, 80 bpm"
PANELS = {"class_path": "musiccm.callbacks.panels.Panels",
          "init_args": {"prompts": [PROMPT], "steps": [1], "teacher_steps": 2, "every_n_steps": 4}}


@pytest.fixture(scope="module")
def run(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `fit` has run on main.yaml."""
    folder = tmp_path_factory.mktemp("run")
    path = world.experiment(folder, "main", [checkpoints(2), PANELS, evaluation(packaged_student=None)], max_steps=6)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert cli.main(["fit", "--config", str(path)]) == 0
    return folder


@pytest.fixture(scope="module")
def version(run: Path) -> Path:
    return run / "lightning_logs" / "main" / "version_0"


@pytest.fixture(scope="module")
def student(run: Path, version: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("export") / "student"
    assert cli.main(["export", "--checkpoint", str(version / "checkpoints" / "last.ckpt"), "--out", str(out)]) == 0
    return out


def scalars(version: Path) -> dict[str, list[float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(version))
    events.Reload()
    assert {"teacher@2/audio_0", "student@1/audio_0"} <= set(events.Tags()["audio"])
    assert {"teacher@2/mels", "student@1/mels"} <= set(events.Tags()["images"])
    return {name: [event.value for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_fit_learns_and_logs_both_players(version: Path, world: World) -> None:
    logged = scalars(version)
    # A value that a step does not log stands until the epoch ends, hence the sets.
    assert len(set(logged["train/loss_warm_start"])) == 2 and len(set(logged["train/loss_g"])) == 3
    assert len(logged["train/grad_norm_student"]) == 6 and min(logged["train/grad_norm_student"]) > 0
    assert min(logged["train/grad_norm_discriminator"]) > 0
    assert all(math.isfinite(value) for values in logged.values() for value in values)
    assert (version / "config.yaml").read_text().startswith("# git ")
    saved = torch.load(version / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 6 and len(saved["optimizer_states"]) == 2
    assert not [name for name in saved["state_dict"] if name.startswith("frozen.")]
    from musiccm.models.bundle import Bundle

    teacher = Bundle.from_pretrained(world.bundle).unet.state_dict()
    moved = [name for name, weight in teacher.items()
             if not torch.equal(weight, saved["state_dict"][f"student_ema_slow.module.{name}"])]
    assert len(moved) > 0.9 * len(teacher), "the exported average must have left the teacher's weights"


def test_the_table_and_that_users_hear_what_it_measures(
    run: Path, version: Path, student: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(run)
    # The packaged student is this run's own export: its rows must be this run's.
    text = (run / "main.yaml").read_text()
    (run / "with_packaged.yaml").write_text(text.replace("packaged_student: null", f"packaged_student: {student}"))
    assert cli.main(["test", "--config", "with_packaged.yaml", "--ckpt_path", "newest", "--n", "3"]) == 0
    assert json.loads((version / "results.json").read_text())["n"] == 3
    assert cli.main(["test", "--config", "with_packaged.yaml", "--ckpt_path", "newest"]) == 0
    printed = capsys.readouterr().out
    result = json.loads((version / "results.json").read_text())
    assert (result["schema"], result["experiment"], result["n"]) == (1, "main", TEST_TRACKS)
    assert set(result["references"]) >= {"test_set_ta", "retrieval_max_ta"}
    assert result["references"]["retrieval_max_ta"] >= result["references"]["test_set_ta"] - 1e-6
    assert result["floor"] == "other renderings of the same captions"
    floor, *others = result["rows"]
    assert (floor["model"], floor["steps"], floor["decoder"], floor["n"]) == ("floor", 0, "original", TEST_TRACKS)
    assert FIGURES - {"latency_s"} <= set(floor) and floor["kl_tagger"] is not None, "it answers the same captions"
    rows = {(row["model"], row["steps"]): row for row in others}
    assert set(rows) == {(model, steps) for model in ("teacher", "student", "student_packaged") for steps in (1, 2)}
    for (model, steps), row in rows.items():
        assert FIGURES <= set(row) and row["n"] == TEST_TRACKS and row["decoder"] == "original"
        assert row["excess_fd_tagger"] == pytest.approx(row["fd_tagger"] - floor["fd_tagger"])
        assert row["guidance_scale"] == (3.0 if model == "teacher" else None)
        assert row["network_calls"] == steps * (2 if model == "teacher" else 1)
        assert row["fd_tagger"] > 0 and row["latency_s"] > 0 and -1 <= row["ta_similarity"] <= 1
        assert 0 <= row["sim_aa_95"] <= row["sim_aa_90"] <= 1
        assert f"{row['fd_tagger']:.2f}" in printed
    for steps in (1, 2):
        ours, exported = rows["student", steps], rows["student_packaged", steps]
        for figure in ("fd_tagger", "kl_tagger", "ta_similarity", "sim_aa_90"):
            assert exported[figure] == pytest.approx(ours[figure], rel=1e-3, abs=1e-6)
    assert rows["teacher", 1]["fd_tagger"] != rows["student", 1]["fd_tagger"]
    assert (version / "results.txt").read_text() in printed
    for picture in ("samples/test_000000.png", "samples/test_000001.png"):
        assert (version / picture).read_bytes().startswith(b"\x89PNG")
    nearest = json.loads((version / "nearest_training_clips.json").read_text())
    assert set(nearest) == {"floor/original"} | {f"{model}@{steps}/original" for model, steps in rows}

    # The sample beside the table is what the exported model makes of the same noise.
    prompts = json.loads((version / "samples" / "prompts.json").read_text())
    pipeline = Pipeline.from_pretrained(student)
    for clip_id, prompt in prompts.items():
        z = pipeline.latents(pipeline.conditioner.text([prompt]), [clip_seed(0, clip_id)], steps=2)
        with torch.no_grad():
            expected = pipeline.codec.decode(z)[0].clamp(-1, 1).numpy()
        heard, rate = soundfile.read(version / "samples" / f"{clip_id}_student_2.wav", dtype="float32")
        assert rate == 16000 and heard.shape == (CLIP_SAMPLES,)
        np.testing.assert_allclose(heard, expected, atol=1e-3)
        assert np.abs(heard).max() > 1e-3


def test_generate_makes_the_same_music_in_another_process(
    student: Path, here: Path, start: Callable[..., Any]
) -> None:
    command = ["generate", PROMPT, "slow organ chords", "--model", str(student), "--steps", "2", "--level", "none",
               "--seed", "7"]
    other = start([*command, "--out", "there.wav"], here, OMP_NUM_THREADS=str(torch.get_num_threads()))
    assert cli.main([*command, "--out", "a.wav"]) == 0
    assert cli.main([*command[:-1], "8", "--out", "b.flac"]) == 0
    printed, _ = other.communicate(timeout=600)
    assert other.returncode == 0, printed
    first, again = ([soundfile.read(f"{stem}_{i}.wav", dtype="int16")[0] for i in (1, 2)] for stem in ("a", "there"))
    for mine, theirs in zip(first, again, strict=True):
        assert np.array_equal(mine, theirs) and mine.shape == (CLIP_SAMPLES,)
    assert not np.array_equal(first[0], first[1])
    assert not np.array_equal(first[0], soundfile.read("b_1.flac", dtype="int16")[0])

    # Reloaded through the library, with the prompt alone: a clip does not depend on what else is asked for.
    waveforms = Pipeline.from_pretrained(student)([PROMPT], steps=2, seed=7)
    assert waveforms.shape == (1, CLIP_SAMPLES)
    np.testing.assert_allclose(first[0] / 32768, waveforms[0].clamp(-1, 1).numpy(), atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["music", "--guidance-scale", "3"], "guid"),
        (["music", "--steps", "51"], "51"),
        (["music", "--steps", "0"], "0"),
        (["  "], "prompt"),
        (["music", "--out", "tune.mid"], "tune.mid"),
        (["music", "--model", "no-such-bundle"], "no-such-bundle"),
    ],
)
def test_generate_refuses_in_one_message(
    student: Path, here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert cli.main(["generate", "--model", str(student), *arguments]) == 2
    shown = capsys.readouterr().err
    assert said in shown.lower() and "Traceback" not in shown
    assert list(here.iterdir()) == []


def test_the_same_seed_gives_the_same_weights(
    world: World, version: Path, run: Path, start: Callable[..., Any]
) -> None:
    """A second run in a process of its own, without panels and evaluations: these must not touch what is learned."""
    path = world.experiment(run, "again", [checkpoints(2)], max_steps=6)
    process = start(["fit", "--config", str(path)], run, OMP_NUM_THREADS=str(torch.get_num_threads()))
    printed, _ = process.communicate(timeout=600)
    assert process.returncode == 0, printed
    first, second = (
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for folder in (version, run / "lightning_logs" / "again" / "version_0")
    )
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []

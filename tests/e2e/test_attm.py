"""The ATTM benchmark by the commands of docs/attm.md, on files in the true layout and small networks of true names."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
import yaml
from laion_clap import random_clap, write_original
from original_files import small_files
from small_corpus import sound
from small_jamendo import path_of, write_jamendo
from tiny_bundle import CAPTIONS

from musiccm import cli
from musiccm.embedders import clap
from musiccm.models.bundle import Bundle
from musiccm.models.bundle.tokenizer import train_tokenizer

from .conftest import CLIP_SAMPLES, REPOSITORY, checkpoints

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

SPLITS = {"train": 16, "validation": 4, "test": 4}


def run(*arguments: str) -> None:
    assert cli.main(list(arguments)) == 0, arguments


def commands_of_the_page() -> list[str]:
    """Every `musiccm` command of docs/attm.md, in its order, lines that are continued joined."""
    text = (REPOSITORY / "docs/attm.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```\n(.*?)^```$", text, flags=re.M | re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [" ".join(re.sub(r"^torchrun .* -m ", "", line).split()) for line in lines if "musiccm " in line]


def smaller(here: Path, name: str, frames: int, **model: Any) -> str:
    """The experiment as it is, with small networks and two steps."""
    trainer: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "strategy": "auto", "precision": "32-true",
                               "max_steps": 2, "log_every_n_steps": 1, "val_check_interval": 100,
                               "enable_progress_bar": False}
    callbacks = [checkpoints(1)]
    if name != "attm_teacher":
        callbacks.append({"class_path": "musiccm.callbacks.evaluation.Evaluation", "init_args": {
            "guidance_scale": 3.0, "steps": [1, 2], "teacher_steps": [2], "limit": 4, "embedders": ["clap_music"],
            "weights": {"clap_music": "weights/clap.pt"}, "text_audio": "weights/clap.pt", "batch_size": 4,
            "n_panels": 1}})
    content = {
        "base": str(REPOSITORY / "experiments" / f"{name}.yaml"), "experiment": name,
        "trainer": {**trainer, "callbacks": callbacks}, "model": {"init_args": model},
        "data": {"init_args": {"clip_samples": CLIP_SAMPLES, "windows_per_track": 1, "batch_size": 4,
                               "eval_batch_size": 4, "num_workers": 0, "val_clips": 4}},
    }
    (here / f"{name}.yaml").write_text(yaml.safe_dump(content))
    return f"{name}.yaml"


def write_downloads(here: Path) -> None:
    """What a lab downloads: tables, stems, captions, checkpoints, Song Describer, the challenge's prompts."""
    numbers = {100 + n: split for n, split in enumerate(s for s, count in SPLITS.items() for _ in range(count))}
    tracks = {number: (split, ["genre---ambient"]) for number, split in numbers.items()}
    write_jamendo(here / "repository", audio=False, more=tracks)
    (here / "data").mkdir()
    (here / "repository").rename(here / "data/mtg-jamendo-dataset")
    captions = []
    for number in numbers:
        stem = here / "data/mtg-jamendo" / path_of(number, "_instrumental")
        stem.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(stem, sound(number, 1.6), 16000)
        captions.append({"path": path_of(number), "caption": f"{CAPTIONS[number % len(CAPTIONS)]}, number {number}"})
    (here / "data/mtg-jamendo-dataset/data/jamendo_qwen.json").write_text(json.dumps(captions))
    (here / "weights").mkdir()
    torch.save({"state_dict": write_original(random_clap())}, here / "weights/clap.pt")
    train_tokenizer(CAPTIONS, vocab_size=300).save_pretrained(here / "weights/roberta-base")
    describer = [["caption_id", "track_id", "caption", "is_valid_subset", "familiarity", "artist_id", "album_id",
                  "path", "duration"]]
    for number in range(4):
        describer.append([str(number), str(900 + number), f"a tune, number {number}", "True" if number else "", "0",
                          "1", "2", path_of(900 + number), "120.0"])
        audio = here / "data/song-describer/audio" / path_of(900 + number, ".2min")
        audio.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(audio, sound(900 + number, 2.0), 16000)
    with (here / "data/song-describer/song_describer.csv").open("w", newline="") as file:
        csv.writer(file).writerows(describer)
    (here / "data/attm-prompts.csv").write_text("id,prompt\n0,a calm tune\n1,a fast tune\n2,drums\n")


def test_every_command_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MUSICCM_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setattr(clap, "MUSIC_CLAP", "channels 16, depths 2 1, embeddings 24")
    write_downloads(tmp_path)
    frames = CLIP_SAMPLES // 160
    files = small_files(tmp_path / "files", paper=False)
    done: list[str] = []

    def as_written(start: str, *changes: tuple[str, str], more: tuple[str, ...] = ()) -> None:
        """Run the page's next command, which begins so, with what small files ask for."""
        command = commands_of_the_page()[len(done)]
        assert command.startswith(start), command
        done.append(command)
        for old, new in changes:
            assert old in command, (old, command)
            command = command.replace(old, new)
        run(*command.split()[1:], *more)

    as_written("musiccm convert", *[(f"{option} {name}", f"{option} {value}") for option, name, value in zip(
        files.arguments[::2], ("musicldm-ckpt.ckpt", "vae-ckpt.ckpt", "clap-ckpt.pt", "hifigan-ckpt.ckpt",
                               "weights/roberta-base"), files.arguments[1::2], strict=True)],
        more=("--head-channels", "16", "--mel-frames", str(frames)))
    before = Bundle.from_pretrained("data/attm").unet
    small = {key: value for key, value in before.config.items() if not key.startswith("_")}
    teacher = smaller(tmp_path, "attm_teacher", frames, unet=small, warmup_steps=1)
    student = smaller(tmp_path, "attm", frames, optimization={"warmup_steps": 1})
    second = smaller(tmp_path, "attm_dmd2", frames, optimization={"warmup_steps": 1}, matching={"steps": [1, 2]})
    as_written("musiccm prepare corpus --config attm", ("--config attm", f"--config {student}"))
    as_written("musiccm prepare latents --config attm", ("--config attm", f"--config {student}"))
    as_written("musiccm fit --config attm_teacher", ("--config attm_teacher --config strategies/ddp",
                                                     f"--config {teacher}"))
    after = Bundle.from_pretrained("data/attm")
    assert after.prediction_type == "v_prediction"
    assert not torch.equal(after.unet.conv_in.weight, before.conv_in.weight), "from scratch"
    as_written("musiccm fit --config attm", ("--config attm", f"--config {student}"))
    as_written("musiccm test --config attm", ("--config attm", f"--config {student}"))
    (results,) = Path("lightning_logs/attm").rglob("results.json")
    rows = json.loads(results.read_text())["rows"]
    models = {(row["model"], row["steps"]): row for row in rows}
    for asked in (("teacher", 2), ("student", 1), ("student", 2)):
        assert models[asked]["fd_clap_music"] > 0 and -1 <= models[asked]["ta_similarity"] <= 1
    as_written("musiccm export --checkpoint lightning_logs/attm/version_0")
    as_written("musiccm fit --config attm_dmd2", ("--config attm_dmd2", f"--config {second}"))
    as_written("musiccm export --checkpoint lightning_logs/attm_dmd2/version_0")
    as_written("musiccm generate --prompts data/song-describer", more=("--device", "cpu"))
    assert sorted(path.name for path in Path("data/attm-dev").iterdir()) == ["1.wav", "2.wav", "3.wav"]
    weights = ("clap_music --embedder clap_music_1s", "clap_music=weights/clap.pt --embedder "
               "clap_music_1s=weights/clap.pt --clap weights/clap.pt")
    # clips of a second in place of ten
    as_written("musiccm evaluate --generated data/attm-dev", weights, ("--seconds 10", "--seconds 1"))
    scores = json.loads(Path("data/attm-dev-evaluation.json").read_text())
    assert scores["n"] == 3 and scores["n_reference"] == 4
    assert {"fd_clap_music", "fd_clap_music_1s", "ta_similarity"} <= {
        key for key, value in scores["figures"].items() if value is not None}
    as_written("musiccm generate --prompts data/attm-prompts.csv", more=("--device", "cpu"))
    assert sorted(path.name for path in Path("data/attm-submission").iterdir()) == ["0.wav", "1.wav", "2.wav"]
    assert done == commands_of_the_page()

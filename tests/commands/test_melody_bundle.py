"""A bundle of MeLoDy's kind by the command line: begun, packed, and asked for clips, pieces, streams and edits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import soundfile
import torch
from safetensors.torch import load_file
from small_corpus import write_corpus
from tiny_melody import SAMPLES, build_random_melody

from musiccm.audio.io import write_audio
from musiccm.cli import main
from musiccm.data.latent_cache.fingerprint import bundle_fingerprint
from musiccm.models.bundle import Bundle
from musiccm.models.bundle.files import save_part
from musiccm.models.fast_decoder import FastDecoder
from musiccm.models.melody.tokenizer import tokenizer_of
from musiccm.pipeline import Pipeline

PROMPT, OTHER = "slow organ chords", "a fast marimba tune with steady drums"
OWN = {"audio_vae", "semantic_tokenizer", "semantic_lm", "dual_path", "scheduler"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `base` and `melody`, which borrows of it."""
    folder = tmp_path_factory.mktemp("melody")
    build_random_melody(folder)
    return folder


def generate(world: Path, *options: str) -> int:
    return main(["generate", "--model", str(world / "melody"), "--device", "cpu", "--force", *options])


def test_a_bundle_begins_with_the_clap_of_another(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    command = ["prepare", "bundle", "--base", "../base", "--out", str(world / "new"), "--borrow", "clap"]
    assert main(command) == 0 and main(command) == 0  # which stays as it is
    assert "borrows text_encoder, tokenizer, feature_extractor, evaluators/tagger" in capsys.readouterr().out
    begun = Bundle.from_pretrained(world / "new")
    assert not begun.gives_tokens and begun.conditioner().text([PROMPT]).shape == (1, 32)
    assert main(command[:-1] + ["sound"]) == 2
    assert "does not borrow these parts" in capsys.readouterr().err


def test_clips_pieces_and_streams_cost_what_is_printed(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = str(tmp_path / "clip.wav")
    assert generate(world, PROMPT, "--steps", "5", "--schedule", "angle_proposed", "--out", out) == 0
    # 16 tokens; five steps of two calls
    assert "26 network evaluations (16 tokens, 10 of the denoiser)" in capsys.readouterr().out
    assert soundfile.info(out).frames == SAMPLES
    assert generate(world, PROMPT, "--out", out) == 0
    assert "56 network evaluations (16 tokens, 40 of the denoiser)" in capsys.readouterr().out  # 20 guided steps
    assert generate(world, PROMPT, "--steps", "5", "--seconds", "1.6", "--guidance-scale", "1", "--out", out) == 0
    # 40 tokens; windows at 0, 80, 160 and 240 of 400 latent frames, five unguided calls each
    assert "60 network evaluations (40 tokens, 20 of the denoiser)" in capsys.readouterr().out
    assert soundfile.info(out).frames == 25600
    assert generate(world, PROMPT, "--steps", "5", "--seconds", "1.6", "--guidance-scale", "1", "--stream",
                    "--at", "0.8", OTHER, "--out", str(tmp_path / "stream.wav")) == 0
    assert "60 network evaluations (40 tokens, 20 of the denoiser)" in capsys.readouterr().out
    assert soundfile.info(tmp_path / "stream.wav").frames == 25600
    assert generate(world, PROMPT, "--seconds", "2", "--fusion", "swap", "--out", out) == 2
    assert "fusion: windows of this model hold what is there" in capsys.readouterr().err


def test_a_continuation_keeps_every_sample(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    there = 0.3 * torch.sin(torch.arange(16000) * 0.05)
    write_audio(tmp_path / "mine.wav", there, 16000, True)
    for options, kept in ((["--continue", str(tmp_path / "mine.wav"), "--seconds", "1.8"], [(0, 14400)]),
                          (["--inpaint", str(tmp_path / "mine.wav"), "--from", "0.4", "--to", "0.6"],
                           [(0, 4800), (11200, 16000)])):
        out = tmp_path / "edited.wav"
        assert generate(world, PROMPT, "--steps", "3", *options, "--out", str(out)) == 0
        old, new = (soundfile.read(path, dtype="int16")[0] for path in (tmp_path / "mine.wav", out))
        assert all((old[first:last] == new[first:last]).all() for first, last in kept)
        first = kept[0][1] + 1600
        assert (old[first : first + 1600] != new[first : first + 1600]).any() if len(kept) > 1 else len(new) == 28800
    write_audio(tmp_path / "short.wav", there[:3000], 16000, True)
    capsys.readouterr()
    # shorter than what a window makes: it is held whole
    assert generate(world, PROMPT, "--steps", "3", "--continue", str(tmp_path / "short.wav"), "--seconds", "1", "--out",
                    str(out)) == 0
    old, new = (soundfile.read(path, dtype="int16")[0] for path in (tmp_path / "short.wav", out))
    assert len(new) == 16000 and (old[:1400] == new[:1400]).all()


@pytest.mark.slow
def test_what_is_packed_borrows_and_makes_the_same_music(world: Path, tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus", train=2, test=12)
    source, target = world / "melody", world / "packed"
    vae = Bundle.from_pretrained(source).part("audio_vae")
    small = {"hop_length": 32, "n_fft": 128, "width": 8, "hidden": 12, "latent_blocks": 1, "blocks": 1}
    save_part(source, "decoder", FastDecoder({**vae.raw_latents(), **small}))
    (source / "quality").mkdir(exist_ok=True)
    (source / "quality/dual_path.json").write_text(json.dumps(
        {"stage": "dual_path", "steps": 300, "train_seconds": 60.0, "parameters": 7, "seed": 4, "n": 9, "mse": 0.25}))
    assert main(["pack", "--from", str(source), "--to", str(target), "--corpus", str(tmp_path / "corpus"), "--base",
                 "../base", "--name", "musiccm-tiny-melody", "--stages",
                 str(Path(__file__).parents[2] / "experiments/melody/stages")]) == 0
    own = OWN | {"decoder"}
    assert {path.name for path in target.iterdir() if path.is_dir()} == own
    quality = json.loads((target / "quality.json").read_text())
    assert quality["missing"] == [] and quality["borrowed"]["path"] == "../base"
    assert quality["precision"].keys() == own - {"scheduler"}
    assert quality["precision"]["decoder"]["relative_change"] < 0.01  # it is measured on this codec's latents, too
    assert quality["precision"]["decoder"]["dtype"] == "float16"
    assert quality["stages"]["dual_path"]["recipe"] == "melody/stages/dual_path"
    assert quality["figures"]["reconstruction_accuracy"]["n"] == 12
    # a network that is held to the tokenizer's hash still fits it
    assert tokenizer_of(target).fingerprint == tokenizer_of(source).fingerprint
    packed, work = Bundle.from_pretrained(target), Bundle.from_pretrained(source)
    assert packed.index["_class_name"] == "DiffusionPipeline"
    assert bundle_fingerprint(packed) == bundle_fingerprint(work) or quality["precision"]["audio_vae"][
        "dtype"] == "float16"
    made = [Pipeline(bundle)(PROMPT, 3, seed=1) for bundle in (packed, work)]
    assert (made[0] - made[1]).abs().max() < 0.05 * made[1].abs().max()
    stored = load_file(target / "dual_path/model.safetensors")
    assert {str(value.dtype) for value in stored.values()} == {f"torch.{quality['precision']['dual_path']['dtype']}"}

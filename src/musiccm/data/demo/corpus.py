"""Write the demo corpus in Audiostock's layout: `train/`, `test/`, `label/<stem>.json`."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import soundfile
from tqdm import tqdm

from musiccm.data.demo.captions import captions, tags
from musiccm.data.demo.instruments import SAMPLE_RATE_HZ
from musiccm.data.demo.render import render
from musiccm.data.demo.world import draw_attributes, track_rng
from musiccm.errors import MusiccmError
from musiccm.files import write_json

DURATION_S = 10.24
#: Raised whenever the same (seed, index) would sound different.
COMPOSER_VERSION = 1


def write_track(root: Path, seed: int, split: str, index: int) -> str:
    """Render one track and write its flac and label; an existing pair is kept. Returns the stem."""
    stem = f"{split}_{index:06d}"
    audio, label = root / split / f"{stem}.flac", root / "label" / f"{stem}.json"
    if audio.exists() and label.exists():
        return stem
    rng = track_rng(seed, split, index)
    attributes = draw_attributes(rng)
    texts = captions(attributes, rng)
    waveform = render(attributes, rng, DURATION_S)
    partial_audio = audio.with_suffix(".part")
    # Through memory, so that a full disk is an OSError with its cause; soundfile would fail an assertion.
    encoded = io.BytesIO()
    soundfile.write(encoded, waveform, SAMPLE_RATE_HZ, format="FLAC", subtype="PCM_16")
    partial_audio.write_bytes(encoded.getbuffer())
    original = {"title": texts[-1], "bpm": attributes.bpm, "root": attributes.root, "attributes": attributes.labels()}
    partial_label = label.with_suffix(".part")
    partial_label.write_text(json.dumps({"text": texts, "tag": tags(attributes), "original_data": original}, indent=1))
    os.replace(partial_label, label)
    os.replace(partial_audio, audio)
    return stem


def _check_owner(root: Path, identity: dict[str, int]) -> None:
    manifest = root / "corpus.json"
    if not manifest.exists():
        if any(root.glob("*/*")):
            raise MusiccmError(f"{root} is not empty and has no corpus.json: choose a new folder for the demo corpus.")
        write_json(manifest, identity)
        return
    try:
        found = json.loads(manifest.read_text(encoding="utf-8"))
    except ValueError as error:
        raise MusiccmError(f"{manifest}: not a JSON file ({error}); remove {root} or choose another --out.") from error
    if found != identity:
        raise MusiccmError(f"{manifest} says {found}, asked for {identity}: remove {root} or choose another --out.")


def write_corpus(
    out: Path, tracks: int, seed: int = 0, test_tracks: int | None = None, workers: int | None = None
) -> None:
    """Write (or complete) a demo corpus of 10.24 s tracks.

    Args:
        out: folder to write; an interrupted corpus is completed, one of another seed is refused.
        tracks: training tracks.
        seed: with the index, decides every byte of a track.
        test_tracks: held-out tracks, by default an eighth of `tracks` and at least 16.
        workers: processes, by default one a core.

    Raises:
        MusiccmError: the folder holds another corpus, or a file cannot be written.
    """
    if tracks < 1:
        raise MusiccmError(f"--tracks must be at least 1, found {tracks}.")
    test_tracks = max(16, tracks // 8) if test_tracks is None else test_tracks
    try:
        for folder in ("train", "test", "label"):
            (out / folder).mkdir(parents=True, exist_ok=True)
        _check_owner(out, {"seed": seed, "composer_version": COMPOSER_VERSION})
        for split, count in (("train", tracks), ("test", test_tracks)):
            for _ in tqdm(_render_all(out, seed, split, count, workers), f"rendering {split}", count, unit="track"):
                pass
    except OSError as error:
        message = f"Cannot write the demo corpus in {out}: {error}. Free space or choose another --out."
        raise MusiccmError(message) from error


def _render_all(out: Path, seed: int, split: str, count: int, workers: int | None) -> Iterator[str]:
    task = partial(write_track, out, seed, split)
    with ProcessPoolExecutor(workers or os.cpu_count()) as pool:
        yield from pool.map(task, range(count), chunksize=8)

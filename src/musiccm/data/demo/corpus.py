"""Write the demo corpus in Audiostock's layout: `train/`, `test/`, `validation/`, `label/<stem>.json`."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from musiccm.data.demo.folder import claimed, track_counts, write_all
from musiccm.data.demo.tracks import write_encoded
from musiccm.data.demo.worlds import FIRST, demo_world
from musiccm.files import write_text


def write_track(root: Path, seed: int, split: str, index: int, world: str = FIRST) -> str:
    """Render one track and write its flac and label; an existing pair is kept. Returns the stem."""
    stem = f"{split}_{index:06d}"
    audio, label = root / split / f"{stem}.flac", root / "label" / f"{stem}.json"
    if audio.exists() and label.exists():
        return stem
    track = demo_world(world).compose(seed, split, index)
    write_text(label, json.dumps({"text": track.texts, "tag": track.tags, "original_data": track.facts}, indent=1))
    # Last, as an existing file means a finished track.
    write_encoded(audio, track.waveform_S, format="FLAC", subtype="PCM_16")
    return stem


def write_corpus(
    out: Path, tracks: int, seed: int = 0, test_tracks: int | None = None, workers: int | None = None,
    validation_tracks: int | None = None, world: str = FIRST,
) -> None:
    """Write (or complete) a demo corpus.

    The tracks for validation are drawn apart from the others, so that no number of training tracks, of this corpus or
    of the embedded teacher's, ever reaches them.

    Args:
        out: folder to write; an interrupted corpus is completed, one of another seed is refused.
        tracks: training tracks.
        seed: with the index, decides every byte of a track.
        test_tracks: held-out tracks, by default an eighth of `tracks` and at least 16.
        workers: processes, by default one a core.
        validation_tracks: by default a fifteenth of `tracks` and at least 4; 0 for none, and no such folder.
        world: what the tracks are of, a key of `WORLDS`.

    Raises:
        MusiccmError: the folder holds another corpus, or a file cannot be written.
    """
    with claimed(out, tracks, demo_world(world).identity(seed)):
        counts = track_counts(tracks, test_tracks, validation_tracks)
        for folder in ("train", "test", "label", *(["validation"] if counts["validation"] else [])):
            (out / folder).mkdir(exist_ok=True)
        write_all(partial(write_track, world=world), out, seed, counts, workers)

"""Indexing training clips: which clips, which windows of them, and what CLAP says of each."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from musiccm.audio.io import AUDIO_SUFFIXES
from musiccm.commands._device import choose_device
from musiccm.commands._encode import data_module
from musiccm.data.audio_folder import files_below
from musiccm.data.fingerprint import clips_fingerprint
from musiccm.data.labels import Clip
from musiccm.data.module import MusicDataModule
from musiccm.data.reading import Entry, Listing, Rules, read_split
from musiccm.errors import MusiccmError
from musiccm.metrics.clap_windows import ClapWindows, HeardFile
from musiccm.metrics.index import TrainingIndex
from musiccm.metrics.index_writer import PlannedClip, write_index
from musiccm.models.bundle import Bundle
from musiccm.progress import Progress
from musiccm.terminal import say

CONDITIONER_PARTS = ("text_encoder", "tokenizer", "feature_extractor")


def prepare_index(args: argparse.Namespace) -> None:
    """Run `musiccm prepare index`.

    Args:
        args: Its arguments.

    Raises:
        MusiccmError: Bad settings, corpus, bundle or index, each named.
    """
    out = Path(args.out)
    if args.from_cache and not args.config:
        raise MusiccmError("--from-cache: expected --config with an experiment that has a latent cache, found --root")
    if args.faiss:
        from musiccm.metrics.faiss_search import build_faiss, import_faiss

        import_faiss()
    if args.root:
        _index_clips(out, args, _folder_clips(Path(args.root), out), args.bundle or "musiccm-tiny", args.root)
    else:
        overrides = {"bundle": args.bundle} if args.bundle else {}
        data = data_module(args.config, {**overrides, "kind": "waveform"})
        data.setup("fit")
        for report in data.reports.values():
            say(report)
        if args.from_cache:
            _index_cache(out, args, data)
        else:
            _index_clips(out, args, data.train_clips, str(data.bundle), data.root)
    index = TrainingIndex(out)
    silent = index.about.get("silent_windows", 0)
    say(f"{out}: {index.n_clips} training clips, {index.n_rows} windows of {index.window_s:g} s"
          + (f", {silent} of them silent and similar to nothing" if silent else ""))
    if args.faiss:
        say(f"{out}: FAISS {build_faiss(index, None if args.faiss == 'auto' else args.faiss)}")


def _folder_clips(root: Path, out: Path) -> list[Clip]:
    """The clips of a plain folder; bad and repeated audio is reported beside the index."""
    if (root / "train").is_dir() and (root / "test").is_dir():
        raise MusiccmError(f"{root}: holds both train/ and test/; name {root / 'train'}, or held-out music would "
                           "count as training music")
    paths = [path for path in files_below(root) if path.suffix.lower() in AUDIO_SUFFIXES]
    if not paths:
        raise MusiccmError(f"{root}: no audio found; expected files ending in {', '.join(AUDIO_SUFFIXES)}")

    def listing(split: str) -> Listing:
        if split != "train":
            raise MusiccmError(f"{root} is a plain folder")
        return Listing(root, "train", [Entry(p.relative_to(root).as_posix(), p) for p in paths])

    out.mkdir(parents=True, exist_ok=True)
    clips, report = read_split(listing, "train", Rules(), out / "report.json")
    say(report)
    return clips


def _index_clips(out: Path, args: argparse.Namespace, clips: list[Clip], bundle_name: str, source: str) -> None:
    bundle = Bundle.from_pretrained(bundle_name, parts=CONDITIONER_PARTS)
    ear = ClapWindows.of_bundle(bundle, choose_device(args.device), args.hop_s, batch_size=args.batch_size,
                                workers=args.workers)
    files = [HeardFile(clip.path, clip.audio, ear.starts(clip.audio)) for clip in clips]
    planned = [
        PlannedClip(clip.id, str(Path(clip.path).resolve()), [start / ear.sample_rate_hz for start in file.starts])
        for clip, file in zip(clips, files, strict=True)
    ]
    key = {**ear.key(), "corpus": clips_fingerprint(clips)}
    about = {"bundle": bundle_name, "source": source}
    _write(out, args, key, about, planned, bundle.conditioner().width,
           lambda first, last, bar: ear.embed(files[first:last], bar.update))


def _index_cache(out: Path, args: argparse.Namespace, data: MusicDataModule) -> None:
    """The CLAP rows of a latent cache, whose windows are those that the model was trained on.

    That the cache comes from this bundle is checked when it is opened.
    """
    bundle = Bundle.from_pretrained(str(data.bundle), parts=CONDITIONER_PARTS)
    cache, rows = data.latent_cache("train"), data.latent_rows("train")
    ear = ClapWindows.of_bundle(bundle)
    heard = min(ear.window_samples, data.clip_samples * ear.sample_rate_hz // data.sample_rate_hz)
    by_clip: dict[str, list[int]] = {}
    for row, clip_number in zip(rows.tolist(), cache.index.clips_of(rows).tolist(), strict=True):
        by_clip.setdefault(cache.index.clip_ids[clip_number], []).append(row)
    clips = [clip for clip in data.train_clips if clip.id in by_clip]
    planned = [
        PlannedClip(clip.id, str(Path(clip.path).resolve()),
                    (cache.index.starts_N[by_clip[clip.id]] / data.sample_rate_hz).tolist())
        for clip in clips
    ]
    key = {**ear.key(), "window_samples": heard, "hop_samples": heard,
           "corpus": clips_fingerprint(clips), "latents": {"clip_samples": data.clip_samples,
                                                           "windows_per_track": data.windows_per_track}}

    def embed(first: int, last: int, bar: Progress) -> Tensor:
        chosen = [row for clip in clips[first:last] for row in by_clip[clip.id]]
        bar.update(len(chosen))
        return cache.audio(np.asarray(chosen, np.int64))

    about = {"bundle": str(data.bundle), "source": f"latent cache {cache.folder}"}
    _write(out, args, key, about, planned, bundle.conditioner().width, embed)


def _write(
    out: Path, args: argparse.Namespace, key: dict[str, Any], about: dict[str, Any], planned: list[PlannedClip],
    width: int, embed: Callable[[int, int, Progress], Tensor],
) -> None:
    total = sum(len(clip.starts_s) for clip in planned)
    with Progress(total, f"indexing {len(planned)} clips", "window") as bar:
        write_index(out, key, about, planned, width, lambda first, last: embed(first, last, bar), args.overwrite,
                    bar.skip)

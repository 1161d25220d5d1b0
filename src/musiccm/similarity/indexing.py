"""Indexing training clips: which clips, which windows of them, and what CLAP says of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from musiccm.audio.io import AUDIO_SUFFIXES
from musiccm.audio.windows import read_window
from musiccm.data.corpora.folder_scan import scan_folder
from musiccm.data.corpora.labels import Clip
from musiccm.data.corpora.reading import Entry, Listing, Rules, read_split
from musiccm.data.latent_cache.fingerprint import clips_fingerprint
from musiccm.data.latent_cache.window_index import WindowIndex
from musiccm.device import choose_device
from musiccm.errors import MusiccmError
from musiccm.locks import locked_folder
from musiccm.models.bundle import Bundle
from musiccm.progress import Progress
from musiccm.similarity.clap_windows import CONDITIONER_PARTS, ClapWindows, FileWindows
from musiccm.similarity.index import TrainingIndex
from musiccm.similarity.index_writer import PlannedClip, write_index
from musiccm.terminal import say
from musiccm.texts import escaped, read_json, require_utf8

if TYPE_CHECKING:
    from musiccm.data.module import MusicDataModule


def index_folder(
    out: str | Path, root: str | Path, bundle: str = "musiccm-tiny", **settings: Any
) -> TrainingIndex:
    """Index the audio of a folder, which needs no labels.

    Args:
        out: Folder to write; a killed run goes on where it stopped.
        root: Folder of training audio, searched through.
        bundle: Whose CLAP.
        **settings: Of `IndexSettings`.

    Returns:
        The index.

    Raises:
        MusiccmError: Bad settings, audio, bundle or index, each named; another process writes the index.
    """
    how, folder = IndexSettings(**settings), Path(out)
    with _ready(folder, how):
        _index_clips(folder, how, _folder_clips(Path(root), folder), bundle, str(root))
        return _finished(folder, how)


def index_experiment(
    out: str | Path, configs: Sequence[str], bundle: str | None = None,
    windows: Literal["whole", "cache", "bundle"] = "whole", **settings: Any,
) -> TrainingIndex:
    """Index what an experiment trains on.

    Args:
        out: Folder to write; a killed run goes on where it stopped.
        configs: Experiment files, later ones laid over earlier ones.
        bundle: Whose CLAP; the experiment's if None.
        windows: Which are indexed: those of `whole` clips; those of the experiment's latent `cache`, with the
            embeddings that it has; or those of the cache in float16 and without paths of this machine, as a `bundle`
            brings them.
        **settings: Of `IndexSettings`.

    Returns:
        The index.

    Raises:
        MusiccmError: Bad settings, corpus, bundle or index, each named; another process writes the index.
    """
    from musiccm.data.experiment import data_module

    how, folder = IndexSettings(**settings), Path(out)
    with _ready(folder, how):
        data = data_module(list(configs), {**({"bundle": bundle} if bundle else {}), "kind": "waveform"})
        data.setup("fit")
        for report in data.reports.values():
            say(report)
        name = str(data.bundle)
        if windows == "bundle":
            opened = Bundle.from_pretrained(name, parts=CONDITIONER_PARTS)
            index_training_windows(folder, opened, name, data, how.batch_size, how.device, how.overwrite)
        elif windows == "cache":
            _index_cache(folder, how, data)
        else:
            _index_clips(folder, how, data.train_clips, name, data.root)
        return _finished(folder, how)


@dataclass(frozen=True)
class IndexSettings:
    """How an index is written.

    Args:
        hop_s: Seconds between windows; half of CLAP's window if None.
        faiss: A FAISS index beside it: its description, such as `Flat`; `auto` goes by the size; None for none.
        batch_size: Windows embedded at a time.
        workers: Threads that decode.
        device: Where to compute.
        overwrite: Whether an index of something else may be replaced.
    """

    hop_s: float | None = None
    faiss: str | None = None
    batch_size: int = 16
    workers: int = 2
    device: str = "auto"
    overwrite: bool = False


@contextmanager
def _ready(out: Path, how: IndexSettings) -> Iterator[None]:
    """What can be refused is refused before anything is read; nobody else writes the folder meanwhile."""
    require_utf8(out, "out:")
    if how.faiss:
        from musiccm.similarity.faiss_search import import_faiss

        import_faiss()
    with locked_folder(out):
        yield


def _finished(out: Path, how: IndexSettings) -> TrainingIndex:
    index = TrainingIndex(out)
    silent = index.about.get("silent_windows", 0)
    say(f"{out}: {index.n_clips} training clips, {index.n_rows} windows of {index.window_s:g} s"
          + (f", {silent} of them silent and similar to nothing" if silent else ""))
    if how.faiss:
        from musiccm.similarity.faiss_search import build_faiss

        say(f"{out}: FAISS {build_faiss(index, None if how.faiss == 'auto' else how.faiss)}")
    return index


def _folder_clips(root: Path, out: Path) -> list[Clip]:
    """The clips of a plain folder; bad and repeated audio is reported beside the index."""
    if (root / "train").is_dir() and (root / "test").is_dir():
        raise MusiccmError(f"{root}: holds both train/ and test/; name {root / 'train'}, or held-out music would "
                           "count as training music")
    scan = scan_folder(root)
    if not scan.audio:
        raise MusiccmError(f"{root}: no audio found{scan.instead()}; expected files ending in "
                           f"{', '.join(AUDIO_SUFFIXES)}")

    def listing(split: str) -> Listing:
        if split != "train":
            raise MusiccmError(f"{root} is a plain folder")
        return Listing(root, "train", [Entry(escaped(path.relative_to(root)), path) for path in scan.audio],
                       bad=scan.left_out, notes=scan.notes(str(root)))

    out.mkdir(parents=True, exist_ok=True)
    clips, report = read_split(listing, "train", Rules(), out / "report.json")
    say(report)
    return clips


def _index_clips(out: Path, how: IndexSettings, clips: list[Clip], bundle_name: str, source: str) -> None:
    bundle = Bundle.from_pretrained(bundle_name, parts=CONDITIONER_PARTS)
    clap = ClapWindows.of_bundle(bundle, choose_device(how.device), how.hop_s, batch_size=how.batch_size,
                                workers=how.workers)
    files = [FileWindows(clip.path, clip.audio, clap.starts(clip.audio)) for clip in clips]
    planned = [
        PlannedClip(clip.id, str(Path(clip.path).resolve()), [start / clap.sample_rate_hz for start in file.starts],
                    clip.audio.digest)
        for clip, file in zip(clips, files, strict=True)
    ]
    key = {**clap.key(), "corpus": clips_fingerprint(clips)}
    about = {"bundle": bundle_name, "source": source}
    _write(out, how.overwrite, key, about, planned, bundle.conditioner().width,
           lambda first, last, bar: clap.embed(files[first:last], bar.update))


def _index_cache(out: Path, how: IndexSettings, data: MusicDataModule) -> None:
    """The CLAP rows of a latent cache, whose windows are those that the model was trained on.

    That the cache comes from this bundle is checked when it is opened.
    """
    bundle = Bundle.from_pretrained(str(data.bundle), parts=CONDITIONER_PARTS)
    cache, rows = data.latent_cache("train"), data.latent_rows("train")
    by_clip: dict[str, list[int]] = {}
    for row, clip_number in zip(rows.tolist(), cache.index.clips_of(rows).tolist(), strict=True):
        by_clip.setdefault(cache.index.clip_ids[clip_number], []).append(row)
    clips = [clip for clip in data.train_clips if clip.id in by_clip]
    planned = [
        PlannedClip(clip.id, str(Path(clip.path).resolve()),
                    (cache.index.starts_N[by_clip[clip.id]] / data.sample_rate_hz).tolist(), clip.audio.digest)
        for clip in clips
    ]
    key = _key_of_windows(bundle, data, clips)

    def embed(first: int, last: int, bar: Progress) -> Tensor:
        chosen = [row for clip in clips[first:last] for row in by_clip[clip.id]]
        bar.update(len(chosen))
        return cache.audio(np.asarray(chosen, np.int64))

    about = {"bundle": str(data.bundle), "source": f"latent cache {cache.folder}"}
    _write(out, how.overwrite, key, about, planned, bundle.conditioner().width, embed)


def index_training_windows(
    out: Path, bundle: Bundle, bundle_name: str, data: MusicDataModule, batch_size: int = 16, device: str = "auto",
    overwrite: bool = False,
) -> TrainingIndex:
    """Write the index that a bundle brings: the windows that its teacher was trained on, as SIM_AA's gallery has them.

    They are the windows of the latent cache of the teacher's experiment, embedded as the cache embeds them, in float16;
    no path of this machine goes into it.

    Args:
        out: Folder to write.
        bundle: Whose CLAP embeds.
        bundle_name: What it is called.
        data: The data of the teacher's experiment, of kind `waveform`.
        batch_size: Windows embedded at a time.
        device: Where to compute.
        overwrite: Replace an index that was made from something else.

    Returns:
        The index.

    Raises:
        MusiccmError: A corpus that cannot be read, or audio that changed since it was scanned.
    """
    data.setup("fit")
    clips, held_out = data.train_clips, len(data.val_clips)
    windows = WindowIndex.plan(clips, data.clip_samples, data.sample_rate_hz, data.windows_per_track)
    ends = windows.window_ends_P1
    planned = [
        PlannedClip(clip.id, below_root(clip.path, data),
                    (windows.starts_N[ends[n] : ends[n + 1]] / data.sample_rate_hz).tolist(), clip.audio.digest)
        for n, clip in enumerate(clips)
    ]
    conditioner = bundle.conditioner().to(choose_device(device))

    @torch.inference_mode()
    def embed(first: int, last: int, bar: Progress) -> Tensor:
        found = []
        for start in range(int(ends[first]), int(ends[last]), batch_size):
            batch = []
            for row in range(start, min(start + batch_size, int(ends[last]))):
                clip = clips[windows.clip_of(row)]
                batch.append(read_window(clip.path, clip.audio, data.clip_samples, data.sample_rate_hz,
                                         int(windows.starts_N[row]), data.conversion))
            found.append(conditioner.audio(torch.stack(batch), data.sample_rate_hz).float().cpu())
            bar.update(len(batch))
        return torch.cat(found)

    corpora = [spec for spec in data.corpora.specs if (Path(spec.root) / "corpus.json").is_file()]
    about = {"bundle": bundle_name, "source": data.root, "clips": len(clips), "windows": len(windows),
             "held_out_clips": held_out,
             "corpora": {spec.name: read_json(Path(spec.root) / "corpus.json", "what a corpus is") for spec in corpora}}
    key = _key_of_windows(bundle, data, clips)
    _write(out, overwrite, key, about, planned, conditioner.width, embed, torch.float16)
    return TrainingIndex(out)


def below_root(path: str, data: MusicDataModule) -> str:
    """The path of a clip below the folder of its corpus."""
    for spec in data.corpora.specs:
        if Path(path).is_relative_to(spec.root):
            return Path(path).relative_to(spec.root).as_posix()
    return Path(path).name


def _key_of_windows(bundle: Bundle, data: MusicDataModule, clips: list[Clip]) -> dict[str, Any]:
    """What an index of an experiment's own windows is made from."""
    clap = ClapWindows.of_bundle(bundle)
    window = min(clap.window_samples, data.clip_samples * clap.sample_rate_hz // data.sample_rate_hz)
    return {**clap.key(), "window_samples": window, "hop_samples": window, "corpus": clips_fingerprint(clips),
            "latents": {"clip_samples": data.clip_samples, "windows_per_track": data.windows_per_track}}


def _write(
    out: Path, overwrite: bool, key: dict[str, Any], about: dict[str, Any], planned: list[PlannedClip],
    width: int, embed: Callable[[int, int, Progress], Tensor], dtype: torch.dtype = torch.float32,
) -> None:
    total = sum(len(clip.starts_s) for clip in planned)
    with Progress(total, f"indexing {len(planned)} clips", "window") as bar:
        write_index(out, key, about, planned, width, lambda first, last: embed(first, last, bar), overwrite,
                    bar.skip, dtype=dtype)

"""A folder of audio from anywhere: what a system generated, or the references that it is measured against."""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from musiccm.audio import AudioFacts, read_audio
from musiccm.audio.io import AUDIO_SUFFIXES, SILENCE_PEAK, read_mixes
from musiccm.audio.resample import resample
from musiccm.data.corpora.audiocaps import read_lines
from musiccm.data.corpora.folder_scan import clip_id, scan_folder
from musiccm.data.corpora.labels import no_words
from musiccm.data.corpora.report import BadItem
from musiccm.data.corpora.scan import AudioFile, Fault, examine_file
from musiccm.data.corpora.text_tables import is_missing, read_table, read_text
from musiccm.data.names import NamePairs, pair_names
from musiccm.errors import MusiccmError
from musiccm.progress import Progress
from musiccm.signals import leaving_queue
from musiccm.texts import escaped, load_json, printable

#: Batches that are decoded before they are asked for.
AHEAD = 2


@dataclass(frozen=True)
class FolderClip:
    """One usable file: its `clip_id`, the file, and what decoding it told."""

    id: str
    path: Path
    audio: AudioFacts


@dataclass
class AudioFolder:
    """The audio files of a folder and all below it.

    Args:
        root: The folder.
        clips: Those that can be used, by id.
        left_out: Those that cannot, and why; also links to folders, which are not followed, and the like.
        others: Files that are no audio by their suffix, and hidden entries.
    """

    root: Path
    clips: list[FolderClip] = field(default_factory=list)
    left_out: list[BadItem] = field(default_factory=list)
    others: list[BadItem] = field(default_factory=list)

    @property
    def rates_hz(self) -> dict[int, int]:
        """Usable files by sampling rate."""
        return dict(sorted(Counter(clip.audio.sample_rate_hz for clip in self.clips).items()))

    def __str__(self) -> str:
        reasons = Counter(item.reason for item in self.left_out)
        found = len(self.clips) + len(self.left_out)
        text = f"{escaped(self.root)}: {len(self.clips)} of {found} audio files can be used"
        return text + ("; left out: " + ", ".join(f"{n} {r}" for r, n in sorted(reasons.items())) if reasons else "")


def read_audio_folder(
    root: str | Path, min_duration_s: float = 0.0, channel: str = "mean", progress: bool = False
) -> AudioFolder:
    """Decode every audio file of a folder once and say which can be used.

    Args:
        root: The folder.
        min_duration_s: Shorter files are left out.
        channel: `mean` of the channels or the `first`: what is silent or NaN is decided on it.
        progress: Whether to show a progress bar.

    Returns:
        What was found, and what was left out.

    Raises:
        MusiccmError: There is no such folder, no usable file in it, or two files of one name, such as a.wav and a.mp3.
    """
    root = Path(root)
    scan = scan_folder(root)
    folder = AudioFolder(root, left_out=list(scan.left_out), others=list(scan.passed_over))
    _examine(folder, scan.audio, min_duration_s, channel, progress)
    if not folder.clips:
        reasons = sorted({item.reason for item in folder.left_out})
        raise MusiccmError(f"{root}: no audio that can be used" + (
            f": {len(folder.left_out)} files were left out ({', '.join(reasons)})" if reasons else
            f"{scan.instead()}; expected files ending in {', '.join(AUDIO_SUFFIXES)}"))
    return folder


def read_audio_files(
    paths: Sequence[str | Path], min_duration_s: float = 0.0, channel: str = "mean", progress: bool = False
) -> AudioFolder:
    """Decode some audio files once and say which can be used.

    Args:
        paths: The files. Their ids are their paths below the folder that they have in common.
        min_duration_s: See `read_audio_folder`.
        channel: See there.
        progress: See there.

    Returns:
        What was found, and what was left out.

    Raises:
        MusiccmError: No file, none that is usable, or two of one name.
    """
    files = sorted(dict.fromkeys(Path(os.path.abspath(path)) for path in paths))
    if not files:
        raise MusiccmError("expected paths of audio files, found none")
    folder = AudioFolder(Path(os.path.commonpath([path.parent for path in files])))
    _examine(folder, files, min_duration_s, channel, progress)
    if not folder.clips:
        first = folder.left_out[0]
        raise MusiccmError(f"{first.path}: {first.reason} ({first.detail}); none of {len(files)} files can be used")
    return folder


def _examine(
    folder: AudioFolder, paths: Sequence[Path], min_duration_s: float, channel: str, progress: bool
) -> None:
    root, ids = folder.root, [clip_id(folder.root, path) for path in paths]
    if twice := [name for name, n in Counter(ids).items() if n > 1]:
        raise MusiccmError(f"{root}: {len(twice)} names occur with several suffixes, first {twice[0]}; a clip is known "
                           "by its name without the suffix, so remove one of each")
    with (leaving_queue(ThreadPoolExecutor()) as pool,
          Progress(len(paths), f"reading {root.resolve().name}", "file", progress) as bar):
        found = pool.map(lambda path: examine_file(AudioFile(path), min_duration_s, channel), paths)
        for name, path, result in zip(ids, paths, found, strict=True):
            if isinstance(result, Fault):
                folder.left_out.append(BadItem(name, escaped(path), result.reason, result.detail))
            else:
                folder.clips.append(FolderClip(name, path, result))
            bar.update()


class ClipBatch(NamedTuple):
    """Clips of one length and rate: `[B, S]`, the rate, and their ids."""

    waveform_BS: Tensor
    sample_rate_hz: int
    ids: list[str]


@dataclass(frozen=True)
class Preparation:
    """One length, rate and level for every clip, as a published protocol has it.

    Args:
        seconds: What is taken from the start of each; zeros follow a shorter one.
        sample_rate_hz: What each is resampled to.
        peak: Largest magnitude, once the mean of the whole clip is removed.
    """

    seconds: float
    sample_rate_hz: int
    peak: float

    def __call__(self, waveform_S: Tensor, sample_rate_hz: int) -> Tensor:
        """Prepare a whole clip."""
        found_S = resample(waveform_S, sample_rate_hz, self.sample_rate_hz, "soxr")  # papers take as long filters
        samples = round(self.seconds * self.sample_rate_hz)
        found_S = (found_S - found_S.mean())[:samples]
        found_S = torch.nn.functional.pad(found_S, (0, samples - len(found_S)))
        return found_S * (self.peak / found_S.abs().max().clamp(min=SILENCE_PEAK))


class _Read(NamedTuple):
    """A clip as it goes into a batch, and the mean of its channels where somebody wants the whole."""

    waveform_S: Tensor
    sample_rate_hz: int
    mean_S: Tensor | None = None


def _read(
    clip: FolderClip, duration_s: float | None, channel: str, whole: bool, prepare: Preparation | None
) -> _Read:
    if prepare is not None:
        waveform_S, rate_hz = read_audio(clip.path, 0.0, None, channel, allow_silent=True)
        return _Read(prepare(waveform_S, rate_hz), prepare.sample_rate_hz)
    if not whole:
        waveform_S, rate_hz = read_audio(clip.path, 0.0, duration_s, channel, allow_silent=True)
        return _Read(waveform_S - waveform_S.mean(), rate_hz)
    (waveform_S, mean_S), rate_hz = read_mixes(clip.path, (channel, "mean"))
    waveform_S = waveform_S if duration_s is None else waveform_S[: round(duration_s * rate_hz)]
    return _Read(waveform_S - waveform_S.mean(), rate_hz, mean_S)


def clip_batches(
    clips: Sequence[FolderClip],
    batch_size: int = 16,
    duration_s: float | None = None,
    channel: str = "mean",
    whole: Callable[[FolderClip, Tensor], None] | None = None,
    prepare: Preparation | None = None,
) -> Iterator[ClipBatch]:
    """Read clips, in batches of one length and rate; the mean of each is removed, its level stays.

    Threads decode the next batches while one is worked on, a core each.

    Args:
        clips: The clips.
        batch_size: At most so many together.
        duration_s: Take this much from the start of each; None takes all.
        channel: `mean` of the channels, or the `first`, which published tools take.
        whole: Given each clip and the mean of its channels, `[S]`, from the same decoding: all of it, also where
            `duration_s` takes a part. It is called in order, by who takes the batches.
        prepare: Takes the place of `duration_s` and `whole`: all clips come as it makes them.

    Yields:
        Batches, shortest clips first.
    """
    def shape(item: int) -> tuple[int, int]:
        if prepare is not None:
            return prepare.sample_rate_hz, 0
        facts = clips[item].audio
        frames = facts.frames if duration_s is None else min(facts.frames, round(duration_s * facts.sample_rate_hz))
        return facts.sample_rate_hz, frames

    batches: list[list[int]] = []
    for item in sorted(range(len(clips)), key=lambda item: (shape(item), clips[item].id)):
        if not batches or len(batches[-1]) == batch_size or shape(batches[-1][0]) != shape(item):
            batches.append([])
        batches[-1].append(item)
    read = partial(_read, duration_s=duration_s, channel=channel, whole=whole is not None and prepare is None,
                   prepare=prepare)
    with leaving_queue(ThreadPoolExecutor()) as pool:
        begun: deque[tuple[list[FolderClip], list[Future[_Read]]]] = deque()
        for batch in [*batches, *[[]] * AHEAD]:  # empty ones, behind which no batch is left
            mine = [clips[item] for item in batch]
            begun.append((mine, [pool.submit(read, clip) for clip in mine]))
            if len(begun) > AHEAD and begun[0][0]:
                yield _together(*begun.popleft(), whole)


def _together(
    clips: Sequence[FolderClip], reading: Sequence[Future[_Read]], whole: Callable[[FolderClip, Tensor], None] | None
) -> ClipBatch:
    found = [future.result() for future in reading]
    for clip, read in zip(clips, found, strict=True):
        if whole is not None and read.mean_S is not None:
            whole(clip, read.mean_S)
    return ClipBatch(torch.stack([read.waveform_S for read in found]), found[0].sample_rate_hz,
                     [clip.id for clip in clips])


def read_captions(path: str | Path, only: tuple[str, str] | None = None) -> dict[str, str]:
    """The caption of each clip by its id.

    Args:
        path: `.json`: an object from id to caption, or TANGO's JSON lines, whose `location` names the clip; `.csv` or
            `.tsv`: columns `caption` or `prompt`, and `id`, `caption_id` (Song Describer, which has several captions of
            a track) or `path`, whose name without the suffix is the id.
        only: Take the rows alone whose column of this name has this value, such as `("is_valid_subset", "True")`.

    Returns:
        Id to caption; `captions_of` finds those of clips.

    Raises:
        MusiccmError: The file is missing, has another form, a broken row, or two captions for one id.
    """
    path = Path(path)
    if path.suffix in (".json", ".jsonl") and (lines := read_lines(path)):
        pairs = lines
    elif path.suffix == ".json":
        try:
            pairs = list(load_json(read_text(path, "an object from clip id to caption")).items())
        except (ValueError, AttributeError) as error:
            raise MusiccmError(f"{path}: expected a JSON object from clip id to caption ({error})") from error
    elif path.suffix in (".csv", ".tsv"):
        table = read_table(path, "," if path.suffix == ".csv" else "\t", names=("id", "path"))
        key = next((name for name in ("id", "caption_id", "path") if name in table.header), None)
        text = next((name for name in ("caption", "prompt") if name in table.header), None)
        if key is None or text is None:
            raise MusiccmError(f"{path}: expected columns caption or prompt, and id, caption_id or path, found "
                               f"{', '.join(table.header)}")
        if table.bad:
            raise MusiccmError(f"{path}: {len(table.bad)} rows cannot be read, first {table.bad[0].detail}")
        rows = [dict(zip(table.header, cells, strict=True)) for _, cells in table.rows]
        if only is not None:
            rows = _rows_with(rows, *only, path)
        pairs = [(str(Path(row[key]).with_suffix("")) if key == "path" else row[key], row[text]) for row in rows]
    else:
        raise MusiccmError(f"{path}: expected captions as .json, .csv or .tsv")
    if only is not None and path.suffix in (".json", ".jsonl"):
        raise MusiccmError(f"{path}: a JSON file of captions has no column {only[0]} to choose by")
    captions: dict[str, str] = {}
    for raw, caption in pairs:
        name = printable(raw)
        if not isinstance(caption, str) or not caption.strip() or is_missing(caption):
            raise MusiccmError(f"{path}: {name}: expected a caption, found "
                               f"{no_words(caption) if is_missing(caption) else repr(caption)}")
        if captions.setdefault(name, caption.strip()) != caption.strip():
            raise MusiccmError(f"{path}: {name}: two different captions; expected one a clip")
    return captions


def _rows_with(rows: list[dict[str, str]], column: str, value: str, path: Path) -> list[dict[str, str]]:
    """The rows that have a value in a column."""
    if rows and column not in rows[0]:
        raise MusiccmError(f"{path}: no column {column} to choose by, found {', '.join(rows[0])}")
    found = [row for row in rows if row[column].strip() == value]
    if not found:
        others = sorted({row[column].strip() for row in rows})[:5]
        raise MusiccmError(f"{path}: no row whose {column} is {value!r}; it has {', '.join(map(repr, others))}")
    return found


def captions_of(ids: Iterable[str], captions: Mapping[str, str]) -> tuple[dict[str, str], NamePairs]:
    """Captions by the ids of clips, where the captions' own ids may be spelled in another way.

    Args:
        ids: Of the clips.
        captions: From `read_captions`.

    Returns:
        The captions of those that have one, and how the names were paired.
    """
    found = pair_names(ids, captions)
    return {name: captions[other] for name, other in found.pairs.items()}, found

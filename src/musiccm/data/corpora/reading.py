"""The way from what a corpus names to the clips that can be used: one for all layouts.

A layout lists its entries; here their audio is examined, the unusable is left out and reported, and audio that occurs
twice, or in the test part too, is found.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from musiccm.audio import AudioFacts
from musiccm.data.corpora.labels import Clip
from musiccm.data.corpora.report import BadItem, Report
from musiccm.data.corpora.scan import AudioFile, AudioScan, Fault, write_if_possible
from musiccm.errors import MusiccmError
from musiccm.texts import escaped

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """One item of a corpus before its audio was looked at.

    Args:
        id: Unique within the corpus.
        path: The audio file, within the corpus' root.
        captions: Its sentences; may be empty only where `fault` says why.
        tags: Key words.
        attributes: What is known for certain.
        source: Artist, title and the like.
        stated_s: The length that the corpus states, in seconds; None where it states none.
        fault: What is wrong with its words.
    """

    id: str
    path: Path
    captions: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    attributes: dict[str, str] = field(default_factory=dict)
    source: dict[str, str] = field(default_factory=dict)
    stated_s: float | None = None
    fault: BadItem | None = None

    @property
    def file(self) -> AudioFile:
        """What is to be decoded."""
        return AudioFile(self.path, self.stated_s)


@dataclass
class Listing:
    """What a layout names for one split.

    Args:
        root: The corpus.
        split: Which part of it.
        entries: The items.
        bad: Items that are known to be bad before their audio is looked at, such as broken rows of an index.
        unused: Items left out on purpose, counted by reason.
        notes: Sentences for the report.
        tables: Counts for the report, by name.
    """

    root: Path
    split: str
    entries: list[Entry] = field(default_factory=list)
    bad: list[BadItem] = field(default_factory=list)
    unused: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    tables: dict[str, dict[str, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Rules:
    """What is accepted.

    Args:
        min_duration_s: Shorter audio is bad.
        max_bad_fraction: Largest share of bad items.
        strict: Stop at the first bad item.
        workers: Threads that decode; one a core by default.
        channel: What is read of each file (`scan_audio`).
    """

    min_duration_s: float = 1.0
    max_bad_fraction: float = 0.05
    strict: bool = False
    workers: int | None = None
    channel: str = "mean"

    def scan(self, listing: Listing) -> AudioScan:
        """The scan of a listing's audio."""
        return AudioScan(listing.root, listing.split, self.min_duration_s, self.workers, self.channel)


class KnownAudio:
    """Audio that was examined, to find the same audio again: equal length, rate and hash of the samples."""

    def __init__(self) -> None:
        self._paths: dict[tuple[int, int, str], Path] = {}

    def add(self, path: Path, facts: AudioFacts) -> None:
        """Remember a file."""
        self._paths.setdefault((facts.frames, facts.sample_rate_hz, facts.digest), path)

    def find(self, facts: AudioFacts) -> Path | None:
        """The first remembered file with the same samples, if there is one."""
        return self._paths.get((facts.frames, facts.sample_rate_hz, facts.digest))


def _known_before(entry: Entry, facts: AudioFacts, others: Iterable[tuple[str, KnownAudio]]) -> BadItem | None:
    for reason, known in others:
        if (same := known.find(facts)) is not None:
            return BadItem(entry.id, escaped(entry.path), reason, f"the same audio as {escaped(same)}")
    return None


def known_audio(listing: Listing, rules: Rules) -> KnownAudio:
    """Examine the audio of a listing only to recognise it elsewhere; nothing is reported."""
    known, scan = KnownAudio(), rules.scan(listing)
    for file, found in scan.results([entry.file for entry in listing.entries]):
        if isinstance(found, AudioFacts):
            known.add(file.path, found)
    return known


def read_split(
    list_split: Callable[[str], Listing],
    split: str,
    rules: Rules,
    report_path: Path | None = None,
    others: Sequence[tuple[str, KnownAudio]] = (),
    known: KnownAudio | None = None,
) -> tuple[list[Clip], Report]:
    """Examine the audio of a split and keep what can be used; audio that the test split holds too is kept out.

    Args:
        list_split: Lists a split by its name.
        split: Which one.
        rules: What is accepted.
        report_path: Where the report goes; `<root>/report-<split>.json` by default.
        others: Further audio that must not occur here, each with the reason to report, such as `("in_test", ...)`.
        known: Takes in the audio that is kept.

    Returns:
        `(clips, report)`, the clips sorted by id.

    Raises:
        MusiccmError: Too much is bad; or anything is, and `rules.strict`; and what `list_split` raises.
    """
    known = KnownAudio() if known is None else known
    others = [*others, ("duplicate", known)]
    listing = list_split(split)
    if split != "test":
        try:
            others = [("in_test", known_audio(list_split("test"), rules)), *others]
        except MusiccmError as error:
            listing.notes.append(f"not compared with the test part: {error}")
    report = Report(
        escaped(listing.root), listing.split, len(listing.entries) + len(listing.bad) + sum(listing.unused.values()),
        list(listing.bad), unused=dict(listing.unused), notes=list(listing.notes), tables=listing.tables,
    )
    report_path = report_path or listing.root / f"report-{listing.split}.json"
    scan = rules.scan(listing)
    entries = sorted(listing.entries, key=lambda entry: entry.id)
    clips, converted = [], Counter[str]()
    with closing(scan.results([entry.file for entry in entries])) as results:
        for entry, (_, found) in zip(entries, results, strict=True):
            if rules.strict and report.bad:
                break
            if isinstance(found, Fault):
                report.bad.append(BadItem(entry.id, escaped(entry.path), found.reason, found.detail))
                continue
            fault = entry.fault or _known_before(entry, found, others)
            if fault is not None:
                report.bad.append(fault)
                continue
            known.add(entry.path, found)
            clips.append(Clip(entry.id, str(entry.path), entry.captions, entry.tags, entry.attributes, found,
                              entry.source))
            converted["mixed_to_mono" if rules.channel == "mean" else "first_channel_taken"] += found.channels > 1
            converted[f"rate_{found.sample_rate_hz}_hz"] += 1
    report.converted = {key: n for key, n in sorted(converted.items()) if n}
    write_if_possible(report_path, lambda: report.write(report_path))
    if rules.strict:
        report.raise_if_any()
    report.raise_if_above(rules.max_bad_fraction, report_path)
    if report.bad or report.notes:
        log.warning("%s; the list: %s", report, report_path)
    return clips, report

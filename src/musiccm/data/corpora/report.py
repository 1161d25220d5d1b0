"""What was left out of a corpus, and why."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from musiccm.errors import MusiccmError
from musiccm.files import write_json
from musiccm.texts import printable


@dataclass(frozen=True)
class BadItem:
    """One item that cannot be used: its id, the file at fault, the reason's name and what was found."""

    id: str
    path: str
    reason: str
    detail: str


@dataclass
class Report:
    """What reading one split of a corpus found.

    Args:
        root: The corpus.
        split: Which part of it.
        found: Items that the folder or its index names for this part; broken rows of an index are items too.
        bad: Those that cannot be used, and are left out.
        converted: Usable files counted by kind: `mixed_to_mono` or `first_channel_taken`, and `rate_<hz>_hz`, which are
            resampled unless it is the rate of the windows.
        unused: Sound items that were left out on purpose, counted by reason: `untagged`, `not_drawn`, ...
        notes: Anything else that a reader of the report should know, a sentence each.
        tables: Counts by name, such as how often each tag occurs before and after a draw.
    """

    root: str
    split: str
    found: int = 0
    bad: list[BadItem] = field(default_factory=list)
    converted: dict[str, int] = field(default_factory=dict)
    unused: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    tables: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def counts(self) -> dict[str, int]:
        """Bad items by reason."""
        return dict(sorted(Counter(item.reason for item in self.bad).items()))

    @property
    def used(self) -> int:
        """Items that are used."""
        return self.examined - len(self.bad)

    @property
    def examined(self) -> int:
        """Items that were asked for, good or bad."""
        return self.found - sum(self.unused.values())

    def __str__(self) -> str:
        text = f"{self.root}/{self.split}: {self.used} of {self.examined} audio files can be used"
        if self.bad:
            text += "; left out: " + ", ".join(f"{n} {reason}" for reason, n in self.counts.items())
        if self.unused:
            text += "; not asked for: " + ", ".join(f"{n} {reason}" for reason, n in sorted(self.unused.items()))
        return printable("; ".join([text, *self.notes]))

    def write(self, path: Path) -> None:
        """Write the report as JSON: the fields, `used`, `counts`, and `bad` as a list of {id, path, reason, detail}."""
        write_json(path, {
            "root": self.root, "split": self.split, "found": self.found, "used": self.used, "counts": self.counts,
            "converted": self.converted, "unused": dict(sorted(self.unused.items())), "notes": self.notes,
            **self.tables, "bad": [vars(item) for item in self.bad],
        })

    def raise_if_any(self) -> None:
        """Refuse the first bad item.

        Raises:
            MusiccmError: There is one.
        """
        if self.bad:
            item = self.bad[0]
            raise MusiccmError(f"{item.path}: {item.reason} ({item.detail}). Repair or remove it, or leave out strict "
                               "to go on without it")

    def raise_if_above(self, max_bad_fraction: float, report_path: Path | None) -> None:
        """Refuse a corpus of which too much is bad.

        Args:
            max_bad_fraction: Largest share of bad items that is accepted.
            report_path: Where the full list lies, for the message.

        Raises:
            MusiccmError: The share is larger.
        """
        if len(self.bad) <= max_bad_fraction * self.examined:
            return
        first = "; ".join(f"{item.path}: {item.reason} ({item.detail})" for item in self.bad[:3])
        more = f"; all of them: {report_path}" if report_path else ""
        raise MusiccmError(
            f"{self}: more than the accepted {max_bad_fraction:.0%} are bad. First: {first}{more}. "
            "Repair or remove them; an experiment may accept more by data.init_args.max_bad_fraction"
        )

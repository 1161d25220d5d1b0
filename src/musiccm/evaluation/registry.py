"""The metrics: what each is called, which direction is better, what it looks at and what it needs.

One row a metric. The suite, the options of commands and callback, tables, plots and docs/metrics.md follow from it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal, NamedTuple

from musiccm.errors import MusiccmError
from musiccm.metrics.attributes import AttributeAccuracy
from musiccm.metrics.clips import ClipMetric
from musiccm.metrics.coverage import Coverage
from musiccm.metrics.extrapolated import FrechetInfinity
from musiccm.metrics.frechet import FrechetDistance
from musiccm.metrics.inception import InceptionScore
from musiccm.metrics.kernel import KernelDistance
from musiccm.metrics.kl import KLDivergence
from musiccm.metrics.mauve import Mauve
from musiccm.metrics.real_audio import RealAudioSimilarity
from musiccm.metrics.text_audio import TextAudioSimilarity
from musiccm.similarity.sim_aa import SimAA

Direction = Literal["lower", "higher"]
#: What a metric compares: the two sets; the generated set with itself; pairs of clips of one id; a clip with its
#: caption; a clip with the real clip of its id, by CLAP; a clip with the training clips; a clip with its attributes;
#: none of these, but how the clips were made; a model with the floor and with other models; clips of one caption with
#: each other.
Scope = Literal["sets", "generated", "pairs", "text", "real", "training", "attributes", "cost", "comparison",
                "noises"]
#: What a metric takes beside clips: rows of embeddings, class logits, CLAP's embeddings, captions, ...
Need = Literal["rows", "logits", "captions", "real clips", "training clips", "attributes", "generation", "a floor",
               "many noises"]


class Column(NamedTuple):
    """A number that a metric gives.

    Args:
        key: Its key in a row of results, with `<net>`, `<gallery>` or `<group>` where it has several.
        value: Its key in what the metric's `compute` returns.
        head: How tables call it, where they call it otherwise than by its key; `{}` is what stands for `<group>`.
        digits: Behind the point, in tables of text.
        beside: Not shown alone: the deviation or the chance of another column, or a part of it.
    """

    key: str
    value: str
    head: str | None = None
    digits: int = 2
    beside: bool = False


@dataclass(frozen=True)
class MetricRow:
    """One metric.

    Args:
        name: Its name, which options and tables' keys begin with.
        scope: What it compares.
        better: Which direction is better.
        needs: What it takes.
        columns: What it gives.
        make: Makes the metric; of scope `sets`, `generated` and `pairs` one for each network, with
            `reset_real_features=False`: the reference is kept while models come and go. None for what is measured while
            clips are made, or taken from the sets of several models (`comparison.py`, `spread.py`).
        optional: What the option that asks for it says; None for a metric that is always taken.
        slow: Left out of validations.
        log_scale: Whether plots have it on a logarithmic axis; None draws no plot.
    """

    name: str
    scope: Scope
    better: Direction
    needs: Need
    columns: tuple[Column, ...]
    make: Callable[..., ClipMetric] | None = None
    optional: str | None = None
    slow: bool = False
    log_scale: bool | None = None


METRICS: tuple[MetricRow, ...] = (
    MetricRow("fd", "sets", "lower", "rows", (Column("fd_<net>", "fd"),), FrechetDistance,
              log_scale=True),
    MetricRow("kad", "sets", "lower", "rows", (Column("kad_<net>", "kad", "KAD"),), KernelDistance,
              "the kernel distance, which small sets do not bias", log_scale=False),
    MetricRow("fd_inf", "sets", "lower", "rows", (Column("fd_inf_<net>", "fd_inf"),),
              FrechetInfinity, "the Frechet distance extrapolated to infinite n", slow=True),
    MetricRow("mauve", "sets", "higher", "rows", (Column("mauve_<net>", "mauve", digits=3),), Mauve,
              "MAUVE, the overlap of histograms over common clusters", log_scale=False),
    MetricRow("coverage", "sets", "higher", "rows",
              (*(Column(f"{name}_<net>", name, name, 3) for name in ("coverage", "density", "precision", "recall")),
               Column("coverage_<net>_expected", "expected", beside=True)),
              Coverage, "coverage, density, precision and recall by nearest neighbours",
              log_scale=False),
    MetricRow("excess_fd", "comparison", "lower", "a floor",
              (Column("excess_fd_<net>", "", "excess FD"), Column("floor_fd_<net>", "", beside=True)), log_scale=True),
    MetricRow("spread", "noises", "higher", "many noises", (Column("spread_<net>", "", "spread", 3),), log_scale=False),
    MetricRow("is", "generated", "higher", "logits",
              (Column("is_<net>_mean", "is_mean", "IS"), Column("is_<net>_std", "is_std", beside=True)),
              partial(InceptionScore, clips_a_split=2)),
    MetricRow("kl", "pairs", "lower", "logits",
              (Column("kl_<net>", "kl", "KL", 3), Column("kl_<net>_exact", "kl_exact", "KL exact", 3)),
              KLDivergence),
    MetricRow("ta", "text", "higher", "captions",
              (Column("ta_similarity", "ta_similarity", "TA", 3), Column("clap_t", "clap_t", "CLAP_T", beside=True)),
              TextAudioSimilarity),
    MetricRow("ra", "real", "higher", "real clips",
              (Column("ra_similarity", "ra_similarity", "RA", 3), Column("clap_a", "clap_a", "CLAP_A", beside=True)),
              RealAudioSimilarity),
    MetricRow("sim_aa", "training", "lower", "training clips",
              (Column("sim_aa_90<gallery>", "sim_aa_90", "SIM@90", 3),
               Column("sim_aa_95<gallery>", "sim_aa_95", "SIM@95", 3)), SimAA),
    MetricRow("acc", "attributes", "higher", "attributes",
              (Column("acc_<group>", "acc_<group>", "{}"),
               Column("acc_<group>_chance", "acc_<group>_chance", beside=True)), AttributeAccuracy),
    MetricRow("network_calls", "cost", "lower", "generation", (Column("network_calls", "", "calls", 0),)),
    MetricRow("latency", "cost", "lower", "generation",
              (Column("latency_s", "", "s/clip", 3), Column("latency_<part>_s", "", beside=True))),
)
#: Networks give rows, and some of them logits; a metric over these is taken once for each network.
NETWORK_SCOPES: tuple[Scope, ...] = ("sets", "generated", "pairs")
ARROWS: Mapping[str, str] = {"lower": "↓", "higher": "↑"}
#: What of a row of results is no metric: which model it is of, and how many clips stand behind it.
_ABOUT = re.compile(r"(model|steps|decoder|sampler|guidance_scale|equal_calls_teacher|from_cache|n|(n|rows|draws)_.+"
                    r"|latency_batch(es)?)")
#: What stands beside a number of a network: its interval, what the number of clips adds to it, and its ratios.
_BESIDE = re.compile(r"(?P<key>.+?)"
                     r"(?P<suffix>_bias|_equal_calls_teacher|(_(equal_calls_|real_)?ratio)?(_low|_high|_why)?)")
_BLANKS = {"<net>": r"(?P<net>[a-z0-9_]+)", "<gallery>": r"(?P<gallery>(?:_.+)?)", "<group>": r"(?P<group>.+)",
           "<part>": r"(?P<part>.+)"}


class Found(NamedTuple):
    """What a key of a row of results stands for.

    Args:
        metric: The metric.
        column: Which of its numbers.
        of: The network, the gallery (with its underscore) or the group; empty where there is one only.
    """

    metric: MetricRow
    column: Column
    of: str


def metric_row(name: str) -> MetricRow:
    """A metric by its name.

    Raises:
        MusiccmError: There is none of this name.
    """
    for row in METRICS:
        if row.name == name:
            return row
    raise MusiccmError(f"metrics: expected names among {', '.join(row.name for row in METRICS)}, found {name!r}")


def metrics_of(*scopes: Scope) -> Iterator[MetricRow]:
    """The metrics of some scopes, in the order of the table."""
    return (row for row in METRICS if row.scope in scopes)


def optional_metrics() -> list[MetricRow]:
    """The metrics that are taken only where they are asked for."""
    return [row for row in METRICS if row.optional is not None]


def keys_of(row: MetricRow, network: str) -> dict[str, str]:
    """The keys of a network's metric.

    Args:
        row: The metric.
        network: Whose.

    Returns:
        Key in a row of results to key in what the metric computes.
    """
    return {column.key.replace("<net>", network): column.value for column in row.columns}


def find(key: str) -> Found | None:
    """What a key of a row of results stands for; None for what is no metric, or of no metric that is known."""
    if _ABOUT.fullmatch(key):
        return None
    own, suffix = split_key(key)
    if suffix and (found := _find(own)) and "<net>" in found.column.key:
        return found._replace(column=found.column._replace(key=f"{found.column.key}{suffix}", beside=True))
    return _find(key)


def split_key(key: str) -> tuple[str, str]:
    """A key without what says that it stands beside a number, and that: `_low`, `_ratio`, `_ratio_high`, ..., or none.

    Args:
        key: Of a row of results.

    Returns:
        Both parts, which together are the key.
    """
    match = _BESIDE.fullmatch(key)
    assert match is not None  # the suffix may be empty
    return match["key"], match["suffix"]


def _find(key: str) -> Found | None:
    for pattern, row, column in _patterns(METRICS):
        if match := pattern.fullmatch(key):
            return Found(row, column, next(iter(match.groupdict().values()), ""))
    return None


def direction(key: str) -> Direction | None:
    """Which direction of a number is better; None where that is not known, or not said of it alone."""
    found = find(key)
    return None if found is None or found.column.beside else found.metric.better


def with_arrow(head: str, key: str) -> str:
    """A head of a table with an arrow to where the numbers of a key are better."""
    better = direction(key)
    return head if better is None else f"{head} {ARROWS[better]}"


def head_of(key: str, evaluator: str = "") -> str:
    """How a table calls a number, with an arrow to where it is better.

    Args:
        key: The number's key in the rows.
        evaluator: The network that the table is of; others' numbers are called by their whole key.
    """
    found = find(key)
    other = found is None or ("<net>" in found.column.key and found.of != evaluator) or (
        "<gallery>" in found.column.key and found.of)
    head = None if other or found is None else found.column.head
    return with_arrow(key if head is None or found is None else head.format(found.of), key)


def shown_keys(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """The keys of the numbers that a table of these rows has to show.

    What another version computed and this one knows nothing of is among them.

    Args:
        rows: Rows of results.

    Returns:
        Each key once, in the order of the rows: all but what a row says about itself, and what stands beside another
        number.
    """
    keys = dict.fromkeys(key for row in rows for key, value in row.items()
                         if value is None or (isinstance(value, int | float) and not isinstance(value, bool)))
    return [key for key in keys if not _ABOUT.fullmatch(key) and not ((found := find(key)) and found.column.beside)]


@cache
def _patterns(metrics: tuple[MetricRow, ...]) -> list[tuple[re.Pattern[str], MetricRow, Column]]:
    """Patterns of all keys; the one with the most letters of its own first, for `fd_inf_x` is no `fd_` of `inf_x`."""
    found = []
    for row in metrics:
        for column in row.columns:
            parts = re.split("(<[a-z]+>)", column.key)
            pattern = re.compile("".join(_BLANKS.get(part, re.escape(part)) for part in parts))
            found.append((sum(len(part) for part in parts if part not in _BLANKS), pattern, row, column))
    found.sort(key=lambda entry: -entry[0])
    return [entry[1:] for entry in found]

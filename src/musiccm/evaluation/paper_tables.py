"""Other papers' tables line by line: their figures, and which row of our results stands beside each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Line:
    """A line of a table.

    Args:
        said: Its first cells.
        ours: What of ours stands in it: a row of an evaluated run, such as `teacher_lm_proposed@10`, or a stage of a
            bundle, such as `dual_path`; None for none.
        theirs: Their figures, in the order of the columns; None where no figure of theirs is known.
    """

    said: tuple[str, ...]
    ours: str | None
    theirs: tuple[float | None, ...]


@dataclass(frozen=True)
class PaperTable:
    """A table of a paper.

    Args:
        title: What it is of.
        heads: Of the first cells.
        ours: Our columns, head and key in the row or record; `<net>` stands for the network of the run that is shown.
        theirs: Heads of their columns.
        lines: Its lines.
        of: Where our columns come from: rows of an evaluated run, or what stages of a bundle measured.
        notes: What must be said below it.
    """

    title: str
    heads: tuple[str, ...]
    ours: tuple[tuple[str, str], ...]
    theirs: tuple[str, ...]
    lines: tuple[Line, ...]
    of: Literal["rows", "stages"] = "rows"
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Paper:
    """The tables of a paper.

    Args:
        name: As `--protocol` takes it.
        said: Where they come from.
        tables: Its tables.
        notes: What must be said below all of them.
    """

    name: str
    said: str
    tables: tuple[PaperTable, ...]
    notes: tuple[str, ...]


#: No figure of theirs, for each column of two.
_NONE = (None, None)
#: Their FAD and MCC by angle schedule and steps; of others none are known.
_QUALITY: dict[tuple[str, int], tuple[float, float]] = {
    ("uniform", 10): (8.52, 0.45), ("uniform", 20): (6.31, 0.49),
    ("proposed", 5): (7.23, 0.49), ("proposed", 10): (5.93, 0.52), ("proposed", 20): (5.41, 0.53)}

MELODY = Paper(
    "melody", "MeLoDy, arXiv 2305.15719, and its appendix",
    (
        PaperTable(
            "Steps, angle schedule and tokens", ("tokens", "angles", "steps"),
            (("network calls", "network_calls"), ("FD ↓", "fd_<net>"), ("FD above the floor ↓", "excess_fd_<net>"),
             ("text-audio similarity ↑", "ta_similarity")),
            ("FAD ↓", "MCC ↑"),
            (Line(("real clips", "", ""), "floor@0", (None, 0.43)),
             *(Line((said, schedule, str(steps)), f"teacher_{tokens}_{schedule}@{steps}",
                    _QUALITY.get((schedule, steps), _NONE) if tokens == "lm" else _NONE)
               for tokens, said in (("oracle", "the real clip's"), ("lm", "language model's"))
               for schedule in ("uniform", "proposed") for steps in (5, 10, 20))),
            notes=("theirs are of MusicCaps; MCC is MuLan's similarity of music and caption, and .43 that of the data "
                   "set itself. Ours of real clips are those of the floor, through the audio VAE",
                   "network calls are the renderer's, two for a guided step; a clip's tokens, a call each, come on "
                   "top. The paper's saving of 99.6 % leaves its 25 tokens a second out and is not repeated here"),
        ),
        PaperTable(
            "Speed by steps, proposed angles", ("steps",),
            (("s a clip, all in all", "latency_s"), ("of these tokens", "latency_text_s"),
             ("renderer", "latency_sampler_s"), ("audio VAE", "latency_decode_s")),
            ("CPU, samples/s", "GPU, samples/s"),
            tuple(Line((str(steps),), f"teacher_lm_proposed@{steps}", theirs) for steps, theirs in (
                (5, (1472.0, 181_100.0)), (10, (893.0, 104_800.0)), (20, (498.0, 56_900.0)))),
            notes=("theirs are of sound at 24 kHz, the GPU a V100: 7.5, 4.4 and 2.4 times as fast as the music, and on "
                   "their CPU .06, .04 and .02 times. Ours are per clip of a batch (`latency_batch`); "
                   "`musiccm bench melody` has real-time factors",),
        ),
        PaperTable(
            "Networks of equal size as the renderer", ("network",),
            (("velocity error ↓", "mse"), ("SI-SNRi, dB ↑", "si_snri"), ("parameters", "parameters"),
             ("steps", "steps"), ("n", "n")),
            ("velocity error ↓", "SI-SNRi, dB ↑"),
            (Line(("dual path",), "dual_path", (0.12, 6.15)), Line(("U-Net, 1-D",), "unet", (0.13, 5.33)),
             Line(("U-Net, 2-D",), None, (0.15, 4.96))),
            "stages",
            ("their table 5: about 300 M parameters each, 100,000 steps of 96 clips, about 5,000 h of music. Ours are "
             "of held-out clips, measured alike by both stages (docs/dual_path.md)",),
        ),
        PaperTable(
            "Listeners: share that preferred MeLoDy, %", ("against",), (),
            ("musicality", "quality", "text"),
            (Line(("MusicLM",), None, (45.9, 53.5, 45.2)), Line(("Noise2Music",), None, (44.5, 56.4, 42.8))),
            notes=("777 comparisons by 7 music producers; theirs alone. `musiccm listen` makes such a test",),
        ),
    ),
    ("columns of theirs are marked so, and printed as they gave them. Data, networks behind the distances and sizes of "
     "the models are others than ours: what compares is how lines of one column stand to each other",
     "`not known`: no figure of theirs was found"),
)

PAPERS = {paper.name: paper for paper in (MELODY,)}

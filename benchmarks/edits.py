"""Continued and mended clips: do seams stand out, do drums and tempo go on? Against real music and a hard join.

The first half of held-out tracks of the demo world is continued to their length, and a range in the middle of the whole
tracks is made anew, under their own captions. A hard join puts a new clip of the same caption behind the half. Limits
are the 95th percentiles inside the tracks themselves. Whether drums go on is read by the bundle's tagger, before and
behind the seam; tempo by a beat tracker (librosa), within 6 % or by a factor of two. Both are shown beside what they
say of the tracks' own halves, and the tempo of tracks alone in whose halves the tracker finds one tempo.
"""

from __future__ import annotations

import torch
from torch import Tensor

from musiccm.audio.original import Original
from musiccm.commands._timing import row, student_of
from musiccm.data.demo.tracks import make_track
from musiccm.device import choose_device
from musiccm.embedders import load_embedder
from musiccm.embedders.events import tempo_of
from musiccm.long_form import Edited, SourceClip, seam_metrics
from musiccm.long_form.edit import FADE_S
from musiccm.long_form.seams import PERCENT, jumps
from musiccm.models.bundle import Bundle
from musiccm.models.bundle.student_record import is_student
from musiccm.pipeline import Pipeline

CLIPS, SEED = 24, 0
#: Of the student; a teacher has half of its default, for the time.
STEPS = 4
#: Seconds on either side of a seam: the seam itself, and whether the music behind it is as loud and alike.
SPANS_S = (0.1, 1.0)
#: Of the range that is made anew, in the model's windows.
MENDED = 0.5


def same_tempo(first: float, second: float) -> bool:
    """Within 6 %, octaves forgiven."""
    return any(abs(first * factor / second - 1) <= 0.06 for factor in (0.5, 1, 2))


class Listener:
    """What is read of a stretch of sound: the tagger's drums, the beat tracker's tempo."""

    def __init__(self, bundle: str) -> None:
        self.tagger = load_embedder("tagger", bundle=bundle)
        self.drums_G = list(self.tagger.groups["drums"])

    def drums(self, waveform_S: Tensor, rate_hz: int) -> int:
        logits_BG = self.tagger(waveform_S[None], rate_hz).logits_BG
        return int(logits_BG[0, self.drums_G].argmax())

    def tempo(self, waveform_S: Tensor, rate_hz: int) -> float:
        return tempo_of(waveform_S.numpy(), rate_hz)


def real_limits(tracks: list[Tensor], rate_hz: int, span_s: float) -> tuple[float, float]:
    """The 95th percentiles of level jump and spectral change inside tracks, over some seconds on either side."""
    found = [jumps(track_S[None], rate_hz, span_s, FADE_S) for track_S in tracks]
    level, change = (float(torch.cat(values).quantile(PERCENT / 100)) for values in zip(*found, strict=True))
    return level, change


@torch.no_grad()
def edits_of(pipeline: Pipeline, steps: int, index: int) -> tuple[Edited, Edited, Tensor, Tensor]:
    """A track's first half continued, the whole track mended, a clip of its own to join hard, and the track.

    Args:
        pipeline: The model.
        steps: Its sampling steps.
        index: Of the track.

    Returns:
        `(continued, mended, apart_S, track_S)`.
    """
    rate_hz, track = pipeline.sample_rate_hz, make_track(SEED, "test", index)
    whole_S, text, editor = torch.from_numpy(track.waveform_S), track.texts[0], pipeline.editor(steps, index)
    half = len(whole_S) // 2
    half_clip, whole_clip = (SourceClip.of(pipeline, Original(sound_S[None], rate_hz, "FLOAT"))
                             for sound_S in (whole_S[:half], whole_S))
    from_s = 0.4 * whole_clip.original.seconds
    return (editor.extend(half_clip, text, len(whole_S) / rate_hz),
            editor.inpaint(whole_clip, text, from_s, from_s + MENDED * pipeline.duration_s),
            pipeline([text], steps, index, seconds=(len(whole_S) - half) / rate_hz)[0], whole_S)


def read_of(made: tuple[Edited, Edited, Tensor, Tensor], rate_hz: int, listener: Listener) -> dict:
    """What is measured of one track's edits.

    Args:
        made: Of `edits_of`.
        rate_hz: Of its sound.
        listener: Reads drums and tempi.

    Returns:
        Of `continued`, `mended` (two seams) and `joined` by span the seams' `(level jump, spectral change, audible)`;
        `drums` and `tempo` before the seam, behind it, behind it in the track itself, and of the clip apart.
    """
    continued, mended, apart_S, whole_S = made
    half = continued.fades[0][1]
    joined_CS = torch.cat([whole_S[:half], apart_S])[None]
    sides = {"before": whole_S[:half], "behind": continued.waveform_CS[0, half:], "itself": whole_S[half:],
             "apart": apart_S}
    seams = {(name, span_s): [(seam.level_jump_db, seam.change_db, seam.audible)
                              for seam in seam_metrics(sound_CS, rate_hz, edited.fades, edited.kept, span_s)
                              if seam.span_s == span_s]
             for span_s in SPANS_S
             for name, sound_CS, edited in (("continued", continued.waveform_CS, continued),
                                            ("mended", mended.waveform_CS, mended), ("joined", joined_CS, continued))}
    return {"seams": seams, "drums": {name: listener.drums(sound_S, rate_hz) for name, sound_S in sides.items()},
            "tempo": {name: listener.tempo(sound_S, rate_hz) for name, sound_S in sides.items()}}


def share(values: list[bool]) -> list[float]:
    """As a figure of a row; none of none."""
    return [sum(values) / len(values)] if values else []


def summed(name: str, found: list[dict], limits: dict[float, tuple[float, float]]) -> list[dict]:
    """The rows of one model.

    Args:
        name: Of the model.
        found: Of `read_of`, a track each.
        limits: Of `real_limits`, by span.

    Returns:
        The rows.
    """
    rows = []
    for edit in ("continued", "mended"):
        for span_s in SPANS_S:
            seams, joined = ([seam for one in found for seam in one["seams"][kind, span_s]]
                             for kind in (edit, "joined"))
            if not seams:  # sound that is shorter
                continue
            for place, said in ((0, "level jump"), (1, "spectral change")):
                ours, theirs = ([seam[place] for seam in side] for side in (seams, joined))
                limit, case = limits[span_s][place], f"{name}, {edit}: {said} over {span_s:g} s"
                rows.append(row(f"{case}, against a hard join", ours, theirs, "dB"))
                rows.append(row(f"{case}, share beyond real music's 95th percentile of {limit:.1f} dB",
                                share([value > limit for value in ours]), [1 - PERCENT / 100], "", 1.0))
            rows.append(row(f"{name}, {edit}: share that stands out of the clip over {span_s:g} s, against a hard join",
                            share([seam[2] for seam in seams]), share([seam[2] for seam in joined]), ""))
    drums = [one["drums"] for one in found]
    tempi = [one["tempo"] for one in found if same_tempo(one["tempo"]["before"], one["tempo"]["itself"])]
    for said, ones, same in ((f"drums go on, share of {len(drums)}", drums, int.__eq__),
                             (f"tempo goes on, share of {len(tempi)}", tempi, same_tempo)):
        ours, apart, itself = (share([bool(same(one["before"], one[side])) for one in ones])
                               for side in ("behind", "apart", "itself"))
        if ours:
            rows.append(row(f"{name}, continued: {said}, against a hard join", ours, apart, "", None, False))
            rows.append(row(f"{name}, continued: {said}, against the track itself", ours, itself, "", 0.8, False))
    return rows


def run(bundle: str) -> list[dict]:
    return measured(models_of(bundle), bundle)


def models_of(bundle: str) -> dict[str, tuple[str, int]]:
    """The bundle's student, where one is packaged, and the bundle: each named by what its scheduler says it is.

    Args:
        bundle: Name, directory or hub id.

    Returns:
        Of `student` and `teacher` those that there are: bundle and sampling steps.
    """
    models = {}
    for path in dict.fromkeys((student_of(bundle), bundle)):
        read = Bundle.from_pretrained(path, ["scheduler"])
        student = is_student(read.scheduler_config)
        models["student" if student else "teacher"] = (path, STEPS if student else read.kind.steps // 2)
    return models


def measured(models: dict[str, tuple[str, int]], bundle: str) -> list[dict]:
    """The rows of some models.

    Args:
        models: Of each its bundle and its sampling steps.
        bundle: Whose tagger reads drums.
    """
    rows, listener = [], Listener(bundle)
    for name, (path, steps) in models.items():
        pipeline = Pipeline.from_pretrained(path).to(choose_device("auto"))
        rate_hz = pipeline.sample_rate_hz
        tracks = [torch.from_numpy(make_track(SEED, "test", index).waveform_S) for index in range(2 * CLIPS)]
        limits = {span_s: real_limits(tracks, rate_hz, span_s) for span_s in SPANS_S}
        found = [read_of(edits_of(pipeline, steps, index), rate_hz, listener) for index in range(CLIPS)]
        rows += summed(name, found, limits)
    return rows

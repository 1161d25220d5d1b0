"""Continued and mended clips: do seams stand out, do drums and tempo go on? Against real music and a hard join.

The first half of held-out tracks of the demo world is continued to their length, and a range in the middle of the whole
tracks is made anew, under their own captions. A hard join puts a new clip of the same caption behind the half. Limits
are the 95th percentiles inside the tracks themselves. Whether drums go on is read by the bundle's tagger, before and
behind the seam; tempo by a beat tracker (librosa), within 6 % or by a factor of two. Both are shown beside what they say
of the tracks' own halves, and the tempo of tracks alone in whose halves the tracker finds one tempo.
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
from musiccm.long_form import SourceClip
from musiccm.long_form.edit import FADE_S
from musiccm.long_form.seams import PERCENT, decibel_mel, jumps, seam_metrics
from musiccm.pipeline import Pipeline

CLIPS, SEED = 24, 0
#: Of the student, and of the teacher: half of its default, for the time.
STEPS, TEACHER_STEPS = 4, 25
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


def real_limits(tracks: list[Tensor], rate_hz: int) -> tuple[float, float]:
    """The 95th percentiles of level jump and spectral change inside tracks."""
    found = [jumps(decibel_mel(track_S[None], rate_hz), round(FADE_S * 100)) for track_S in tracks]
    level, change = (float(torch.cat(values).quantile(PERCENT / 100)) for values in zip(*found, strict=True))
    return level, change


@torch.no_grad()
def measure(pipeline: Pipeline, steps: int, listener: Listener, clips: int = CLIPS) -> list[dict]:
    """Continue and mend tracks.

    Args:
        pipeline: The model.
        steps: Its sampling steps.
        listener: Reads drums and tempi.
        clips: Tracks.

    Returns:
        A track each: seams `continued`, `mended` (two) and `joined`, each `(level jump, spectral change, stands out)`;
        `drums` and `tempo` before the seam, behind it, behind it in the track, and behind a hard join.
    """
    rows = []
    rate_hz = pipeline.sample_rate_hz
    for index in range(clips):
        track = make_track(SEED, "test", index)
        whole_S, text = torch.from_numpy(track.waveform_S), track.texts[0]
        half = len(whole_S) // 2
        editor = pipeline.editor(steps, index)
        half_clip, whole_clip = (SourceClip.of(pipeline, Original(sound_S[None], rate_hz, "FLOAT"))
                                 for sound_S in (whole_S[:half], whole_S))
        continued = editor.extend(half_clip, text, len(whole_S) / rate_hz)
        middle = 0.4 * whole_clip.original.seconds
        mended = editor.inpaint(whole_clip, text, middle, middle + MENDED * pipeline.duration_s)
        apart_S = pipeline([text], steps, index, seconds=(len(whole_S) - half) / rate_hz)[0]
        fade = continued.fades[0]
        joined_CS = torch.cat([whole_S[: fade[1]], apart_S])[None]
        sides = {"before": whole_S[:half], "behind": continued.waveform_CS[0, half:], "itself": whole_S[half:],
                 "apart": apart_S}
        rows.append({
            "text": text,
            **{name: [(seam.level_jump_db, seam.change_db, seam.audible)
                      for seam in seam_metrics(sound_CS, rate_hz, fades, kept)]
               for name, sound_CS, fades, kept in (
                   ("continued", continued.waveform_CS, continued.fades, continued.kept),
                   ("mended", mended.waveform_CS, mended.fades, mended.kept),
                   ("joined", joined_CS, continued.fades, continued.kept))},
            "drums": {name: listener.drums(sound_S, rate_hz) for name, sound_S in sides.items()},
            "tempo": {name: listener.tempo(sound_S, rate_hz) for name, sound_S in sides.items()},
        })
    return rows


def share(values: list[bool]) -> list[float]:
    """As a figure of a row; none of none."""
    return [sum(values) / len(values)] if values else []


def summed(name: str, found: list[dict], limits: tuple[float, float]) -> list[dict]:
    """The rows of one model."""
    rows = []
    for edit in ("continued", "mended"):
        seams, joined = ([seam for one in found for seam in one[kind]] for kind in (edit, "joined"))
        for place, said, limit in ((0, "level jump", limits[0]), (1, "spectral change", limits[1])):
            ours, theirs = ([seam[place] for seam in side] for side in (seams, joined))
            case = f"{name}, {edit}: {said} at the seam"
            rows.append(row(f"{case}, against a hard join", ours, theirs, "dB"))
            rows.append(row(f"{case}, 95th percentile, against that inside real music",
                            [float(torch.tensor(ours).quantile(PERCENT / 100))], [limit], "dB", 1.0))
            over = share([value > limit for value in ours])
            rows.append(row(f"{case} beyond that percentile of real music, share of {len(ours)}", over, [0.05], ""))
        rows.append(row(f"{name}, {edit}: warned of, share of {len(seams)}, against a hard join",
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
    models = {"student": (student_of(bundle), STEPS)}
    if student_of(bundle) != bundle:
        models["teacher"] = (bundle, TEACHER_STEPS)
    rows = []
    for name, (path, steps) in models.items():
        pipeline = Pipeline.from_pretrained(path).to(choose_device("auto"))
        tracks = [torch.from_numpy(make_track(SEED, "test", index).waveform_S) for index in range(2 * CLIPS)]
        rows += summed(name, measure(pipeline, steps, Listener(bundle), CLIPS), real_limits(tracks,
                                                                                         pipeline.sample_rate_hz))
    return rows

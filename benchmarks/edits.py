"""Seams of continued and mended clips at four steps, against joining clips that know nothing of each other.

Held-out tracks of the demo world are continued and mended under their own captions and turned into sound by each
decoder of the bundle. The baseline puts a new clip of the same caption behind the track's latents, or into the range,
and is decoded alike.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor

from musiccm.audio.io import write_audio
from musiccm.commands._timing import row, student_of
from musiccm.data.demo.tracks import make_track
from musiccm.device import choose_device
from musiccm.evaluation.bundle_quality import decoders
from musiccm.long_form import SeamMetrics, decode_whole, read_clip, seam_metrics
from musiccm.long_form.edit import Edited
from musiccm.models.bundle import Bundle
from musiccm.pipeline import Pipeline

STEPS, CLIPS = 4, 24


def joined(pipeline: Pipeline, edited: Edited, text: str, seed: int) -> Tensor:
    """Latents with the same kept frames, the others from a clip of its own."""
    cond_BD = pipeline.conditioner.text([text])
    z = edited.z_CTF.clone()
    new = torch.nonzero(~edited.kept_T)[:, 0]
    z[:, new] = pipeline.latents(cond_BD, [seed], STEPS)[0][:, : len(new)]
    return z


@torch.no_grad()
def run(bundle: str) -> list[dict]:
    parts = Bundle.from_pretrained(student_of(bundle))
    sounding = {name: Pipeline(parts, name).to(choose_device("auto")) for name in decoders(parts)}
    pipeline = sounding["original"]
    found: dict[tuple[str, str], list[tuple[SeamMetrics, SeamMetrics]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for index in range(CLIPS):
            track = make_track(3, "test", index)
            path = Path(folder) / f"{index}.wav"
            write_audio(path, torch.from_numpy(track.waveform_S), pipeline.sample_rate_hz)
            clip, text, editor = read_clip(pipeline, path), track.texts[0], pipeline.editor(STEPS, index)
            whole_s = clip.samples / pipeline.sample_rate_hz
            for name, edited in (
                ("continued", editor.extend(clip, text, whole_s + pipeline.duration_s / 2)),
                ("mended", editor.inpaint(clip, text, 0.4 * whole_s, 0.4 * whole_s + 0.5 * pipeline.duration_s)),
            ):
                hard = joined(pipeline, edited, text, index)
                for decoder, by in sounding.items():
                    ours, theirs = (seam_metrics(decode_whole(by, z)[: len(edited.waveform_S)], edited.seams_s,
                                                 parts.mel) for z in (edited.z_CTF, hard))
                    if ours is not None and theirs is not None:
                        found.setdefault((name, decoder), []).append((ours, theirs))
    rows = []
    for (name, decoder), pairs in found.items():
        for key, said in (("level_jump_db", "level jump"), ("flux", "spectral change")):
            ours, theirs, usual = ([getattr(side, k) for side in sides] for k, sides in (
                (key, [a for a, _ in pairs]), (key, [b for _, b in pairs]), (f"usual_{key}", [a for a, _ in pairs])))
            case = f"{name}, {decoder} decoder: {said} at the seam"
            rows.append(row(f"{case}, against a hard join", ours, theirs, "dB"))
            rows.append(row(f"{case}, against anywhere else", ours, usual, "dB"))
    return rows

"""Share of fresh noise between the steps of a distilled student: the Frechet distance at each, on held-out captions.

fd_tagger of decoded mels, without vocoder, from the captions' own tracks, which are neither in training nor in the
reported test set; a row's figure is the median over several draws of the noise. The baseline is gamma 1.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from musiccm.commands._timing import row, student_of
from musiccm.commands.bench import load
from musiccm.data.demo.tracks import make_track
from musiccm.device import choose_device
from musiccm.evaluation.bundle_quality import frechet
from musiccm.pipeline import Pipeline
from musiccm.samplers import sample_seeds

CLIPS, DRAWS, BATCH = 160, 2, 16
GAMMAS = {2: (1.0, 0.6, 0.3, 0.0), 4: (1.0, 0.8, 0.7, 0.6, 0.5, 0.3, 0.0), 8: (1.0, 0.6, 0.3, 0.0)}

long = load(Path(__file__).with_name("long.py"))


@torch.no_grad()
def run(bundle: str) -> list[dict]:
    pipeline = Pipeline.from_pretrained(student_of(bundle), decoder="original").to(choose_device("auto"))
    codec, tagger = pipeline.codec, pipeline.bundle.evaluators["tagger"].to(pipeline.device)
    real_ED = long.real_rows(pipeline, pipeline.latent_shape[1] * codec.downsampling, CLIPS)
    cond_BD = pipeline.conditioner.text([make_track(1, "test", index).texts[0] for index in range(CLIPS)])

    def distance(steps: int, gamma: float, draw: int) -> float:
        rows: list[Tensor] = []
        for seeds, cond in zip(torch.tensor(sample_seeds(draw, CLIPS)).split(BATCH), cond_BD.split(BATCH), strict=True):
            z_BCTF = pipeline.latents(cond, seeds.tolist(), steps, sampler={"name": "lcm", "gamma": gamma})
            rows += [tagger(codec.decode_mel(z[None]))[0] for z in z_BCTF]  # a CPU is fastest with one
        return frechet(real_ED, torch.cat(rows))

    found = {(steps, gamma): [distance(steps, gamma, draw) for draw in range(DRAWS)]
             for steps, gammas in GAMMAS.items() for gamma in gammas}
    return [row(f"{steps} steps, gamma {gamma:g}, {CLIPS} clips: fd_tagger", distances, found[steps, 1.0], "")
            for (steps, gamma), distances in found.items()]

"""Seams of minute-long pieces at four steps: ways of fusing windows, against windows that know nothing of each other.

By the bundle's tagger on decoded mels; text similarity and tempo of the first and the last vocoded window. The other
baseline is MultiDiffusion (arXiv 2302.08113) as published: crops are averaged after the sampler's step, noise and all.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from musiccm.audio import LogMel
from musiccm.commands._quality import frechet
from musiccm.commands._timing import row
from musiccm.data.demo.tracks import Track, make_track
from musiccm.diffusion import to_eps, to_x0
from musiccm.long_form import MelDecoder
from musiccm.long_form.compose import Score
from musiccm.long_form.seams import jumps
from musiccm.pipeline import Pipeline, sample_seeds
from musiccm.samplers import INITIAL, FrameNoise, SharedProcess, sample_shared
from musiccm.samplers.shared_restricted import CondOf

STEPS, SECONDS, PIECES, REAL = 4, 60.0, 4, 300
#: Clips behind each Frechet distance: as many as independent windows have seams, for the distance falls with n.
JUDGED_CLIPS = 40
OVERLAPS = {"uniform": (0.25, 0.5), "triangular": (0.25, 0.5), "swap": (0.25, 0.5)}
#: What is judged around a seam, as a part of the model's window; seams lie closer where windows overlap more.
JUDGED = 0.5
STUDENTS = {"musiccm-tiny": "musiccm-tiny-student"}


@torch.no_grad()
def multidiffusion(process: SharedProcess, cond_of: CondOf, fuse: str) -> Tensor:
    """`fuse="outputs"`: each crop is re-noised with noise of its own, then averaged, which leaves 1/sqrt(n) of it.
    `fuse="eps"`: the predicted noise is averaged before one shared step; x0 is affine in it."""
    crops, stepper = process.crops, process.stepper
    assert crops.length is not None and crops.count is not None
    starts = [crops.start(i) for i in range(crops.count)]
    cond_ND = torch.stack([cond_of(i) for i in range(crops.count)])
    own = [FrameNoise(process.noise.seed // 1000 + i, process.noise.shape_CTF) for i in range(crops.count)]
    share_NW = torch.stack([crops.share(i, torch.ones(crops.window)) for i in range(crops.count)])
    z = process.fresh(INITIAL, 0, crops.length)
    for step, t in enumerate(stepper.timesteps):
        last = step + 1 == len(stepper.timesteps)
        z_BCTF = torch.stack([z[:, start : start + crops.window] for start in starts])
        t_B = torch.full((crops.count,), t, dtype=torch.long)
        alpha, sigma = stepper.schedule.alpha(t_B), stepper.schedule.sigma(t_B)
        values = stepper.f(z_BCTF, t_B, cond_ND)
        if fuse == "eps":
            values = to_eps("sample", values, z_BCTF, alpha, sigma)
        elif not last:
            values = torch.stack([stepper.renoise(step, x0, crop, noise(step, 0, crops.window))
                                  for x0, crop, noise in zip(values, z_BCTF, own, strict=True)])
        fused = torch.zeros_like(z)
        for start, share, value in zip(starts, share_NW, values, strict=True):
            fused[:, start : start + crops.window] += share[:, None] * value
        if fuse == "eps":
            x0 = to_x0("epsilon", fused[None], z[None], alpha[:1], sigma[:1])[0]
            fused = x0 if last else stepper.renoise(step, x0, z, process.fresh(step, 0, crops.length))
        z = fused
    return z


class Judge:
    """Figures of a set of pieces that were made in one way."""

    def __init__(self, pipeline: Pipeline, tracks: list[Track], real_ED: Tensor) -> None:
        self.pipeline, self.tracks, self.real_ED = pipeline, tracks, real_ED
        self.window = pipeline.latent_shape[1]
        self.tagger = pipeline.bundle.evaluators["tagger"]
        self.log_mel = LogMel(pipeline.bundle.mel)
        self.tempo = self.tagger.groups.get("tempo", [])

    def piece(self, track: Track, seed: int, overlap: float, fusion: str, sample: Callable) -> tuple[Tensor, Score]:
        stepper = self.pipeline.stepper(STEPS)
        score = Score.of(self.pipeline, track.texts[0], SECONDS, stepper, sample_seeds(seed, 1)[0], overlap, fusion)
        return sample(score.process, score.cond_of), score

    @torch.no_grad()
    def figures(self, overlap: float, fusion: str, sample: Callable = sample_shared) -> dict[str, list[float]]:
        codec, per, window = self.pipeline.codec, self.pipeline.codec.downsampling, self.window
        half = int(window * JUDGED / 2) * per
        seam_rows, middle_rows = [], []
        out: dict[str, list[float]] = {name: [] for name in ("level", "usual_level", "flux", "usual_flux", "detail",
                                                             "text_first", "text_last", "same_tempo")}
        for seed, track in enumerate(self.tracks):
            z, score = self.piece(track, seed, overlap, fusion, sample)
            crops = score.process.crops
            count = crops.count or 0
            # the middle of what two neighbours share; half way between two of those
            seams = [(crops.start(i) + crops.start(i - 1) + window) / 2 for i in range(1, count)]
            middles = [(a + b) / 2 for a, b in zip(seams, seams[1:], strict=False)]
            mel_MN = torch.cat(list(MelDecoder(codec, window, z.shape[1]).push(z)))
            for places, rows in ((seams, seam_rows), (middles, middle_rows)):
                cut = [mel_MN[int(p * per) - half : int(p * per) + half] for p in places]
                rows += [piece for piece in cut if len(piece) == 2 * half]
            level, flux = jumps(mel_MN)
            at = torch.tensor([int(p * per) - 10 for p in seams])
            for name, values in (("level", level), ("flux", flux)):
                out[name] += values[at].tolist()
                out[f"usual_{name}"].append(float(values.median()))
            # fine structure: variance of the first difference along time, over that of the frames themselves
            out["detail"].append(float(z.diff(dim=1).var() / z.var()))
            ends = [mel_MN[: window * per], mel_MN[-window * per :]]
            text = self.pipeline.conditioner.text([track.texts[0]])
            sounds = torch.cat([codec.vocode(end[None]) for end in ends])
            heard = self.pipeline.conditioner.audio(sounds, self.pipeline.sample_rate_hz, "mean")
            first, last = F.cosine_similarity(heard, text).tolist()
            out["text_first"].append(first)
            out["text_last"].append(last)
            if self.tempo:
                windows = mel_MN[: len(mel_MN) // (window * per) * window * per].unflatten(0, (-1, window * per))
                classes = self.tagger(windows)[1][:, self.tempo].argmax(1)
                out["same_tempo"].append(float((classes == classes.mode().values).float().mean()))
        n = min(len(seam_rows), len(middle_rows), JUDGED_CLIPS)
        pick = [torch.linspace(0, len(rows) - 1, n).long() for rows in (seam_rows, middle_rows)]
        for name, rows, chosen in (("fd_seam", seam_rows, pick[0]), ("fd_middle", middle_rows, pick[1])):
            out[name] = [frechet(self.real_ED, self.tagger(torch.stack([rows[i] for i in chosen]))[0])] * n
        return out


def real_rows(pipeline: Pipeline) -> Tensor:
    """The tagger's embeddings of as many held-out tracks, as long as what is judged around a seam."""
    log_mel, tagger = LogMel(pipeline.bundle.mel), pipeline.bundle.evaluators["tagger"]
    frames = 2 * int(pipeline.latent_shape[1] * JUDGED / 2) * pipeline.codec.downsampling
    rows = []
    for index in range(REAL):
        waveform = torch.from_numpy(make_track(1, "test", index).waveform_S).float()
        waveform = 0.5 * waveform / waveform.abs().max()
        mel_MN = log_mel(waveform)
        start = index * 37 % (len(mel_MN) - frames)
        rows.append(mel_MN[start : start + frames])
    with torch.no_grad():
        return torch.cat([tagger(torch.stack(part))[0] for part in (rows[i : i + 50] for i in range(0, REAL, 50))])


NAMES = {
    "fd_seam": ("fd_tagger around seams", "", True), "fd_middle": ("fd_tagger between seams", "", True),
    "level": ("level jump at seams", "dB", True), "usual_level": ("level jump anywhere", "dB", True),
    "flux": ("spectral change at seams", "dB", True), "usual_flux": ("spectral change anywhere", "dB", True),
    "detail": ("variance of first differences of z", "of z's", False),
    "text_first": ("text-audio, first window", "cosine", False),
    "text_last": ("text-audio, last window", "cosine", False),
    "same_tempo": ("windows of the commonest tempo class", "of 1", False),
}


def run(bundle: str) -> list[dict]:
    pipeline = Pipeline.from_pretrained(STUDENTS.get(bundle, bundle))
    tracks = [make_track(2, "test", index) for index in range(PIECES)]
    judge = Judge(pipeline, tracks, real_rows(pipeline))
    alone = judge.figures(0.0, "uniform")

    def outputs(process: SharedProcess, cond_of: CondOf) -> Tensor:
        return multidiffusion(process, cond_of, "outputs")

    contenders = {"MultiDiffusion, overlap 0.5": judge.figures(0.5, "uniform", outputs)}
    for fusion, overlaps in OVERLAPS.items():
        for overlap in overlaps:
            contenders[f"{fusion}, overlap {overlap:g}"] = judge.figures(overlap, fusion)
    rows = []
    for key, (name, unit, lower) in NAMES.items():
        rows += [row(f"{name}: {contender}", figures[key], alone[key], unit, None, lower)
                 for contender, figures in contenders.items() if figures[key]]
    z, _ = judge.piece(tracks[0], 0, 0.5, "uniform", sample_shared)
    eps, _ = judge.piece(tracks[0], 0, 0.5, "uniform", lambda p, c: multidiffusion(p, c, "eps"))
    difference = float((z - eps).abs().max() / z.std())
    return [*rows, row("largest difference of uniform and eps-fusion", [difference], [], "of z's deviation")]

"""Long pieces at four steps: ways of fusing windows, against windows that know nothing of each other.

Seams by the bundle's tagger and by level and spectrum, on decoded mels of many short pieces, for a distance wants many
different ones; text similarity (vocoded) and tempo along a few pieces of a minute. The other baseline is MultiDiffusion
(arXiv 2302.08113) as published: crops are averaged after the sampler's step, noise and all. Mels are the original
decoder's, for the fast one makes none. At the end, what decoding a long piece in parts alters, for each decoder.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from musiccm.audio import LogMel
from musiccm.commands._timing import row, student_of
from musiccm.data.demo.tracks import make_track
from musiccm.device import choose_device
from musiccm.diffusion import to_eps, to_x0
from musiccm.evaluation.bundle_quality import decoders, frechet
from musiccm.long_form import MelDecoder, piece_decoder
from musiccm.long_form.piece import Piece
from musiccm.pipeline import Pipeline
from musiccm.samplers import INITIAL, Crops, FrameNoise, SharedProcess, sample_seeds, sample_shared
from musiccm.samplers.shared_restricted import CondOf

STEPS, REAL = 4, 300
#: (pieces, seconds) of those whose seams are measured, those followed over a minute, those decoded in parts and whole.
SHORT, LONG, DECODED = (24, 20.48), (4, 60.0), (4, 30.72)
OVERLAPS = {"uniform": (0.25, 0.5), "triangular": (0.25, 0.5), "swap": (0.25, 0.5)}
#: What is measured around a seam, as a part of the model's window; seams lie closer where windows overlap more.
SEAM_SHARE = 0.5
DECIBEL = 20.0 / math.log(10.0)


@torch.no_grad()
def multidiffusion(process: SharedProcess, cond_of: CondOf, fuse: str) -> Tensor:
    """`fuse="outputs"`: each crop is re-noised with noise of its own, then averaged, which leaves 1/sqrt(n) of it.
    `fuse="eps"`: the predicted noise is averaged before one shared step; x0 is affine in it."""
    crops, stepper = process.crops, process.stepper
    assert crops.length is not None and crops.count is not None
    starts = [crops.start(i) for i in range(crops.count)]
    cond_ND = torch.stack([cond_of(i) for i in range(crops.count)])
    own = [FrameNoise(process.noise.seed // 1000 + i, process.noise.shape_CTF) for i in range(crops.count)]
    share_NW = torch.stack([crops.share(i, torch.ones(crops.window)) for i in range(crops.count)]).to(process.device)
    z = process.fresh(INITIAL, 0, crops.length)
    for step, t in enumerate(stepper.timesteps):
        last = step + 1 == len(stepper.timesteps)
        z_BCTF = torch.stack([z[:, start : start + crops.window] for start in starts])
        t_B = torch.full((crops.count,), t, dtype=torch.long, device=process.device)
        alpha, sigma = stepper.process.alpha(t_B), stepper.process.sigma(t_B)
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


#: Mel frames on either side of a place over which level and spectrum are taken: 0.1 s at MusicLDM's hop.
SPAN_FRAMES = 10


def jumps(mel_MN: Tensor) -> tuple[Tensor, Tensor]:
    """Level jump and spectral change in decibels; entry i is of the border before frame `i + SPAN_FRAMES`."""
    spans_PN = mel_MN.unfold(0, SPAN_FRAMES, 1).mean(-1) * (20.0 / math.log(10.0))
    power_P = mel_MN.exp().square().sum(-1).unfold(0, SPAN_FRAMES, 1).mean(-1)
    level_P = 10.0 * power_P.clamp(min=1e-10).log10()
    return (level_P[SPAN_FRAMES:] - level_P[:-SPAN_FRAMES]).abs(), (
        spans_PN[SPAN_FRAMES:] - spans_PN[:-SPAN_FRAMES]).abs().mean(-1)


class Way(NamedTuple):
    """How a long piece is made."""

    overlap: float
    fusion: str
    sample: Callable[[SharedProcess, CondOf], Tensor] = sample_shared


def detail(z_CTF: Tensor, crops: Crops) -> list[list[float]]:
    """Fine structure: variance of z's first difference along time. First where both frames lie in two windows or more,
    then where in one alone; nothing where there is no such place."""
    starts_N1 = torch.tensor([crops.start(i) for i in range(crops.count or 0)])[:, None]
    first = torch.arange(z_CTF.shape[1] - 1)
    windows = ((starts_N1 <= first) & (first + 1 < starts_N1 + crops.window)).sum(0)
    return [[float(z_CTF.diff(dim=1)[:, there].var())] if there.any() else [] for there in (windows > 1, windows == 1)]


class Measures:
    """Metrics of sets of pieces, each made in one way."""

    def __init__(self, pipeline: Pipeline, real_ED: Tensor) -> None:
        self.pipeline, self.real_ED = pipeline, real_ED
        self.window = pipeline.latent_shape[1]
        self.tagger = pipeline.bundle.evaluators["tagger"]
        self.tempo = self.tagger.groups.get("tempo", [])

    def piece(self, index: int, seconds: float, way: Way) -> tuple[Tensor, Piece, str]:
        """Latents, layout and text of one piece; the same noise and text for every way."""
        text = make_track(2, "test", index).texts[0]
        stepper = self.pipeline.stepper(STEPS)
        piece = Piece.of(self.pipeline, text, seconds, stepper, sample_seeds(index, 1)[0], way.overlap, way.fusion)
        return way.sample(piece.process, piece.cond_of), piece, text

    def mel(self, z: Tensor) -> Tensor:
        return torch.cat(list(MelDecoder(self.pipeline.codec, self.window, z.shape[1]).push(z)))

    @torch.no_grad()
    def seams(self, way: Way) -> dict[str, list[float]]:
        per, window = self.pipeline.codec.downsampling, self.window
        half = int(window * SEAM_SHARE / 2) * per
        rows: dict[str, list[Tensor]] = {"fd_seam": [], "fd_middle": []}
        out: dict[str, list[float]] = {
            k: [] for k in ("level", "usual_level", "flux", "usual_flux", "detail_shared", "detail_alone")}
        for index in range(SHORT[0]):
            z, piece, _ = self.piece(index, SHORT[1], way)
            crops = piece.process.crops
            # the middle of what two neighbours share; half way between two of those
            seams = [(crops.start(i) + crops.start(i - 1) + window) / 2 for i in range(1, crops.count or 0)]
            middles = [(a + b) / 2 for a, b in zip(seams, seams[1:], strict=False)]
            mel_MN = self.mel(z)
            for key, places in (("fd_seam", seams), ("fd_middle", middles)):
                cut = [mel_MN[int(place * per) - half : int(place * per) + half] for place in places]
                rows[key] += [clip for clip in cut if len(clip) == 2 * half]
            level, flux = jumps(mel_MN)
            at = torch.tensor([int(place * per) - SPAN_FRAMES for place in seams])
            for name, values in (("level", level), ("flux", flux)):
                out[name] += values[at].tolist()
                out[f"usual_{name}"].append(float(values.median()))
            shared, lonely = detail(z, crops)
            out["detail_shared"] += shared
            out["detail_alone"] += lonely
        n = 2 * SHORT[0]  # independent windows have so many middles; the distance falls with n
        for key, clips in rows.items():
            chosen = torch.stack([clips[i] for i in torch.linspace(0, len(clips) - 1, n).long()])
            out[key] = [frechet(self.real_ED, self.tagger(chosen)[0])] * n
        return out

    @torch.no_grad()
    def minute(self, way: Way) -> dict[str, list[float]]:
        per, window, codec = self.pipeline.codec.downsampling, self.window, self.pipeline.codec
        out: dict[str, list[float]] = {k: [] for k in ("text_first", "text_last", "same_tempo")}
        for index in range(LONG[0]):
            z, _, text = self.piece(index, LONG[1], way)
            mel_MN = self.mel(z)
            sounds = torch.cat([codec.vocode(end[None]) for end in (mel_MN[: window * per], mel_MN[-window * per :])])
            found = self.pipeline.conditioner.audio(sounds, self.pipeline.sample_rate_hz, "mean")
            similar = F.cosine_similarity(found, self.pipeline.conditioner.text([text])).tolist()
            out["text_first"].append(similar[0])
            out["text_last"].append(similar[1])
            if self.tempo:
                windows = mel_MN[: len(mel_MN) // (window * per) * window * per].unflatten(0, (-1, window * per))
                classes = self.tagger(windows)[1][:, self.tempo].argmax(1)
                out["same_tempo"].append(float((classes == classes.mode().values).float().mean()))
        return out


    @torch.no_grad()
    def decoding(self) -> list[dict]:
        """What decoding a piece in parts alters: the windows of the VAE, beside windows set end to end, and the chunks
        of vocoder and fast decoder."""
        codec, window, per = self.pipeline.codec, self.window, self.pipeline.codec.downsampling
        errors: dict[str, list[list[float]]] = {name: [[], []] for name in ("mean", "rms", "border")}
        sounds: dict[str, list[float]] = {name: [] for name in decoders(self.pipeline.bundle)}
        spread = []
        for index in range(DECODED[0]):
            z, _, _ = self.piece(index, DECODED[1], Way(0.5, "swap"))
            whole, faded = codec.decode_mel(z[None])[0], self.mel(z)
            joined = torch.cat([codec.decode_mel(part[None])[0] for part in z.split(window, 1)])
            spread.append(DECIBEL * float(whole.std()))
            # a latent frame on either side of where the joined windows meet
            near = (torch.arange(per, len(whole) - per) + per) % (window * per) < 2 * per
            for side, mel_MN in enumerate((faded, joined)):
                error = DECIBEL * (mel_MN - whole).abs()
                errors["mean"][side].append(float(error.mean()))
                errors["rms"][side].append(float(error.square().mean().sqrt()))
                errors["border"][side].append(float(error[per:-per][near].mean()))
            for name, differences in sounds.items():
                by = self.pipeline.bundle.codec(name).to(self.pipeline.device)
                at_once = (by.vocode(faded[None]) if name == "original" else by.decode(z[None])).cpu()
                parts = piece_decoder(by, window, z.shape[1]).push(z)
                differences.append(float((parts - at_once[0]).abs().max()))
        said = {"mean": "mean difference", "rms": "root mean square", "border": "mean near the latter's borders"}
        rows = [row(f"VAE in windows, against the whole: {said[key]} (baseline: set end to end)", *sides, "dB")
                for key, sides in errors.items()]
        rows.append(row("of these mels: standard deviation", spread, [], "dB"))
        return rows + [row(f"{name} decoder: largest difference of sound in chunks and at once", found, [], "of 1")
                       for name, found in sounds.items()]


def real_rows(pipeline: Pipeline, frames: int, count: int) -> Tensor:
    """The tagger's embeddings of so many held-out tracks, a stretch of `frames` mel frames of each."""
    log_mel, tagger = LogMel(pipeline.bundle.mel), pipeline.bundle.evaluators["tagger"]
    rows = []
    for index in range(count):
        waveform = torch.from_numpy(make_track(1, "test", index).waveform_S).float()
        waveform = 0.5 * waveform / waveform.abs().max()
        mel_MN = log_mel(waveform)
        start = index * 37 % (len(mel_MN) - frames)
        rows.append(mel_MN[start : start + frames])
    with torch.no_grad():
        return torch.cat([tagger(torch.stack(part).to(pipeline.device))[0]
                          for part in (rows[i : i + 50] for i in range(0, count, 50))])


NAMES = {
    "fd_seam": ("fd_tagger around seams", "", True), "fd_middle": ("fd_tagger between seams", "", True),
    "level": ("level jump at seams", "dB", True), "usual_level": ("level jump anywhere", "dB", True),
    "flux": ("spectral change at seams", "dB", True), "usual_flux": ("spectral change anywhere", "dB", True),
    "detail_shared": ("variance of first differences of z where windows overlap", "", False),
    "detail_alone": ("variance of first differences of z elsewhere", "", False),
    "text_first": ("text-audio, first window", "cosine", False),
    "text_last": ("text-audio, last window", "cosine", False),
    "same_tempo": ("windows of the commonest tempo class", "of 1", False),
}


def ways() -> dict[str, Way]:
    def outputs(process: SharedProcess, cond_of: CondOf) -> Tensor:
        return multidiffusion(process, cond_of, "outputs")

    fused = {f"{fusion}, overlap {overlap:g}": Way(overlap, fusion)
             for fusion, overlaps in OVERLAPS.items() for overlap in overlaps}
    return {"independent": Way(0.0, "uniform"), "MultiDiffusion, overlap 0.5": Way(0.5, "uniform", outputs), **fused}


def run(bundle: str) -> list[dict]:
    pipeline = Pipeline.from_pretrained(student_of(bundle), decoder="original").to(choose_device("auto"))
    pipeline.bundle.evaluators["tagger"].to(pipeline.device)
    frames = 2 * int(pipeline.latent_shape[1] * SEAM_SHARE / 2) * pipeline.codec.downsampling
    measures = Measures(pipeline, real_rows(pipeline, frames, REAL))
    metrics = {name: measures.seams(way) | measures.minute(way) for name, way in ways().items()}
    alone = metrics.pop("independent")
    # these have no overlap; what overlaps are compared with is what windows have that nothing is fused with
    alone["detail_shared"] = alone["detail_alone"]
    rows = [row(f"{name}: {way}", found[key], alone[key], unit, None, lower)
            for key, (name, unit, lower) in NAMES.items() for way, found in metrics.items() if found[key]]
    for name, way in ways().items():
        mean = f"uniform, overlap {way.overlap:g}"  # its windows lie over the same music, so pieces can be paired
        if name in metrics and mean in metrics and name != mean:
            pairs = zip(metrics[name]["detail_shared"], metrics[mean]["detail_shared"], strict=True)
            shares = [a / b for a, b in pairs]
            rows.append(row(f"this variance in overlaps, of the uniform mean's: {name}", shares, [], "of 1"))
    z, _, _ = measures.piece(0, SHORT[1], Way(0.5, "uniform"))
    eps, _, _ = measures.piece(0, SHORT[1], Way(0.5, "uniform", lambda p, c: multidiffusion(p, c, "eps")))
    difference = float((z - eps).abs().max() / z.std())
    rows.append(row("largest difference of uniform and eps-fusion", [difference], [], "of z's deviation"))
    return rows + measures.decoding()

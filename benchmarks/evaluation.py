"""Figures of two folders of audio, beside audioldm_eval's on the same files and weights.

The network is PANN's Cnn14 at 16 kHz with random weights, saved as the published file is. audioldm_eval reads with
torchaudio, which needs another decoder today: it is lent ours. Only what gives its FD, IS and KL is timed.
"""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import soundfile
import torch

from musiccm.commands._timing import alternating, peak_mib, row, seconds_of
from musiccm.device import choose_device
from musiccm.evaluation.api import evaluate
from musiccm.metrics import FrechetDistance, InceptionScore, KLDivergence

CLIPS, SECONDS, RATE_HZ = 200, 10, 16000
FD_N, FD_D, CLASSES = 1000, 2048, 527
#: What is asked for: so many clips within so many seconds, on a GPU.
ASKED_CLIPS, ASKED_S = 1000, 60.0
#: Both beyond the rows that the Frechet distance holds before it folds them.
MEMORY_N = 10_000, 40_000


def features(n: int, width: int, seed: int) -> torch.Tensor:
    """Non-negative rows with a spectrum that falls off, as a network's are."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.arange(1, width + 1, dtype=torch.float32).rsqrt()
    return torch.relu(torch.randn(n, width, generator=generator) * scale + 0.1)


def frechet() -> list[dict]:
    """The Frechet distance alone."""
    from audioldm_eval import calculate_fid

    real, fake = features(FD_N, FD_D, 0), features(FD_N, FD_D, 1)
    found: dict[str, float] = {}

    def ours() -> None:
        metric = FrechetDistance()
        for side, rows in ((True, real), (False, fake)):
            for start in range(0, FD_N, 32):
                part = rows[start : start + 32]
                metric.update(part, [f"{start + n}" for n in range(len(part))], real=side)
        found["ours"] = metric.compute()["fd"]

    def theirs() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            found["theirs"] = calculate_fid({"2048": fake}, {"2048": real}, "2048")["frechet_distance"]

    ours()
    times = alternating({"ours": ours, "theirs": theirs}, repeats=1, warmup=0)
    gap = abs(found["ours"] / found["theirs"] - 1)
    case = f"FD, d = {FD_D}, n = {FD_N} (relative difference {gap:.0e})"
    return [row(case, times["ours"], times["theirs"], "s", 10.0)]


def write_folder(folder: Path, seed: int, clips: int = CLIPS) -> None:
    """Clips of chords that swell and fall, all different."""
    folder.mkdir()
    draw = np.random.default_rng(seed)
    time = np.arange(SECONDS * RATE_HZ) / RATE_HZ
    for n in range(clips):
        tones = sum(np.sin(2 * np.pi * f * time + p) for f, p in zip(draw.uniform(80, 4000, 4), draw.uniform(0, 6, 4),
                                                                     strict=True))
        swell = 0.55 + 0.45 * np.sin(2 * np.pi * draw.uniform(0.2, 4) * time)
        samples = 0.1 * tones * swell + 0.01 * draw.standard_normal(len(time))
        soundfile.write(folder / f"clip{n:04d}.wav", samples.astype(np.float32), RATE_HZ)


def their_features(network: torch.nn.Module, folder: Path) -> dict:
    """audioldm_eval's loop over a folder: clip by clip, first channel, mean removed."""
    from audioldm_eval.datasets.load_mel import WaveDataset
    from torch.utils.data import DataLoader

    def load(path: str) -> tuple[torch.Tensor, int]:
        samples, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
        return torch.from_numpy(samples.T.copy()), rate_hz

    out: dict[str, list] = {"2048": [], "logits": [], "file_path_": []}
    with mock.patch("torchaudio.load", load), torch.no_grad():
        for waveform, names in DataLoader(WaveDataset(str(folder), RATE_HZ), batch_size=1):
            found = network(waveform.squeeze(1).float().to(next(network.parameters()).device))
            out["2048"].append(found["2048"].cpu())
            out["logits"].append(found["logits"].cpu())
            out["file_path_"] += names
    return {name: value if name == "file_path_" else torch.cat(value) for name, value in out.items()}


def their_network(checkpoint: Path) -> torch.nn.Module:
    """Its Cnn14, which reads its weights from the working directory, and would fetch them."""
    from audioldm_eval.feature_extractors.panns import Cnn14

    here = os.getcwd()
    os.chdir(checkpoint.parent.parent)
    try:
        with contextlib.redirect_stdout(io.StringIO()), mock.patch("os.system"):
            network = Cnn14(features_list=["2048", "logits"], sample_rate=RATE_HZ, window_size=512, hop_size=160,
                            mel_bins=64, fmin=50, fmax=8000, classes_num=CLASSES)
    finally:
        os.chdir(here)
    return network.eval()


def whole() -> list[dict]:
    """Two folders to FD, IS and KL."""
    from audioldm_eval import calculate_fid, calculate_isc, calculate_kl

    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for side, seed in (("generated", 0), ("reference", 1)):
            write_folder(root / side, seed)
        checkpoint = root / "ckpt" / "Cnn14_16k_mAP=0.438.pth"
        checkpoint.parent.mkdir()
        write_checkpoint(checkpoint)
        device = choose_device("auto")
        theirs = their_network(checkpoint).to(device)
        found: dict[str, dict] = {}

        def run_theirs() -> None:
            fake, real = (their_features(theirs, root / side) for side in ("generated", "reference"))
            with contextlib.redirect_stdout(io.StringIO()):
                found["theirs"] = {
                    **calculate_fid(fake, real, "2048"), **calculate_kl(fake, real, "logits")[0],
                    **calculate_isc(fake, "logits", rng_seed=2020, samples_shuffle=True, splits=10)}

        def run_ours() -> None:
            found["ours"] = evaluate(root / "generated", root / "reference", embedders={"pann": checkpoint},
                                     device=device)

        times = {"ours": [seconds_of(run_ours)], "theirs": [seconds_of(run_theirs)]}
        pairs = {"fd_pann": "frechet_distance", "is_pann_mean": "inception_score_mean",
                 "kl_pann": "kullback_leibler_divergence_softmax"}
        gaps = ", ".join(f"{ours} {abs(found['ours'][ours] / found['theirs'][other] - 1):.0e}"
                         for ours, other in pairs.items())
        case = f"FD + IS + KL of {CLIPS} + {CLIPS} clips of {SECONDS} s (relative differences: {gaps})"
        return [row(case, times["ours"], times["theirs"], "s", 3.0)]


def everything(bundle: str) -> list[dict]:
    """Two folders to FD, IS, KL and text-audio similarity, the latter by the bundle's CLAP, against what is asked for.

    Models are read within that time. A CPU has fewer clips to do, and as much less time.
    """
    device = choose_device("auto")
    clips = ASKED_CLIPS if device == "cuda" else CLIPS
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for side, seed in (("generated", 0), ("reference", 1)):
            write_folder(root / side, seed, clips)
        checkpoint = root / "Cnn14_16k_mAP=0.438.pth"
        write_checkpoint(checkpoint)
        captions = {f"clip{n:04d}": f"four tones that swell, number {n}" for n in range(clips)}
        spent = seconds_of(lambda: evaluate(root / "generated", root / "reference", embedders={"pann": checkpoint},
                                            captions=captions, bundle=bundle, device=device, progress=False))
    case = f"FD + IS + KL + CLAP of {clips:,} clips of {SECONDS} s, against what is asked of a GPU"
    return [row(case, [spent], [ASKED_S * clips / ASKED_CLIPS], "s", 1.0 if device == "cuda" else None)]


def write_checkpoint(path: Path) -> None:
    """Random weights under the published names, with the true front end: made by its own classes."""
    from audioldm_eval.feature_extractors.panns import models

    torch.manual_seed(0)
    network = models.Cnn14.__new__(models.Cnn14)
    with mock.patch("os.path.exists", return_value=True), mock.patch("torch.load", return_value={"model": {}}), \
            mock.patch.object(models.Cnn14, "load_state_dict"):
        network.__init__(["2048"], RATE_HZ, 512, 160, 64, 50, 8000, CLASSES)
    network.init_weight()
    torch.save({"iteration": 0, "model": network.state_dict()}, path)


def grown_mib(n: int) -> float:
    """MiB that FD, IS and KL of n clips add to a process, in batches of 50."""
    metrics = FrechetDistance(), InceptionScore(splitting="hashed"), KLDivergence()
    before = peak_mib()
    for start in range(0, n, 50):
        rows, logits = features(50, FD_D, start), features(50, CLASSES, start)
        ids = [f"{start + k}" for k in range(50)]
        for real in (True, False):
            metrics[0].update(rows, ids, real=real)
            metrics[2].update(logits, ids, real=real)
        metrics[1].update(logits, ids)
    metrics[1].compute()
    return peak_mib() - before


def memory() -> list[dict]:
    """Peak memory at four times as many clips, each in a process of its own."""
    found = []
    for n in MEMORY_N:
        command = [sys.executable, __file__, str(n)]
        found.append(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    few, many = MEMORY_N
    kept = many * (2 * FD_D + 3 * CLASSES) * 4 / (1 << 20)
    return [row(f"memory of FD + IS + KL, {many:,} clips, against keeping every row", [found[1]], [kept], "MiB"),
            row(f"the same, against {few:,} clips", [found[1]], [found[0]], "MiB")]


def run(bundle: str) -> list[dict]:
    return [*frechet(), *memory(), *whole(), *everything(bundle)]


if __name__ == "__main__":
    print(grown_mib(int(sys.argv[1])))

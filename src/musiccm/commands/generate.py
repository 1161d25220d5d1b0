"""make music from text and write it to a file."""

from __future__ import annotations

import argparse
import time
from pathlib import Path


def main(argv: list[str]) -> int:
    """Run `musiccm generate`.

    Args:
        argv: The arguments behind `generate`.

    Returns:
        The exit code.
    """
    args = _parser().parse_args(argv)
    import torch

    from musiccm.audio.io import write_audio
    from musiccm.errors import MusiccmError
    from musiccm.pipeline import Pipeline

    out = Path(args.out)
    if out.suffix.lower() not in {".wav", ".flac"}:
        raise MusiccmError(f"--out {out}: expected a name that ends in .wav or .flac")
    device = ("cuda" if torch.cuda.is_available() else "cpu") if args.device == "auto" else args.device
    pipeline = Pipeline.from_pretrained(args.model).to(device)
    start = time.perf_counter()
    waveforms = pipeline(args.prompts, args.steps, args.seed, guidance_scale=args.guidance_scale, gamma=args.gamma)
    elapsed = time.perf_counter() - start
    out.parent.mkdir(parents=True, exist_ok=True)
    for path, prompt, waveform in zip(output_paths(out, len(waveforms)), args.prompts, waveforms, strict=True):
        write_audio(path, waveform, pipeline.sample_rate_hz)
        print(f"{path}: {prompt}")
    print(f"{len(waveforms)} clip(s) of {pipeline.duration_s:g} s in {elapsed:.2f} s")
    return 0


def output_paths(out: Path, count: int) -> list[Path]:
    """One path for one clip; `out_1.wav`, `out_2.wav`, ... for several."""
    if count == 1:
        return [out]
    return [out.with_name(f"{out.stem}_{index + 1}{out.suffix}") for index in range(count)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="musiccm generate", description=__doc__)
    parser.add_argument("prompts", nargs="+", help="what the music should be like; one clip a text")
    parser.add_argument("--out", default="out.wav", help="file to write; numbered for several (default %(default)s)")
    parser.add_argument("--model", default="musiccm-tiny-student",
                        help="directory, packaged bundle or hub id (default %(default)s)")
    parser.add_argument("--steps", type=int, help="sampling steps (default 4 for a student, 50 for a teacher)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default %(default)s)")
    parser.add_argument("--guidance-scale", type=float, help="for a teacher only (default 3)")
    parser.add_argument("--gamma", type=float, help="for a student: share of fresh noise between steps, 0 to 1")
    parser.add_argument("--device", default="auto", help="cpu, cuda, ... (default: a GPU if there is one)")
    return parser

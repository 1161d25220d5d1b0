"""`musiccm export --compiled`: a model's networks compiled ahead of time."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from musiccm.bounds import Bucket
from musiccm.errors import MusiccmError, naming
from musiccm.terminal import say

#: What belongs to a checkpoint alone, and to a compiled model alone, by the options' values where they are left out.
OF_CHECKPOINT: dict[str, Any] = {
    "config": None, "bundle": None, "results": None, "base": None, "sampler": None, "gamma": None, "dtype": "float32"}
OF_COMPILED: dict[str, Any] = {"bucket": [], "text": [], "device": "auto", "decoder": None, "half": False}


def check_options(args: argparse.Namespace) -> None:
    """Refuse options that would be ignored.

    Raises:
        MusiccmError: Naming the first.
    """
    kind, other, others = ("--checkpoint", "--compiled", OF_COMPILED)
    if args.compiled is not None:
        kind, other, others = ("--compiled", "--checkpoint", OF_CHECKPOINT)
    for name, default in others.items():
        if getattr(args, name) != default:
            raise MusiccmError(f"--{name}: expected with {other}, found with {kind}; leave it out")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `--compiled`."""
    compiled = parser.add_argument_group("--compiled")
    compiled.add_argument("--bucket", action="append", default=[], metavar="BATCH[xSTEPS[xSECONDS]]",
                          help="a shape of music to compile for, such as 1x4, or 8x4x60 for a minute by 8 windows a "
                               "call (default 1: one clip); may be repeated. A batch serves no smaller one")
    compiled.add_argument("--text", action="append", default=[],
                          help="as long as a prompt will be: prompts are padded to 32 tokens, 64, 128, ... (default: "
                               "up to 32); may be repeated")
    compiled.add_argument("--device", default="auto", help="cpu, cuda, ... (default: a GPU if there is one)")
    compiled.add_argument("--decoder", choices=["fast", "original"], help="see `musiccm generate`")
    compiled.add_argument("--half", action="store_true", help="compute in bf16 where sound allows it, for GPUs")


def export_compiled(args: argparse.Namespace) -> Path:
    """Compile a model.

    Args:
        args: The arguments of `export`.

    Returns:
        The folder.

    Raises:
        MusiccmError: As `compile_ahead`; or there is no such model or device.
    """
    from musiccm.compiling import compile_ahead
    from musiccm.device import choose_device
    from musiccm.pipeline import Pipeline

    with naming({"warm_up": "--bucket"}):
        buckets = [Bucket.read(text) for text in args.bucket or ["1"]]
        pipeline = Pipeline.from_pretrained(args.compiled, decoder=args.decoder).to(choose_device(args.device))
        folder = compile_ahead(pipeline, args.out, buckets, args.text or [""], args.half, args.overwrite)
    options = " --half" if args.half else ""
    say(f"{folder}: compiled for {'; '.join(map(str, buckets))}; try\n  musiccm generate \"a calm piano melody\" "
        f"--model {args.compiled} --compiled {folder}{options}")
    return folder

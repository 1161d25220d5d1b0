"""`musiccm pack features`: put kept features of a teacher and of the floor into its bundle."""

from __future__ import annotations

import argparse
from pathlib import Path

from musiccm.errors import MusiccmError
from musiccm.terminal import say


def pack_features(argv: list[str]) -> int:
    """Run `musiccm pack features`.

    Args:
        argv: The arguments behind `features`.

    Returns:
        The exit code.

    Raises:
        MusiccmError: No kept features of this bundle, or a file that cannot be read.
    """
    args = _parser().parse_args(argv)
    import torch

    from musiccm.evaluation.clip_features import read_about, read_features, write_features
    from musiccm.evaluation.evaluator import first_id
    from musiccm.evaluation.feature_cache import PACKED, packed_name, teacher_hash
    from musiccm.models.bundle import Bundle

    if args.n is not None and args.n < 1:
        raise MusiccmError(f"--n must be at least 1, found {args.n}")
    bundle = Bundle.from_pretrained(args.to)
    own = teacher_hash(bundle)
    source = Path(args.source)
    written = 0
    for path in sorted(source.glob("*.safetensors")):
        about = read_about(path)
        key = about["key"]
        row = f"{key.get('model', 'floor')}@{key.get('steps', 0)}"
        if key.get("teacher") != own or (args.rows and row not in args.rows):
            continue
        features, hashes = read_features(path)
        known = dict(zip(features.ids, hashes, strict=True))
        firsts = [name for name in features.ids if first_id(name) == name or first_id(name) not in known][: args.n]
        first = features.of([name for name in features.ids if name in firsts or first_id(name) in firsts])
        target = bundle.path / PACKED / packed_name(key)
        target.parent.mkdir(exist_ok=True)
        write_features(target, first, [known[name] for name in first.ids], about, torch.float16)
        say(f"{target}: {row} by {key['decoder']}, n = {len(first)}, {target.stat().st_size / 2**20:.2f} MiB")
        written += 1
    if not written:
        raise MusiccmError(f"--from {source}: no features of {args.to}" + (f" for {', '.join(args.rows)}" if args.rows
                           else "") + "; evaluate a student of it first (musiccm test keeps them)")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="musiccm pack features", description=(
        "Put features that an evaluation kept into the teacher's bundle, so that others need not make its clips."))
    parser.add_argument("--from", dest="source", default="lightning_logs/.features", help="folder of kept features")
    parser.add_argument("--to", required=True, help="the teacher's bundle")
    parser.add_argument("--rows", nargs="+", default=[], help="these rows alone, such as teacher@50 floor@0")
    parser.add_argument("--n", type=int, help="the first N clips alone")
    return parser

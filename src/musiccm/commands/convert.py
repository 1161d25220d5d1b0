"""turn the files of MusicLDM, AudioLDM, TANGO or ConsistencyTTA, or a bundle that lacks something, into a bundle."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from musiccm.errors import MusiccmError
from musiccm.terminal import say

if TYPE_CHECKING:
    from musiccm.models.convert.assemble import Assembled

RECORD = "conversion.json"
"""Beside `model_index.json`: which file each part came from, every name that was dropped or ignored, every
number assumed."""
#: Options by the source that they go with.
ONLY = {
    "ldm": ("weights", "vae", "clap", "vocoder", "vocoder_config", "tokenizer", "prefer", "head_channels",
            "scale_factor", "mel_frames"),
    "tango": ("weights", "vae", "vocoder_config", "tokenizer", "prefer", "scale_factor", "mel_frames", "text_encoder",
              "unet_config"),
    "bundle": ("clap", "heads"),
}


def main(argv: list[str]) -> int:
    """Run `musiccm convert`.

    Args:
        argv: The arguments behind `convert`.

    Returns:
        The exit code.

    Raises:
        MusiccmError: A file cannot be read or converted, or the target is in use.
    """
    args = _parser().parse_args(argv)
    import torch

    from musiccm.files import replacing_folder
    from musiccm.models.bundle import Bundle
    from musiccm.models.convert.assemble import Sources, assemble
    from musiccm.models.convert.completing import complete
    from musiccm.models.convert.tta import TtaSources, assemble_tta

    out = Path(args.out)
    refuse_to_overwrite(out, args.overwrite, args.bundle or args.tango)
    kind = next(name for name in ONLY if getattr(args, name))
    others = {name for options in ONLY.values() for name in options} - set(ONLY[kind])
    if stray := sorted(f"--{name.replace('_', '-')}" for name in others if getattr(args, name) is not None):
        goes = sorted({other for other, options in ONLY.items() for name in options
                       if f"--{name.replace('_', '-')}" in stray})
        raise MusiccmError(f"{', '.join(stray)}: only goes with --{' or --'.join(goes)}, not with --{kind}; leave it "
                           "out")
    if kind != "tango" and args.weights in ("target", "teacher"):
        raise MusiccmError(f"--weights {args.weights}: expected ema or raw, found one of a ConsistencyTTA run's")
    if kind == "ldm" and args.weights is None:
        raise MusiccmError("--weights: expected ema (the average that MusicLDM samples with) or raw (those of the "
                           "last step), found nothing; the file may hold both, and they differ")
    with replacing_folder(out, args.overwrite) as staging:
        # as it is now that no other process can make it
        refuse_to_overwrite(out, args.overwrite, args.bundle or args.tango)
        if kind == "ldm":
            made = assemble(Sources(ldm=args.ldm, **stated(args, kind)))
        elif kind == "tango":
            made = assemble_tta(TtaSources(args.tango, **stated(args, kind)))
        else:
            made = complete(args.bundle, args.clap, heads(args.heads))
        if args.audiomae:
            from musiccm.models.convert.audiomae import audiomae_from_original

            features, dropped, ignored = audiomae_from_original(args.audiomae, made.mel)
            made.add("evaluators/audiomae", features, args.audiomae, dropped, ignored)
        write(made, staging, getattr(torch, args.dtype))
        _ = Bundle.from_pretrained(staging).unet  # what would be refused later is refused here
    say(summary(made.record, out))
    return 0


def stated(args: argparse.Namespace, kind: str) -> dict[str, Any]:
    """The options of a kind of source that were given."""
    return {name: getattr(args, name) for name in ONLY[kind] if getattr(args, name) is not None}


def refuse_to_overwrite(out: Path, overwrite: bool, source: str | None) -> None:
    """Only a bundle may be replaced, and only if it was asked for.

    Raises:
        MusiccmError: The target is in use.
    """
    if source is not None and Path(source).resolve() == out.resolve():
        raise MusiccmError(f"--out {out}: is the bundle that is read; name another folder")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / "model_index.json").is_file():
        raise MusiccmError(f"--out {out}: is there and is no bundle (no model_index.json); name another folder")
    if not overwrite:
        raise MusiccmError(f"--out {out}: a bundle lies there; name another folder, or add --overwrite")


def heads(stated: str | None) -> list[int] | None:
    """`--heads 4,8,12,20` as numbers.

    Raises:
        MusiccmError: They are no positive whole numbers.
    """
    if stated is None:
        return None
    try:
        numbers = [int(number) for number in stated.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise MusiccmError(f"--heads: expected whole numbers such as 4,8,12,20, one a level, found {stated!r}")
    return numbers


def write(made: Assembled, folder: Path, dtype: Any) -> None:
    """Write parts, settings and record."""
    from musiccm.files import write_json
    from musiccm.models.attention_heads import own_heads
    from musiccm.models.bundle import save_settings
    from musiccm.models.bundle.files import PARTS, save_part

    folder.mkdir(parents=True)
    for name in PARTS:
        if name in made.parts:
            save_part(folder, name, made.parts[name], dtype)
    save_settings(folder, **{**made.settings, **own_heads(made.parts["unet"].config), "mel": made.mel})
    write_json(folder / RECORD, made.record)


def summary(record: dict[str, Any], out: Path) -> str:
    """What was converted, dropped and assumed, for people; every name stands in the record."""
    lines = [f"{out}:"]
    for name, part in record["parts"].items():
        which = f" ({part['weights']} weights)" if "weights" in part else ""
        lines.append(f"  {name:<20} {part['parameters'] / 1e6:8.2f} M parameters from {part['file']}{which}")
        groups = Counter(dropped.split(".")[0] for dropped in part["dropped"])
        if groups:
            lines.append("    not used: " + ", ".join(f"{group} ({count})" for group, count in groups.items()))
    lines += [f"  no weights, left out of {file}: {', '.join(found['ignored'])}"
              for file, found in record["files"].items() if found["ignored"]]
    lines += [f"  assumed: {line}" for line in record["assumed"]]
    lines += [f"  licence: {record['licence']}"] if "licence" in record else []
    return "\n".join([*lines, f"  every name: {out / RECORD}"])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="musiccm convert", description=__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--ldm", help="musicldm-ckpt.ckpt, or AudioLDM's checkpoint")
    source.add_argument("--tango", metavar="FOLDER",
                        help="folder with the published files of TANGO or ConsistencyTTA, in any of five layouts "
                             "(docs/teachers.md)")
    source.add_argument("--bundle", help="folder or hub id in the diffusers layout, to be copied with the right heads")
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument("--weights", choices=["ema", "raw", "target", "teacher"],
                        help="of the U-Net: its average over training, or its last step; of a ConsistencyTTA run also "
                             "the average that is its target, or its teacher. Must be stated where there are several")
    parser.add_argument("--vae", help="vae-ckpt.ckpt (default: the copy in --ldm; the file in --tango)")
    parser.add_argument("--clap", help="clap-ckpt.pt (default: the copy in --ldm); with --bundle, the CLAP whose audio "
                                       "tower a bundle with the text tower alone lacks")
    parser.add_argument("--vocoder", help="hifigan-ckpt.ckpt (default: the copy in --ldm)")
    parser.add_argument("--vocoder-config", help="its JSON (default: the released one's numbers)")
    parser.add_argument("--audiomae", help="AudioMAE's pre-trained checkpoint, for the adversarial loss")
    parser.add_argument("--tokenizer", help="folder or hub id of the tokenizer (default: roberta-base; with --tango "
                                            "google/flan-t5-large)")
    parser.add_argument("--text-encoder", metavar="T5", help="with --tango: folder or hub id of a T5, where the files "
                                                              "have none")
    parser.add_argument("--unet-config", metavar="FILE", help="with --tango: diffusers' JSON of the U-Net, for a width "
                                                               "that was not published")
    parser.add_argument("--prefer", choices=["checkpoint", "files"],
                        help="where the main file and one of its own hold different weights of one part (default: "
                             "refuse)")
    parser.add_argument("--head-channels", type=int, help="of the U-Net's attention, for a width that was not released")
    parser.add_argument("--scale-factor", type=float, help="of the latents, for a checkpoint without it")
    parser.add_argument("--mel-frames", type=int, help="of the clips it was trained on (default 1024)")
    parser.add_argument("--heads", help="with --bundle: heads of each level, such as 4,8,12,20 (default: those that "
                                        "the released models of this shape were trained with)")
    parser.add_argument("--dtype", choices=["float32", "float16"], default="float32", help="of the weights on disk")
    parser.add_argument("--overwrite", action="store_true", help="replace the bundle that lies in --out")
    return parser

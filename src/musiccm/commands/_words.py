"""`musiccm pack words`: count what the captions of a bundle's training clips speak of, and put that into it."""

from __future__ import annotations

import argparse

from musiccm.errors import MusiccmError
from musiccm.terminal import say


def pack_words(argv: list[str]) -> int:
    """Run `musiccm pack words`.

    Args:
        argv: The arguments behind `words`.

    Returns:
        The exit code.

    Raises:
        MusiccmError: The experiment or its corpus cannot be read, or has too few captions.
    """
    args = _parser().parse_args(argv)
    from musiccm.data.experiment import data_module
    from musiccm.local_models import local_bundle
    from musiccm.models.bundle import Bundle
    from musiccm.models.bundle.files import WORDS
    from musiccm.models.bundle.training_words import EMBEDDINGS_FILE, WORDS_FILE, write_words

    folder = local_bundle(args.to)
    if folder is None:
        raise MusiccmError(f"--to {args.to}: expected the folder of a bundle on this machine")
    bundle = Bundle.from_pretrained(folder, parts=("text_encoder", "tokenizer"))
    stated = {"kind": "waveform", "bundle": str(folder), **({"root": args.root} if args.root else {})}
    data = data_module(args.config, stated, cache="bundle")  # no cache is written
    data.setup("test")
    # A caption each of the held-out clips, the next clip's next one: the first ones say more than people do.
    held_out = [clip.captions[place % len(clip.captions)]
                for place, clip in enumerate([*data.val_clips, *data.test_clips])]
    about = write_words(folder, bundle, [clip.captions for clip in data.train_clips], held_out, args.captions)
    size = sum((folder / WORDS / name).stat().st_size for name in (WORDS_FILE, EMBEDDINGS_FILE))
    measured = about["measured_on"]
    say(f"{folder / WORDS}: {about['captions']:,} captions of {about['clips']:,} clips, {len(about['words'])} words, "
        f"{len(about['examples'])} captions kept, {size / 1000:.0f} kB",
        f"  {measured['held_out']} held-out captions are {measured['median']:.3f} away (median); "
        f"{100 * measured['quantile']:g} % are within {about['threshold']:.3f}, which is the limit")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="musiccm pack words", description=(
        "Put into a bundle what the captions that it was trained on speak of: musiccm words lists it, and generate "
        "warns of prompts that are unlike all of them."))
    parser.add_argument("--to", required=True, help="the bundle")
    parser.add_argument("--config", required=True, action="append",
                        help="experiment that the teacher was trained by; its data section is used")
    parser.add_argument("--root", help="corpus, in place of data.root")
    parser.add_argument("--captions", type=int, default=512,
                        help="training captions to keep with their embeddings (default %(default)s)")
    return parser

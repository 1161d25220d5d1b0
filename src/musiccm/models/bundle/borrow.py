"""What a bundle borrows of another: the record of it, and a new bundle that begins with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from musiccm.errors import MusiccmError
from musiccm.models.bundle.bundle import Bundle, save_settings
from musiccm.models.bundle.files import PARTS, SETTINGS_FILE, base_folder, update_json
from musiccm.texts import read_json

#: What a new bundle can borrow, and what of the other's it makes anew instead: a bundle that borrows `sound` has a text
#: encoder of its own, one that borrows `clap` latents of its own, as MeLoDy's kind has.
ANEW = {"sound": ("text_encoder", "tokenizer", "feature_extractor", "unet", "scheduler"),
        "clap": ("vae", "vocoder", "decoder", "unet", "scheduler")}


def borrowed_parts(lender: str, folder: Path, source: Bundle, parts: Sequence[str]) -> dict[str, Any]:
    """What a bundle's settings say of parts that it borrows (`base`), once the lender's are known to be the same.

    Args:
        lender: The bundle that lends: `../NAME` beside `folder`, a packaged name or a hub id.
        folder: The directory of the bundle that borrows; it need not be there yet.
        source: What it is written from; the parts must be the same files here and there.
        parts: What is borrowed.

    Returns:
        `path`, `parts` and `content_hash`.

    Raises:
        MusiccmError: There is no such lender, or its parts are others.
    """
    found = Bundle.from_pretrained(base_folder(folder, lender, Path("--base"), parts), parts).content_hash(parts)
    if found != source.content_hash(parts):
        raise MusiccmError(f"base '{lender}': its parts are not those of {source.path}, with which the rest was "
                           "trained; write without a base, so that they are copied")
    return {"path": lender, "parts": list(parts), "content_hash": found}


def begin_bundle(folder: str | Path, base: str, borrow: str = "sound") -> list[str]:
    """Write a bundle that borrows parts, for stages to fill with the rest.

    Args:
        folder: Directory to write; one that was begun with the same base stays as it is.
        base: The other bundle: `../NAME` beside `folder`, a packaged name or a hub id.
        borrow: What is borrowed beside the evaluators: `sound`, autoencoder, vocoder and decoder; or `clap`.

    Returns:
        The parts that are borrowed.

    Raises:
        MusiccmError: There is no such base, or the folder holds a bundle that was not begun with it.
    """
    folder = Path(folder)
    where = folder / SETTINGS_FILE
    if borrow not in ANEW:
        raise MusiccmError(f"--borrow: expected one of {', '.join(ANEW)}, found {borrow!r}")
    found = base_folder(folder, base, where, [part for part in PARTS if part not in ANEW[borrow]])
    parts = [part for part in PARTS if part not in ANEW[borrow] and (found / part).is_dir()]
    lender = Bundle.from_pretrained(found, parts)
    record = {"path": base, "parts": parts, "content_hash": lender.content_hash(parts)}
    if (folder / "model_index.json").is_file() or where.is_file():
        stated = read_json(where, "a bundle's settings").get("base") if where.is_file() else None
        if stated != record:
            raise MusiccmError(f"{folder}: holds a bundle that does not borrow these parts of {base}; choose another "
                               "folder, or remove it")
        return parts
    save_settings(folder, mel=lender.mel, latent_patch=lender.latent_patch)
    state_borrowed(folder, record, lender)
    return parts


def state_borrowed(folder: Path, record: dict[str, Any], *lenders: Bundle) -> None:
    """List borrowed parts in a bundle's index as if they lay there, and say in its settings where they lie.

    Args:
        folder: The directory of the bundle that borrows.
        record: Of `borrowed_parts`.
        *lenders: Whose indices name the parts' classes; a later one goes first. Evaluators stand in none.
    """
    classes = {part: lender.index[part] for part in record["parts"] for lender in lenders if part in lender.index}
    update_json(folder / "model_index.json", classes)
    save_settings(folder, base=record)

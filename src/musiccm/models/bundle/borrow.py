"""A new bundle that begins with another's parts: all that do not depend on how captions are read."""

from __future__ import annotations

from pathlib import Path

from musiccm.errors import MusiccmError
from musiccm.models.bundle.bundle import Bundle, save_settings
from musiccm.models.bundle.files import PARTS, SETTINGS_FILE, base_folder, update_json
from musiccm.texts import read_json

#: What a bundle with a text encoder of its own makes anew.
OF_THE_TEXT = ("text_encoder", "tokenizer", "feature_extractor", "unet", "scheduler")


def begin_bundle(folder: str | Path, base: str) -> list[str]:
    """Write a bundle that borrows its autoencoder, vocoder, decoder and evaluators, for stages to fill with the rest.

    Args:
        folder: Directory to write; one that was begun with the same base stays as it is.
        base: The other bundle: `../NAME` beside `folder`, a packaged name or a hub id.

    Returns:
        The parts that are borrowed.

    Raises:
        MusiccmError: There is no such base, or the folder holds a bundle that was not begun with it.
    """
    folder = Path(folder)
    where = folder / SETTINGS_FILE
    found = base_folder(folder, base, where, [part for part in PARTS if part not in OF_THE_TEXT])
    parts = [part for part in PARTS if part not in OF_THE_TEXT and (found / part).is_dir()]
    lender = Bundle.from_pretrained(found, parts)
    record = {"path": base, "parts": parts, "content_hash": lender.content_hash(parts)}
    if (folder / "model_index.json").is_file() or where.is_file():
        stated = read_json(where, "a bundle's settings").get("base") if where.is_file() else None
        if stated != record:
            raise MusiccmError(f"{folder}: holds a bundle that does not borrow these parts of {base}; choose another "
                               "folder, or remove it")
        return parts
    for part in parts:
        if part in lender.index:
            update_json(folder / "model_index.json", {part: lender.index[part]})
    save_settings(folder, mel=lender.mel, latent_patch=lender.latent_patch, base=record)
    return parts

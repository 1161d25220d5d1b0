"""Which CLAP a name means, and whether two names mean the same one: what tunes a student must not score it."""

from __future__ import annotations

import filecmp
from pathlib import Path
from typing import TYPE_CHECKING, Any

from musiccm.embedders.clap import ClapEmbedder
from musiccm.embedders.registry import load_embedder
from musiccm.embedders.weights import PUBLISHED, weights_folder
from musiccm.errors import MusiccmError
from musiccm.local_models import local_bundle
from musiccm.models.bundle import Bundle
from musiccm.models.bundle.files import PARTS, SECOND_CLAP, has_token_encoder

if TYPE_CHECKING:
    from musiccm.models.conditioners.clap import ClapConditioner

#: LAION's published file in `MUSICCM_WEIGHTS`; the bundle's second CLAP; none at all.
LAION, SECOND, NONE = "clap", "clap_second", "none"


def load_clap(named: str | Path, bundle: Bundle) -> ClapEmbedder:
    """A CLAP that is not the bundle's own.

    Args:
        named: `clap` for LAION's published file in `MUSICCM_WEIGHTS`; `clap_second` for the bundle's second CLAP; a
            bundle, whose CLAP is taken, by its folder or packaged name; else a file, a folder or a hub id, as
            `load_embedder` takes them.
        bundle: Whose second CLAP is meant.

    Returns:
        It, frozen.

    Raises:
        MusiccmError: It cannot be had, or embeds no audio.
    """
    if str(named) == SECOND:
        embedder = ClapEmbedder(bundle.second_clap(), SECOND)  # type: ignore[arg-type]
        return _from(embedder, bundle, [SECOND_CLAP])
    if (folder := _bundle_folder(named)) is not None:
        opened = Bundle.from_pretrained(folder, ["text_encoder", "tokenizer", "feature_extractor"])
        if opened.gives_tokens:
            raise MusiccmError(f"'{named}': expected a bundle whose text encoder is a CLAP, found one with tokens")
        embedder = ClapEmbedder(opened.conditioner(), "clap")  # type: ignore[arg-type]
        return _from(embedder, opened, ["text_encoder", "tokenizer", "feature_extractor"])
    found: Any = load_embedder("clap", None if str(named) == LAION else named)
    return found


def _from(embedder: ClapEmbedder, bundle: Bundle, parts: list[str]) -> ClapEmbedder:
    embedder.provenance = {"bundle": bundle.path.name, "content_hash": bundle.content_hash(parts), "published": None}
    return embedder


def _bundle_folder(named: str | Path) -> Path | None:
    folder = local_bundle(named)
    return folder if folder is not None and (folder / "model_index.json").is_file() else None


def same_clap(first: str | Path | None, second: str | Path | None, bundle: str | Path) -> bool:
    """Whether two names mean one network, as far as the files on this machine tell; nothing is loaded.

    Files in two formats, and files that are not here yet, are told apart once they are read (`check_not_tuned_by`).

    Args:
        first: As `load_clap` takes it; None for the bundle's own CLAP.
        second: The other.
        bundle: The bundle: a folder, a packaged name or a hub id.

    Returns:
        Whether they are the same for certain.
    """
    if NONE in (first, second):
        return False
    files = [_weights_file(named, bundle) for named in (first, second)]
    if files[0] is None or files[1] is None:
        return first is not None and str(first) == str(second)
    return filecmp.cmp(files[0], files[1], shallow=False)


def _weights_file(named: str | Path | None, bundle: str | Path) -> Path | None:
    """The file with a CLAP's weights; None where it is none, or not here."""
    own = named is None or str(named) == SECOND
    folder = _bundle_folder(bundle if own else str(named))
    if folder is not None:
        part = SECOND_CLAP if str(named) == SECOND else "text_encoder"
        root = Bundle.from_pretrained(folder, []).root_of(part)
        path = root / part / f"{PARTS[part].weights}.safetensors"
        return path if path.is_file() and (part == SECOND_CLAP or not has_token_encoder(root)) else None
    if own:
        return None
    if str(named) == LAION:
        where = weights_folder()
        path = Path(LAION) if where is None else where / PUBLISHED[LAION].file
    else:
        path = Path(str(named)).expanduser()
        path = path / "model.safetensors" if path.is_dir() else path
    return path if path.is_file() else None


def not_to_be_scored_by(key: str, tuned_by: str) -> MusiccmError:
    """The refusal of a CLAP that scores what it tuned.

    Args:
        key: What names the CLAP that scores.
        tuned_by: What names the one that tunes.
    """
    return MusiccmError(
        f"{key}: expected a CLAP that the student is not trained on, found the very network of {tuned_by}. Its "
        f"similarity rises with the training, whatever the clips sound like. Name another one: {SECOND} for a bundle's "
        f"second CLAP (experiments/stages/clap_second.yaml), {LAION} for LAION's published file, a file, a folder or a "
        f"hub id; or {NONE}, to leave text-audio similarity out"
    )


def check_not_tuned_by(key: str, measuring: ClapConditioner, tuning: ClapConditioner) -> None:
    """Refuse the network that a student is trained on as the one that scores it.

    Args:
        key: What names the CLAP that scores, for the message.
        measuring: It.
        tuning: The one that tunes.

    Raises:
        MusiccmError: Their weights are the same.
    """
    if measuring is tuning or measuring.same_network(tuning):
        raise not_to_be_scored_by(key, "model.init_args.clap.network")

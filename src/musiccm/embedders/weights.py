"""Where an embedder's weights are, whether they are the published ones, and how they are read without risk."""

from __future__ import annotations

import logging
import os
import pickle
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from musiccm.errors import MusiccmError, reason
from musiccm.files import file_sha256

log = logging.getLogger(__name__)

VARIABLE = "MUSICCM_WEIGHTS"


@dataclass(frozen=True)
class Published:
    """A file as its authors published it.

    Args:
        file: Its official name.
        where: Where it is published.
        sha256: Its SHA-256; None where no digest is known, and any file of the name passes, with a note.
    """

    file: str
    where: str
    sha256: str | None = None


_ZENODO = "https://zenodo.org/records/3987831"
_CLAP_MUSIC = Published("music_audioset_epoch_15_esc_90.14.pt", "https://huggingface.co/lukewys/laion_clap",
                        "fae3e9c087f2909c28a09dc31c8dfcdacbc42ba44c70e972b58c1bd1caf6dedd")
# PANN's digests are those of files whose md5 is the one that Zenodo states (362fc5ff18f1d6ad2f6d464b45893f2c and
# 541141fa2ee191a88f24a3219fff024e); VGGish's begins with the eight digits that its authors put into its name.
# AudioMAE is on a drive that states none.
PUBLISHED = {
    "pann": Published("Cnn14_16k_mAP=0.438.pth", _ZENODO,
                      "e2ee543a27919542c2ea03eabaa70b24dcd4e6c8e05621de6b67a94e4c5058e6"),
    "pann32k": Published("Cnn14_mAP=0.431.pth", _ZENODO,
                         "0dc499e40e9761ef5ea061ffc77697697f277f6a960894903df3ada000e34b31"),
    "vgg": Published("vggish-10086976.pth", "https://github.com/harritaylor/torchvggish/releases/tag/v0.1",
                     "10086976245803799d9194e9a73d9b6c1549c71d1b80106f5cade5608a561f4b"),
    "clap": _CLAP_MUSIC,
    # The same file; `clap` may also be a bundle's or another that is named, these may not.
    "clap_music": _CLAP_MUSIC,
    "clap_music_1s": _CLAP_MUSIC,
    "audiomae": Published("pretrained.pth", "https://github.com/facebookresearch/AudioMAE (section 2 of its README)"),
}


def weights_folder() -> Path | None:
    """The folder that `MUSICCM_WEIGHTS` names, or None where it is not set.

    Raises:
        MusiccmError: It is set, but to no folder.
    """
    if not (value := os.environ.get(VARIABLE)):
        return None
    if not (folder := Path(value).expanduser()).is_dir():
        raise MusiccmError(f"{VARIABLE}: expected a folder of weights, found '{value}', which is none")
    return folder


def find_weights(name: str, weights: str | Path | None = None) -> tuple[Path, dict[str, Any]]:
    """Find an embedder's file and check its digest.

    A file found by its official name must be the published one. A file that was named outright may be any: what it is
    not is logged, and its digest goes into the provenance of the metrics.

    Args:
        name: A key of `PUBLISHED`.
        weights: The file; a folder that holds it under its official name (or in a subfolder called `name`); None for
            the folder `MUSICCM_WEIGHTS`.

    Returns:
        The file, and its provenance: `file`, `sha256`, `published` (None where no digest is known to compare with).

    Raises:
        MusiccmError: There is no such file, or it is damaged.
    """
    official = PUBLISHED[name]
    named = weights is not None and not Path(weights).is_dir()
    if named:
        path = Path(str(weights)).expanduser()
        if not path.is_file():
            raise MusiccmError(f"{name}: no weights at '{path}'; {_advice(name)}")
    else:
        folder = Path(weights) if weights is not None else weights_folder()
        places = [] if folder is None else [folder / official.file, folder / name / official.file]
        found = next((place for place in places if place.is_file()), None)
        if found is None:
            searched = f"{folder} does not hold it" if folder is not None else f"{VARIABLE} is not set"
            raise MusiccmError(f"{name}: expected its published weights, {official.file}, but {searched}; "
                               f"{_advice(name)}")
        path = found
    digest = file_sha256(path)
    same = None if official.sha256 is None else digest == official.sha256
    if same is False and not named:
        raise MusiccmError(f"{path}: expected SHA-256 {official.sha256}, found {digest}: the file is damaged, or not "
                           f"the published one. Download it again from {official.where}, or name it outright "
                           "to use it as it is")
    if not same:
        log.warning("%s: %s; its SHA-256 %s goes into the figures' provenance", path, "not the published file"
                    if same is False else "the published file's digest is not known", digest)
    return path, {"file": path.name, "sha256": digest, "published": same}


def _advice(name: str) -> str:
    official = PUBLISHED[name]
    return (f"download {official.file} from {official.where} and put it into the folder that {VARIABLE} names, or give "
            "its path")


def load_checkpoint(path: Path) -> Mapping[str, Any]:
    """Read a checkpoint of tensors, numbers, texts, NumPy arrays of numbers and argparse's options, and nothing else.

    Published files carry more than weights: PANN's the state of its sampler (NumPy arrays), LAION's NumPy scalars,
    AudioMAE's its options. Those are plain data. No other object is built and no code of the file is run.

    Args:
        path: The file.

    Returns:
        Its content.

    Raises:
        MusiccmError: It is unreadable, holds other objects, or is no mapping.
    """
    try:
        with torch.serialization.safe_globals(_plain_data()):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise MusiccmError(f"{path}: expected tensors, numbers and NumPy arrays, found other objects or a damaged file "
                           f"({reason(error):.200}); use the file that its authors published, or ask whoever made "
                           "it for its state dict alone") from None
    except Exception as error:  # a broken file shows as whatever the unpickler tripped over
        raise MusiccmError(f"{path}: cannot be read as a PyTorch checkpoint ({reason(error):.200}); "
                           "download it again") from error
    if not isinstance(content, Mapping):
        raise MusiccmError(f"{path}: expected a mapping of names to weights, found {type(content).__name__}")
    return content


def _plain_data() -> list[Any]:
    """What may be built beside tensors: NumPy arrays and scalars of numbers, under NumPy's old and new module names."""
    rebuild, scalar = np.empty(0).__reduce__()[0], np.float64(0).__reduce__()[0]
    functions = [(function, f"numpy.{core}.multiarray.{label}") for core in ("core", "_core")
                 for function, label in ((rebuild, "_reconstruct"), (scalar, "scalar"))]
    return [np.ndarray, np.dtype, *functions, *{type(np.dtype(code)) for code in "?bhilqBHILQefd"}, Namespace]

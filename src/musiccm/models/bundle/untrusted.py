"""What a folder of somebody else's may hold: plain values and tensors of its own. docs/security.md has the whole table.

The libraries that read a bundle can be told by its files to import modules, to fetch and run code, or to read other
files. Everything of that kind is refused here, before a library sees it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from musiccm.errors import MusiccmError
from musiccm.texts import read_json

#: Keys by which a configuration names code, or a package that is to change how the network is built.
CODE_KEYS = ("auto_map", "custom_pipelines", "quantization_config")
#: What reads RoBERTa's vocabulary, CLAP's, and T5's; the last two read any `tokenizer.json`.
TOKENIZER_CLASSES = ("RobertaTokenizer", "RobertaTokenizerFast", "T5Tokenizer", "T5TokenizerFast",
                     "PreTrainedTokenizerFast", "TokenizersBackend")
LIBRARIES = ("diffusers", "transformers")
#: Old tokenizers name a path of the machine that wrote them under these; transformers reads the folder's own instead.
_UNREAD = ("special_tokens_map_file", "tokenizer_file")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def check_links(root: Path, files: Iterable[Path]) -> None:
    """Refuse a link inside a folder that leads out of it.

    The folder may itself be a link, and its files may be links into the `blobs` beside a snapshot of the hub's cache.

    Raises:
        MusiccmError: A file lies elsewhere.
    """
    real = root.resolve()
    homes = [real]
    if real.parent.name == "snapshots":
        homes.append(real.parent.parent / "blobs")
    for file in files:
        target = file.resolve()
        if not any(target.is_relative_to(home) for home in homes):
            raise MusiccmError(f"{file}: is a link to {target}, outside of {root}, and is not read; put a copy there "
                               "(`cp -rL` copies a folder with what its links name)")


def check_folder(root: Path, folder: Path) -> None:
    """Check a part's folder before a library reads it.

    Args:
        root: What its links may not leave.
        folder: The folder.

    Raises:
        MusiccmError: A file leads out of `root`, names code, or is no sound JSON.
    """
    check_links(root, [folder, *sorted(folder.rglob("*"))])
    for file in sorted(folder.glob("*.json")):
        if file.name == "adapter_config.json":
            raise MusiccmError(f"{file}: an adapter names another network to load in place of this one; merge it into "
                               "the weights, and remove the file")
        if file.name in ("tokenizer.json", "vocab.json") or not file.is_file():
            continue
        content = read_json(file, "a part's configuration")
        if file.name.endswith(".index.json"):
            _check_shards(file, content)
        else:
            check_config(file, content)


def checked_folder(name: str | Path, patterns: Sequence[str]) -> Path:
    """A folder whose files name no code, wherever it comes from.

    Args:
        name: The folder, or a hub id.
        patterns: The files to fetch from the hub.

    Returns:
        The folder, or the hub's snapshot on this machine.

    Raises:
        MusiccmError: See `check_folder`.
    """
    folder = Path(name)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(str(name), allow_patterns=list(patterns)))
    check_folder(folder, folder)
    return folder


def load_tokenizer(name: str | Path) -> Any:
    """Read a tokenizer from a folder or the hub; no code of theirs is run, and nobody is asked whether it may.

    Args:
        name: The folder, or a hub id.

    Returns:
        The tokenizer.

    Raises:
        MusiccmError: Its files name code. What the hub and the library raise otherwise is passed on.
    """
    from transformers import AutoTokenizer

    folder = checked_folder(name, ["*.json", "*.txt"])
    return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def check_config(path: Path, content: dict[str, Any]) -> None:
    """Refuse a configuration that names code, files elsewhere, or numbers that are none.

    Args:
        path: The file, for messages.
        content: What it holds.

    Raises:
        MusiccmError: Naming the key.
    """
    for key, value in _entries(content):
        where = f"{path}: {key}"
        if key in CODE_KEYS and value is not None:
            raise MusiccmError(f"{where} names code that is not this project's, and no code of a bundle is run; remove "
                               "the key where the part works without it")
        if isinstance(value, float) and not math.isfinite(value):
            raise MusiccmError(f"{where} is {value}, which is no JSON and no setting; write a number")
        if not isinstance(value, str):
            continue
        if key.endswith("_implementation") and "/" in value:  # a kernel, fetched from the hub and run
            raise MusiccmError(f"{where} is '{value}', code from the hub, which is not run; remove the key")
        elsewhere = value.startswith(("/", "\\", "~")) or ".." in value or ":" in value
        if key.endswith(("_file", "_files")) and key not in _UNREAD and elsewhere:
            raise MusiccmError(f"{where} is '{value}', outside of the folder; expected the name of a file in it")
    stated = content.get("tokenizer_class")
    if stated is not None and stated not in TOKENIZER_CLASSES:
        raise MusiccmError(f"{path}: tokenizer_class is {stated!r}; expected one of {', '.join(TOKENIZER_CLASSES)}")
    if not isinstance(content.get("_class_name"), str | None):
        raise MusiccmError(f"{path}: _class_name is {content['_class_name']!r}, which names code of its own; expected "
                           "the name of a class")


def check_index(path: Path, index: dict[str, Any]) -> None:
    """Refuse a `model_index.json` whose parts are of other libraries.

    Raises:
        MusiccmError: Naming the part.
    """
    check_config(path, {key: value for key, value in index.items() if key.startswith("_")})
    for part, stated in index.items():
        if part.startswith("_") or not isinstance(stated, list) or stated == [None, None]:
            continue
        if len(stated) != 2 or stated[0] not in LIBRARIES or not str(stated[1]).isidentifier():
            raise MusiccmError(f"{path}: {part} is {stated!r}; expected [library, class] of "
                               f"{' or '.join(LIBRARIES)}: no other code reads a part")


def check_base(path: Path, stated: Any) -> None:
    """Check the path under which a bundle's settings name the bundle that it borrows parts from.

    Args:
        path: The settings, for messages.
        stated: The value of `base.path`.

    Raises:
        MusiccmError: It is neither `../NAME`, a folder beside the bundle, nor a packaged name or hub id.
    """
    text = stated if isinstance(stated, str) else ""
    beside = text.removeprefix("../")
    sibling = text.startswith("../") and re.fullmatch(r"[^/\\\0]+", beside) and beside not in (".", "..")
    if not sibling and not _NAME.fullmatch(text):
        raise MusiccmError(f"{path}: the base is {stated!r}; expected a folder beside the bundle (../NAME), the name "
                           "of a packaged bundle, or a hub id: no other path is followed. Put the base beside the "
                           "bundle and write ../NAME in base.path, or export the student again without --base")


def _check_shards(path: Path, content: dict[str, Any]) -> None:
    """Refuse an index of weights in several files that names files elsewhere, or pickles."""
    names = content.get("weight_map")
    if not isinstance(names, dict):
        raise MusiccmError(f"{path}: expected weight_map, from the names of weights to files")
    for name in names.values():
        if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+\.safetensors", name):
            raise MusiccmError(f"{path}: weight_map names {name!r}; expected .safetensors files in the same folder")


def _entries(content: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every key with its value, at any depth; the entries of a list under the list's key."""
    stack: list[tuple[str, Any]] = [("", content)]
    while stack:
        key, value = stack.pop()
        if isinstance(value, dict):
            stack += [(str(inner), entry) for inner, entry in value.items()]
            yield from ((str(inner), entry) for inner, entry in value.items() if isinstance(entry, dict | list))
        elif isinstance(value, list):
            stack += [(key, entry) for entry in value]
        else:
            yield key, value

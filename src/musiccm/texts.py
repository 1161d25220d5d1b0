"""Texts that people write, and names of files as text.

A name on a disk is bytes. Where they are not UTF-8, Python holds each of those bytes as a lone surrogate, which opens
the file and can be written nowhere. So paths stay as Python has them in memory; wherever a name becomes text (clip ids,
reports, JSON, pages, the terminal) it is `escaped`, and `unescaped` makes the name again.
"""

from __future__ import annotations

import codecs
import json
import re
from pathlib import Path, PurePath
from typing import Any

from musiccm.errors import MusiccmError

#: Name of the error handler by which text streams write what their encoding lacks, as `printable` does.
PRINTABLE = "musiccm.printable"
_SURROGATE = re.compile("[\ud800-\udfff]")
# Bytes below 0x80 are always UTF-8, so that only these forms stand for a byte; 5c is the backslash itself.
_ESCAPE = re.compile(r"\\x(5c|[89a-f][0-9a-f])")
_BYTE_ORDER_MARKS = {codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF32_BE: "UTF-32", codecs.BOM_UTF16_LE: "UTF-16",
                     codecs.BOM_UTF16_BE: "UTF-16"}


def short(text: str, characters: int = 60) -> str:
    """A text of any length as a message names it.

    Args:
        text: The text.
        characters: What is shown at most.

    Returns:
        It, or its beginning and three dots.
    """
    return text if len(text) <= characters else text[: characters - 3] + "..."


def number_text(value: Any, form: str = ".4g", none: str = "None") -> str:
    """A value of a table or a line as text.

    Args:
        value: A float, or anything else.
        form: Of floats, as `format` takes it.
        none: What stands for None.

    Returns:
        The float in that form; whole numbers and texts as they are.
    """
    if value is None:
        return none
    return format(value, form) if isinstance(value, float) else str(value)


def escaped(name: str | PurePath) -> str:
    r"""The name of a file as text: a byte that is not UTF-8 is `\xe9`; a backslash that would read so is `\x5c`.

    Args:
        name: A name or path as Python has it.

    Returns:
        Text for ids and reports, different for different names; nearly every name is its own.
    """
    return printable(_ESCAPE.sub(lambda found: f"\\x5cx{found[1]}", str(name)))


def unescaped(text: str) -> str:
    """The name that `escaped` made a text of, as Python opens it."""
    return _ESCAPE.sub(lambda found: "\\" if found[1] == "5c" else chr(0xDC00 + int(found[1], 16)), text)


def require_utf8(folder: str | Path, option: str) -> None:
    """Refuse a folder for tensors whose name is not UTF-8: safetensors writes into it, and cannot open it again.

    Args:
        folder: What is to be written.
        option: What names it, for the message.

    Raises:
        MusiccmError: Its absolute path is not UTF-8.
    """
    path = str(Path(folder).absolute())
    if printable(path) != path:
        raise MusiccmError(f"{option} {folder}: the path is not UTF-8, and files of tensors cannot be opened under it; "
                           "name another folder")


def printable(text: str) -> str:
    """Any text with nothing in it that UTF-8 cannot write, for messages that names may stand in; see `escaped`."""
    return _SURROGATE.sub(lambda found: _backslashed(found[0]), text)


def _backslashed(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _write_backslashed(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_backslashed, error.object[error.start : error.end])), error.end


codecs.register_error(PRINTABLE, _write_backslashed)


def read_text(path: Path, errors: str = "strict") -> str:
    """The text of a file that people write: UTF-8, with a byte order mark or without.

    Args:
        path: The file.
        errors: What becomes of bytes that are not UTF-8; `surrogateescape` leaves them to the caller.

    Returns:
        The text without the mark, line ends as they are.

    Raises:
        OSError: It cannot be read.
        UnicodeDecodeError: It is not UTF-8.
        MusiccmError: Its byte order mark says that it is UTF-16 or UTF-32.
    """
    content = path.read_bytes()
    other = next((name for mark, name in _BYTE_ORDER_MARKS.items() if content.startswith(mark)), None)
    if other is not None:
        raise MusiccmError(f"{path}: the text is {other} (Windows calls it Unicode), expected UTF-8; save it again as "
                           f"UTF-8, or run `iconv -f {other} -t UTF-8`")
    return content.decode("utf-8-sig", errors=errors)


def load_json(text: str) -> Any:
    """Read JSON; whatever is wrong with it is a `ValueError`, also nesting that is too deep for the reader."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_json(path: Path, what: str, errors: str = "strict") -> dict[str, Any]:
    """Read a JSON object, or say which file is missing or broken.

    Args:
        path: The file.
        what: What it should hold, for the message.
        errors: See `read_text`.

    Returns:
        The object.

    Raises:
        MusiccmError: It is missing, cannot be read, or holds something else.
    """
    try:
        content = load_json(read_text(path, errors))
    except FileNotFoundError:
        raise MusiccmError(f"{path}: not found; {what} was expected there") from None
    except OSError as error:
        raise MusiccmError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise MusiccmError(f"{path}: not valid JSON ({error}); {what} was expected") from None
    if not isinstance(content, dict):
        raise MusiccmError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def json_text(value: Any) -> str:
    """A value as indented JSON; names in it are made `printable`."""
    text = json.dumps(value, indent=1, ensure_ascii=False)
    # Surrogates stand within strings alone, where JSON wants a backslash doubled.
    return _SURROGATE.sub(lambda found: "\\" + _backslashed(found[0]), text)

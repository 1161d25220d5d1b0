"""Tables in text files, read row by row, so that one broken row costs that row and is reported."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from musiccm.data.report import BadItem
from musiccm.errors import MusiccmError


@dataclass
class Table:
    """A text table.

    Args:
        path: The file.
        header: The names of its columns.
        rows: `(line, cells)` of every sound row, the line counted from 1; as many cells as the header has.
        bad: The others.
    """

    path: Path
    header: list[str]
    rows: list[tuple[int, list[str]]] = field(default_factory=list)
    bad: list[BadItem] = field(default_factory=list)

    def refuse(self, line: int, detail: str) -> BadItem:
        """Describe a row that cannot be used."""
        return malformed(self.path, line, detail)


def malformed(path: Path, line: int, detail: str) -> BadItem:
    """A row or line of an index that cannot be used; it has no id, so that its place is its name."""
    return BadItem(f"{path.name}:{line}", str(path), "malformed_row", f"line {line}: {detail}")


def read_text(path: Path, expected: str) -> str:
    """Read a text file of an index; bytes that are not UTF-8 come as lone surrogates, for the caller to report.

    Args:
        path: The file.
        expected: What it should hold, for the message.

    Returns:
        Its text, without a byte order mark, line ends as they are.

    Raises:
        MusiccmError: It cannot be read, or is empty.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise MusiccmError(f"{path}: cannot be read ({error}); expected {expected}") from error
    if not text.strip():
        raise MusiccmError(f"{path}: the file is empty; expected {expected}")
    return text


def is_text(value: str) -> bool:
    """Whether a string came from sound UTF-8."""
    return not any("\ud800" <= character <= "\udfff" for character in value)


def read_table(path: Path, delimiter: str = ",") -> Table:
    """Read a table with a header, quoted as spreadsheets do (RFC 4180).

    A row with an unclosed quote, bytes that are not UTF-8, or another number of cells than the header is bad; reading
    goes on at the next line.

    Args:
        path: The file.
        delimiter: Between cells.

    Returns:
        The table; empty lines are no rows.

    Raises:
        MusiccmError: The file cannot be read or has no sound header.
    """
    text = read_text(path, "a table with a line of column names")
    sound, lines = text.isascii() or is_text(text), list(io.StringIO(text, newline=""))
    table: Table | None = None
    begin = 0
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    restart = 0
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            if table is None:
                raise MusiccmError(f"{path}: line {begin + 1}: the column names cannot be read ({error})") from error
            table.bad.append(table.refuse(begin + 1, str(error)))
            # A quote that is never closed swallows all that follows: only its own line is given up.
            begin = restart = begin + 1
            reader = csv.reader(islice(lines, begin, None), delimiter=delimiter, strict=True)
            continue
        line, begin = begin + 1, restart + reader.line_num
        if not cells:
            continue
        if table is None:
            table = Table(path, [cell.strip() for cell in cells])
        elif len(cells) != len(table.header):
            table.bad.append(table.refuse(line, f"{len(cells)} cells, expected {len(table.header)}"))
        elif not sound and not all(map(is_text, cells)):
            table.bad.append(table.refuse(line, "not UTF-8"))
        else:
            table.rows.append((line, cells))
    assert table is not None  # the text is not empty
    if len(set(table.header)) != len(table.header) or not all(table.header):
        raise MusiccmError(f"{path}: expected column names, each once, in the first line, found {table.header[:8]}")
    return table


def inside_root(path: str) -> bool:
    """Whether a path of an index stays within the corpus: relative, and not climbing out of it."""
    parts = path.replace("\\", "/").split("/")
    absolute = path.startswith(("/", "\\")) or (len(path) > 1 and path[1] == ":" and path[0].isalpha())
    depth = 0
    for part in parts:
        depth += {"..": -1, ".": 0, "": 0}.get(part, 1)
        if depth < 0:
            return False
    return not absolute

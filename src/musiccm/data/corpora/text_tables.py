"""Tables in text files, read row by row, so that one broken row costs that row and is reported."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Container
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from musiccm import texts
from musiccm.data.corpora.report import BadItem
from musiccm.errors import MusiccmError

# What pandas writes at the head of its index, and what it reads that as the next time.
_PANDAS_INDEX = re.compile(r"(Unnamed: \d+)?")
# What pandas, NumPy and JSON in Python write for a value that is not there.
_MISSING = ("nan", "<na>")


@dataclass
class Table:
    """A text table.

    Args:
        path: The file.
        header: The names of its columns.
        rows: `(line, cells)` of every sound row, the line counted from 1; as many cells as the header has.
        bad: The others.
        notes: What else was seen, a sentence each.
    """

    path: Path
    header: list[str]
    rows: list[tuple[int, list[str]]] = field(default_factory=list)
    bad: list[BadItem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def refuse(self, line: int, detail: str) -> BadItem:
        """Describe a row that cannot be used."""
        return malformed(self.path, line, detail)


def malformed(path: Path, line: int, detail: str) -> BadItem:
    """A row or line of an index that cannot be used; it has no id, so that its place is its name."""
    return BadItem(texts.escaped(f"{path.name}:{line}"), texts.escaped(path), "malformed_row", f"line {line}: {detail}")


def read_text(path: Path, expected: str) -> str:
    """Read a text file of an index; bytes that are not UTF-8 come as lone surrogates, for the caller to report.

    Args:
        path: The file.
        expected: What it should hold, for the message.

    Returns:
        Its text, without a byte order mark, line ends as they are.

    Raises:
        MusiccmError: It cannot be read, is UTF-16, or is empty.
    """
    try:
        text = texts.read_text(path, errors="surrogateescape")
    except OSError as error:
        raise MusiccmError(f"{path}: cannot be read ({error}); expected {expected}") from error
    if not text.strip():
        raise MusiccmError(f"{path}: the file is empty; expected {expected}")
    return text


def is_text(value: str) -> bool:
    """Whether a string came from sound UTF-8."""
    return not any("\ud800" <= character <= "\udfff" for character in value)


def is_missing(value: object) -> bool:
    """Whether a text is only the word for a value that is not there, such as pandas' `nan`."""
    return isinstance(value, str) and value.strip().lower() in _MISSING


def read_table(path: Path, delimiter: str = ",", names: Container[str] = (), open_ended: bool = False) -> Table:
    """Read a table with a header, quoted as spreadsheets do (RFC 4180).

    A row with an unclosed quote, bytes that are not UTF-8, or another number of cells than the header is bad; reading
    goes on at the next line. A first column without a name is pandas' index, and is left away.

    Args:
        path: The file.
        delimiter: Between cells.
        names: Columns that hold names of files, which may be any bytes.
        open_ended: Whether the last column is a list: a row may have any number of cells from there on, also none.

    Returns:
        The table; empty lines are no rows. The rows of an open-ended one differ in length.

    Raises:
        MusiccmError: The file cannot be read or has no sound header.
    """
    text = read_text(path, "a table with a line of column names")
    sound, lines = text.isascii() or is_text(text), list(io.StringIO(text, newline=""))
    table: Table | None = None
    begin, index = 0, False
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
            if index := len(cells) > 1 and _PANDAS_INDEX.fullmatch(table.header[0]) is not None:
                table.notes.append(f"{path.name}: the first column has no name, and is ignored as pandas' index")
                del table.header[0]
            continue
        expected = len(table.header) + index
        if len(cells) < expected - 1 if open_ended else len(cells) != expected:
            least = f"{expected - 1} or more" if open_ended else expected
            table.bad.append(table.refuse(line, f"{len(cells)} cells, expected {least}"))
            if begin > line:
                # A quote swallowed the lines up to the next one: only the line of the first is given up.
                begin = restart = line
                reader = csv.reader(islice(lines, begin, None), delimiter=delimiter, strict=True)
            continue
        cells = cells[index:]
        if not sound and not all(is_text(cell) for place, cell in enumerate(cells)
                                 if table.header[min(place, len(table.header) - 1)] not in names):
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

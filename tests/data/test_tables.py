from __future__ import annotations

import csv
import io
from pathlib import PurePosixPath

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from musiccm.data.corpora.text_tables import inside_root, read_table
from musiccm.errors import MusiccmError

ROOMY = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
# Anything but what no text file can hold; NUL is refused by Python 3.10's csv.
CELL = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)


@ROOMY
@given(st.lists(st.lists(CELL, min_size=3, max_size=3), max_size=8), st.sampled_from(",\t;"), st.booleans())
def test_what_a_spreadsheet_writes_is_read_back(tmp_path, rows, delimiter, bom):
    written = io.StringIO()
    writer = csv.writer(written, delimiter=delimiter, quoting=csv.QUOTE_ALL)
    writer.writerows([["path", "caption", "more"], *rows])
    (tmp_path / "t.csv").write_bytes((b"\xef\xbb\xbf" if bom else b"") + written.getvalue().encode())
    table = read_table(tmp_path / "t.csv", delimiter)
    assert table.header == ["path", "caption", "more"] and table.bad == []
    assert [cells for _, cells in table.rows] == rows
    lines = io.StringIO(written.getvalue(), newline="").readlines()
    assert all(lines[line - 1].startswith('"' + cells[0].split("\n")[0].split("\r")[0].replace('"', '""'))
               for line, cells in table.rows)


BROKEN = {
    b"only one cell": "1 cells, expected 3", b"a,b,c,d": "4 cells", b'"never closed,b,c': "",
    b'"closed"too early,b,c': "", b"a,caf\xe9,c": "not UTF-8",
}


@ROOMY
@given(st.lists(st.one_of(st.sampled_from(list(BROKEN)), st.just(b"fine,row,here")), max_size=12))
def test_a_broken_row_costs_that_row_alone(tmp_path, lines):
    (tmp_path / "t.csv").write_bytes(b"\n".join([b"path,caption,more", *lines]) + b"\n")
    table = read_table(tmp_path / "t.csv")
    sound = [n for n, line in enumerate(lines, 2) if line not in BROKEN]
    assert [line for line, _ in table.rows] == sound
    assert [item.id for item in table.bad] == [f"t.csv:{n}" for n, line in enumerate(lines, 2) if line in BROKEN]
    for item in table.bad:
        assert item.reason == "malformed_row" and BROKEN[lines[int(item.id.split(":")[1]) - 2]] in item.detail


@ROOMY
@given(st.binary(max_size=200))
def test_any_bytes_are_a_table_or_one_message(tmp_path, content):
    (tmp_path / "t.csv").write_bytes(content)
    try:
        table = read_table(tmp_path / "t.csv")
    except MusiccmError as error:
        assert "t.csv" in str(error)
    else:
        assert all(len(cells) == len(table.header) for _, cells in table.rows)


@pytest.mark.parametrize(("content", "message"), [
    (None, "cannot be read"), (b"", "is empty"), (b"\n \n", "is empty"), (b"a,a\n1,2\n", "each once"),
    (b"a,,c\n", "each once"), (b'"a,b\n1,2\n', "column names cannot be read"),
])
def test_a_table_without_a_header_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(MusiccmError, match=rf"t\.csv.*{message}"):
        read_table(tmp_path / "t.csv")


@ROOMY
@given(st.lists(st.sampled_from(["..", ".", "a", "b.mp3", ""]), min_size=1, max_size=6))
def test_paths_that_leave_the_root(tmp_path, parts):
    path = "/".join(parts)
    depth, lowest = 0, 0
    for part in PurePosixPath(path).parts:
        depth += -1 if part == ".." else part not in (".", "/")
        lowest = min(lowest, depth)
    assert inside_root(path) == (lowest >= 0 and not path.startswith("/"))
    for other in ("C:/x.wav", "C:\\x.wav", "\\\\host\\x.wav", "a\\..\\..\\x.wav"):
        assert not inside_root(other)

"""Files that cannot be written: each condition made for real where the system lets us, and named for what it is."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from musiccm import failures, files
from musiccm.audio import write_audio
from musiccm.audio.wav_stream import WavStream
from musiccm.cli import describe
from musiccm.errors import MusiccmError
from musiccm.files import move_into_place, naming_full_disk, replacing_folder, short_name, write_atomically, write_text


def said(write: Callable[[], object]) -> str:
    with pytest.raises(MusiccmError) as caught:
        write()
    return str(caught.value)


WRITERS = {
    "text": lambda path: write_text(path, "x"),
    "audio": lambda path: write_audio(path.with_suffix(".wav"), torch.zeros(100), 8000),
    "stream": lambda path: WavStream(path.with_suffix(".wav"), 8000),
    "safetensors": lambda path: write_atomically(path, lambda t: save_file({"a": torch.zeros(3)}, t)),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_what_is_in_the_way_is_named(tmp_path: Path, writer: str) -> None:
    write = WRITERS[writer]
    (tmp_path / "file").write_text("")
    (tmp_path / "folder" / "x.wav").mkdir(parents=True)
    (tmp_path / "folder" / "x").mkdir()
    for path, expected in (
        (tmp_path / "file" / "x", f"{tmp_path / 'file'} is no folder"),
        (tmp_path / "file" / "deeper" / "x", f"{tmp_path / 'file'} is no folder"),
        (tmp_path / "folder" / "x", "a folder is there"),
        (tmp_path / ("n" * 300), "bytes is too long for this file system"),
        (tmp_path / ("n" * 300) / "x", "300 bytes is too long"),
    ):
        text = said(lambda path=path: write(path))  # type: ignore[misc]
        assert f"{path}" in text and "could not be written" in text and expected in text
        assert "free space" not in text and "Errno" not in text


def test_a_full_device() -> None:
    def write() -> None:
        with naming_full_disk(Path("/dev/full")), open("/dev/full", "wb") as file:
            file.write(b"x" * 100_000)

    assert "/dev/full: could not be written: the disk is full; free space" in said(write)

    def stream() -> None:
        wav = WavStream("/dev/null", 8000)
        wav._file = open("/dev/full", "wb", buffering=0)
        wav.write(torch.zeros(100))

    assert "the disk is full; free space" in said(stream)


def test_a_folder_that_is_removed_meanwhile(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    text = said(lambda: write_atomically(folder / "x", lambda temporary: shutil.rmtree(folder)))
    assert f"its folder {folder} is not there" in text and "free space" not in text


@pytest.mark.parametrize(("number", "expected"), [
    (errno.EDQUOT, "quota of this disk is used up; free space"), (errno.EROFS, "read-only"),
    (errno.EACCES, "permission denied"), (errno.EPERM, "does not permit"), (errno.EIO, "disk reports an error"),
    (errno.EBUSY, os.strerror(errno.EBUSY)),
])
def test_what_a_test_cannot_bring_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, expected: str
) -> None:
    def fails(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.os, "replace", fails)
    for write in (WRITERS["text"], WRITERS["audio"]):
        text = said(lambda write=write: write(tmp_path / "x"))  # type: ignore[misc]
        assert expected in text and ("free space" in text) == (number == errno.EDQUOT)
    assert list(tmp_path.iterdir()) == []


def test_what_libraries_quote(tmp_path: Path) -> None:
    full = RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert failures.error_number(full) == errno.ENOSPC
    copied = shutil.Error([("a", "b", f"[Errno {errno.EROFS}] Read-only file system: 'b'")])
    assert failures.error_number(copied) == errno.EROFS
    assert failures.error_number(RuntimeError("no number")) is None


READ_ONLY = """
import sys
from pathlib import Path
from musiccm.errors import MusiccmError
from musiccm.files import write_text
try:
    write_text(Path(sys.argv[1]) / "x.txt", "x")
except MusiccmError as error:
    print(error)
"""


def test_a_read_only_file_system(tmp_path: Path) -> None:
    command = f"mount -t tmpfs -o ro none {tmp_path} && exec {sys.executable} -c '{READ_ONLY}' {tmp_path}"
    try:
        done = subprocess.run(["unshare", "--mount", "sh", "-c", command], capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        pytest.skip("no unshare here")
    if done.returncode:
        pytest.skip(f"no mounts of our own here: {done.stderr}")
    assert "x.txt: could not be written: the file system is read-only" in done.stdout
    assert "free space" not in done.stdout


@pytest.mark.parametrize("hard_links", [True, False])
def test_a_name_that_is_taken_stays_unless_it_may_be_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hard_links: bool
) -> None:
    def link(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")  # exFAT and the like

    if not hard_links:
        monkeypatch.setattr(files.os, "link", link)
    made, name = tmp_path / "made", tmp_path / "name"
    made.write_text("new")
    move_into_place(made, name, replace=False)
    assert name.read_text() == "new" and list(tmp_path.iterdir()) == [name]

    made.write_text("newer")
    assert f"{name}: was made by something else meanwhile" in said(lambda: move_into_place(made, name, replace=False))
    assert name.read_text() == "new" and made.read_text() == "newer"
    name.unlink()
    name.symlink_to("nowhere")
    said(lambda: move_into_place(made, name, replace=False))
    assert name.is_symlink()
    move_into_place(made, name)
    assert name.read_text() == "newer" and list(tmp_path.iterdir()) == [name]


def test_a_wav_that_came_meanwhile_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(b"theirs")
    for write in (lambda: write_audio(path, torch.zeros(10), 8000, replace=False),
                  lambda: WavStream(path, 8000, replace=False)):
        assert "is not overwritten" in said(write)
        assert path.read_bytes() == b"theirs" and list(tmp_path.iterdir()) == [path]


def replace_folder(folder: Path, text: str, replace: bool) -> None:
    with replacing_folder(folder, replace) as staging:
        staging.mkdir()
        (staging / "file").write_text(text)


def test_folders_take_their_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "bundle"
    target.mkdir()  # empty
    replace_folder(target, "1", replace=False)
    assert (target / "file").read_text() == "1"
    assert "is not overwritten" in said(lambda: replace_folder(target, "2", replace=False))
    assert (target / "file").read_text() == "1"
    # Where the swap fails in its middle, the old one comes back.
    rename = Path.rename
    monkeypatch.setattr(Path, "rename", lambda self, to: rename(self, to) if self.name != "new" else full())
    assert "the disk is full" in said(lambda: replace_folder(target, "2", replace=True))
    assert (target / "file").read_text() == "1"
    monkeypatch.undo()
    replace_folder(target, "2", replace=True)
    assert (target / "file").read_text() == "2" and [p.name for p in tmp_path.iterdir()] == ["bundle"]


def full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_name_that_leaves_room() -> None:
    assert short_name("clip", 180) == "clip"
    cut, also = (short_name("ü" * 120 + end, 180) for end in "ab")
    assert cut != also and cut.startswith("üü") and len(os.fsencode(cut)) <= 180


def test_the_system_s_own_word_for_a_long_name() -> None:
    name = "ü" * 126 + ".wav"  # 256 bytes, though 130 characters
    message, code = describe(OSError(errno.ENAMETOOLONG, "File name too long", name))
    assert code == 2 and name in message and "256 bytes" in message and "shorter" in message

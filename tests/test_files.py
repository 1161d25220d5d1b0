"""Files written whole: names as long as the file system takes, and what is said of longer ones."""

import errno
import os

import pytest
import torch

from musiccm.audio.io import write_audio
from musiccm.cli import describe
from musiccm.errors import MusiccmError
from musiccm.export import StudentInfo, export_student
from musiccm.files import hidden_name, short_name, write_json, write_text

# 255 bytes is what ext4, xfs, btrfs and tmpfs take.
LONGEST = {"ascii": "a" * 251, "two bytes": "ü" * 125 + "a", "four bytes": "🎵" * 62 + "abc"}


@pytest.mark.parametrize("stem", LONGEST.values(), ids=LONGEST.keys())
def test_a_name_may_be_as_long_as_the_file_system_takes(tmp_path, stem):
    assert len(os.fsencode(stem)) == 251
    for write, name in (
        (lambda path: write_audio(path, torch.full((160,), 0.1), 16000), f"{stem}.wav"),
        (lambda path: write_json(path, {}), f"{stem[:-1]}.json"),
        (lambda path: write_text(path, "x"), f"{stem}.txt"),
    ):
        write(tmp_path / name)
        assert (tmp_path / name).stat().st_size > 0
    assert len(list(tmp_path.iterdir())) == 3, "nothing else is left"


def test_a_longer_name_is_said_to_be_too_long(tmp_path):
    name = "ü" * 126 + ".wav"  # 256 bytes, though 130 characters
    with pytest.raises(MusiccmError, match="name is longer than the file system allows.*shorter"):
        write_audio(tmp_path / name, torch.full((160,), 0.1), 16000)
    assert list(tmp_path.iterdir()) == []
    message, code = describe(OSError(errno.ENAMETOOLONG, "File name too long", name))
    assert code == 2 and name in message and "shorter" in message


def test_hidden_names_leave_room_and_differ():
    assert hidden_name("out", ".partial") == ".out.partial"
    one, other = (hidden_name("ü" * 120 + end, ".partial") for end in ("a" * 10, "b" * 10))
    assert one != other and one.endswith(".partial")
    assert max(len(os.fsencode(name)) for name in (one, other)) + 8 <= 255
    assert short_name("clip", 180) == "clip"
    cut, also = (short_name("ü" * 120 + end, 180) for end in "ab")
    assert cut != also and cut.startswith("üü") and len(os.fsencode(cut)) <= 180


def test_an_export_may_have_a_long_name(tmp_path):
    from tiny_bundle import build_random_bundle, make_unet

    from musiccm.models.bundle import Bundle

    teacher = Bundle.from_pretrained(build_random_bundle(tmp_path / "teacher", frames=4, evaluators=False))
    folder = export_student(make_unet(frames=4), teacher, tmp_path / ("ü" * 125), StudentInfo("v_prediction", 3.0))
    assert (folder / "model_index.json").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["teacher", "ü" * 125]

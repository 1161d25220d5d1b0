"""Checkpoints that hold more than tensors: refused, named, and never with the advice to switch the protection off."""

import datetime
import os
import pickle

import pytest
import torch

from musiccm.commands._checkpoints import CheckpointFiles
from musiccm.commands.export import read_student
from musiccm.embedders.clap import conditioner_from_folder
from musiccm.embedders.weights import load_checkpoint
from musiccm.errors import MusiccmError, reason
from musiccm.models.convert.reading import read_original


class Command:
    """Would run when it is unpickled."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def zipped(path, target):
    torch.save({"state_dict": {}, "x": Command(target)}, path)


def legacy(path, target):
    torch.save({"state_dict": {}, "x": Command(target)}, path, _use_new_zipfile_serialization=False)


def bare(path, target):
    path.write_bytes(pickle.dumps({"x": Command(target)}))


def harmless(path, target):
    torch.save({"state_dict": {}, "x": datetime.timedelta(1)}, path)


def script(path, target):
    torch.jit.script(torch.nn.Linear(1, 1)).save(str(path))


READERS = {
    "run": lambda path: CheckpointFiles().load_checkpoint(path), "export": read_student, "embedder": load_checkpoint,
    "convert": read_original,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("write", [zipped, legacy, bare, harmless, script])
def test_no_message_advises_to_read_more_than_tensors(tmp_path, reader, write):
    path, target = tmp_path / "file.ckpt", tmp_path / "made"
    write(path, target)
    try:
        READERS[reader](path)
    except MusiccmError as error:
        said = str(error)
        assert "file.ckpt" in said
        assert "weights_only" not in said and "safe_globals" not in said and "\x1b" not in said, said
    else:
        assert (reader, write) == ("convert", harmless)  # what is no weight becomes an empty stand-in there
    assert not target.exists(), "code of the file ran"


def test_a_transformers_folder_with_a_pickle_is_refused_likewise(tmp_path):
    from tiny_bundle import make_clap

    folder = tmp_path / "clap"
    make_clap(64).save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    zipped(folder / "pytorch_model.bin", tmp_path / "made")
    with pytest.raises(MusiccmError) as raised:
        conditioner_from_folder(str(folder))
    assert str(folder) in str(raised.value) and "weights_only" not in str(raised.value)
    assert not (tmp_path / "made").exists()


def test_what_was_found_is_named(tmp_path):
    harmless(tmp_path / "x.pt", None)
    with pytest.raises(pickle.UnpicklingError) as raised:
        torch.load(tmp_path / "x.pt", weights_only=True)
    assert reason(raised.value) == "only tensors and plain values are read, and it refers to datetime.timedelta"
    assert reason(KeyError(101)) == "KeyError: 101"
    assert reason(EOFError()) == "EOFError"

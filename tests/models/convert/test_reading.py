"""Foreign checkpoints are read without running anything in them."""

import argparse
import collections
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from musiccm.errors import MusiccmError
from musiccm.models.convert.ldm import LdmCheckpoint, describe_betas
from musiccm.models.convert.reading import read_original, tensors_of


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_objects_beside_the_weights_become_stand_ins(tmp_path: Path) -> None:
    """What training checkpoints carry: arguments, NumPy scalars, default dictionaries."""
    beside = {"args": argparse.Namespace(lr=1.0), "best": np.float64(0.3), "counts": collections.defaultdict(int, a=1),
              "shape": np.zeros(3), "path": Path("somewhere")}
    torch.save({"state_dict": {"a": torch.ones(2)}, "hyper_parameters": beside}, tmp_path / "a.ckpt")
    content = read_original(tmp_path / "a.ckpt")
    tensors, ignored = tensors_of(content, "a", "state_dict")
    assert tensors["a"].tolist() == [1, 1] and ignored == ["hyper_parameters"]
    assert type(content["hyper_parameters"]["args"]) is not argparse.Namespace
    assert not hasattr(content["hyper_parameters"]["args"], "lr")
    torch.save({"module.a": torch.ones(1), "module.b": torch.ones(1)}, tmp_path / "b.pt")
    assert set(tensors_of(read_original(tmp_path / "b.pt"), "b", "state_dict")[0]) == {"a", "b"}
    mixed = {"a": torch.ones(1), "version": 3}
    assert tensors_of({"epoch": 1, "state_dict": mixed}, "c", "state_dict")[1] == ["epoch", "state_dict.version"]
    assert tensors_of(mixed, "d", "state_dict")[1] == ["version"]


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_file_is_not_run(tmp_path: Path, legacy: bool) -> None:
    trap = tmp_path / "sprung"
    path = tmp_path / "bomb.ckpt"
    torch.save({"state_dict": {"a": torch.ones(1)}, "x": Bomb(trap)}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(MusiccmError, match="bomb.ckpt"):
        read_original(path)
    assert not trap.exists()
    path.write_bytes(pickle.dumps(Bomb(trap)))
    with pytest.raises(MusiccmError, match="bomb.ckpt"):
        read_original(path)
    assert not trap.exists()


def test_files_that_are_no_checkpoints_are_named(tmp_path: Path) -> None:
    with pytest.raises(MusiccmError, match="no such file"):
        read_original(tmp_path / "none.ckpt")
    torch.save([1, 2], tmp_path / "list.ckpt")
    with pytest.raises(MusiccmError, match="expected a dictionary"):
        read_original(tmp_path / "list.ckpt")
    torch.save({"state_dict": {"a": torch.ones(1)}}, tmp_path / "cut.ckpt")
    whole = (tmp_path / "cut.ckpt").read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(MusiccmError, match="cut.ckpt"):
        read_original(tmp_path / "cut.ckpt")
    torch.save({"state_dict": {"a": torch.ones(1)}}, tmp_path / "other.ckpt")
    with pytest.raises(MusiccmError, match="model.diffusion_model"):
        LdmCheckpoint(tmp_path / "other.ckpt")
    with pytest.raises(MusiccmError, match="expected weights by name"):
        tensors_of({"epoch": 3}, "x", "state_dict")


def test_betas_are_described_by_their_ends_where_these_give_them() -> None:
    betas = torch.linspace(0.0015**0.5, 0.0195**0.5, 1000, dtype=torch.float64) ** 2
    assert describe_betas(betas.float()) == {"num_train_timesteps": 1000, "beta_schedule": "scaled_linear",
                                             "beta_start": 0.0015, "beta_end": 0.0195}
    assert describe_betas(torch.linspace(1e-4, 0.02, 500))["beta_schedule"] == "linear"
    odd = betas.clone()
    odd[500] *= 1.5
    assert describe_betas(odd)["trained_betas"] == odd.tolist()


def test_averaged_weights_are_found_by_their_names_without_dots(tmp_path: Path) -> None:
    raw = {"a.0.weight": torch.ones(2), "b.bias": torch.zeros(1)}
    state = {f"model.diffusion_model.{k}": v for k, v in raw.items()} | {"scale_factor": torch.tensor(0.5)}
    torch.save({"state_dict": state}, tmp_path / "raw.ckpt")
    with pytest.raises(MusiccmError, match="no averaged weights.*--weights raw"):
        LdmCheckpoint(tmp_path / "raw.ckpt").unet("ema")
    ema = {"model_ema.diffusion_modela0weight": torch.full((2,), 3.0), "model_ema.diffusion_modelbbias": torch.ones(1)}
    torch.save({"state_dict": state | ema}, tmp_path / "both.ckpt")
    ldm = LdmCheckpoint(tmp_path / "both.ckpt")
    assert ldm.unet("ema")["a.0.weight"].tolist() == [3, 3] and ldm.unet("raw")["a.0.weight"].tolist() == [1, 1]
    del ema["model_ema.diffusion_modelbbias"]
    torch.save({"state_dict": state | ema}, tmp_path / "half.ckpt")
    with pytest.raises(MusiccmError, match="1 lack"):
        LdmCheckpoint(tmp_path / "half.ckpt").unet("ema")
    assert ldm.scale_factor(None) == 0.5
    with pytest.raises(MusiccmError, match="0.5.*0.7"):
        ldm.scale_factor(0.7)

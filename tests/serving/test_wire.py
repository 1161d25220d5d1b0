"""Values as bytes: what goes in comes out, to the bit, and nothing else is taken."""

from __future__ import annotations

import json
import math
import pickle

import pytest
import torch
from safetensors.torch import save

from musiccm.diffusion import Condition, told_scale
from musiccm.errors import MusiccmError
from musiccm.serving.wire import moved, packed, unpacked


def same(found, given) -> bool:
    if isinstance(given, torch.Tensor):
        return found.dtype == given.dtype and found.shape == given.shape and torch.equal(found, given)
    if isinstance(given, Condition):
        return isinstance(found, Condition) and same(list(vars(found).values()), list(vars(given).values()))
    if isinstance(given, list | tuple):
        return type(found) is type(given) and len(found) == len(given) and all(map(same, found, given))
    if isinstance(given, dict):
        return found.keys() == given.keys() and all(same(found[name], given[name]) for name in given)
    return type(found) is type(given) and (found == given or (given != given and found != found))


def values() -> dict:
    z = torch.randn(2, 3, 4)
    tokens = Condition(torch.randn(2, 5, 3), torch.rand(2, 5) > 0.5, torch.randn(2, 4))
    return {"views": [z, z[:, 1], z.transpose(1, 2), z.expand(2, 2, 3, 4)], "layout": torch.empty(0, 3),
            "half": (torch.randn(3).bfloat16(), torch.tensor(7), torch.tensor(True)), "scale": told_scale(z[:, 0], 2.5),
            "tokens": tokens, "plain": [None, True, 3, 0.1, math.inf, math.nan, 2**62, "caf\u00e9 \U0001f3b5"],
            "deep": {"a": [({"b": ()},)]}, "tensor": {"tensor": "0"}}


def test_what_goes_in_comes_out():
    given = values()
    assert same(unpacked(packed(given)), given)
    assert same(moved(given, torch.device("cpu")), given)
    assert moved(given, torch.device("meta"))["half"][0].device.type == "meta"


@pytest.mark.parametrize("data", [
    b"", b"{}", pickle.dumps([1]), save({"other": torch.zeros(2)}),
    *(save({"layout": torch.frombuffer(bytearray(json.dumps(layout).encode()), dtype=torch.uint8)})
      for layout in ({"tensor": "9"}, {"object": 1}, {"condition": [None] * 4}, {"list": 3}, {})),
])
def test_bytes_that_are_none_are_refused(data):
    with pytest.raises(MusiccmError, match=r"expected"):
        unpacked(data)


def test_what_cannot_be_written_is_refused():
    with pytest.raises(TypeError, match="found slice"):
        packed({"args": (slice(1),)})

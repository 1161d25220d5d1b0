"""What every embedder shares."""

import pytest
import torch
from torch import nn

from musiccm.embedders.base import Embeddings
from musiccm.embedders.frozen import FrozenEmbedder, batches, fingerprint


def precisions():
    backends = torch.backends
    return [place.fp32_precision for place in (backends.cudnn.conv, backends.cuda.matmul, backends.mkldnn.conv,
                                               backends.mkldnn.matmul)]


class Recording(FrozenEmbedder):
    """Remembers under what settings it found."""

    def __init__(self):
        super().__init__("recording", 16000, 4)
        self.linear = nn.Linear(1, 1)
        self.freeze(self.linear, step=1)

    def embed(self, waveform_BS):
        if waveform_BS.shape[-1] == 5:
            raise RuntimeError("on purpose")
        self.seen = precisions(), torch.is_autocast_enabled("cpu"), torch.is_grad_enabled(), waveform_BS.dtype
        return Embeddings(waveform_BS[:, :1], [1] * len(waveform_BS))


@pytest.fixture
def _careless():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.usefixtures("_careless")
def test_hears_in_full_float32_whatever_the_trainer_set_and_leaves_it_set():
    embedder, before = Recording(), precisions()
    assert "bf16" in before
    with torch.autocast("cpu", torch.bfloat16):
        embedder(torch.zeros(2, 8, dtype=torch.float64), 16000)
        assert torch.is_autocast_enabled("cpu")
    assert embedder.seen == (["ieee"] * 4, False, False, torch.float32)
    assert precisions() == before
    with pytest.raises(RuntimeError, match="on purpose"):
        embedder(torch.zeros(1, 5), 16000)
    assert precisions() == before


def test_stays_frozen():
    embedder = Recording().train()
    assert not any(module.training for module in embedder.modules())
    assert not any(parameter.requires_grad for parameter in embedder.parameters())


def test_fingerprint_is_of_values_names_and_numbers():
    one, two = nn.Linear(2, 3), nn.Linear(2, 3)
    two.load_state_dict(one.state_dict())
    assert fingerprint((one,), {"a": 1}) == fingerprint((two,), {"a": 1})
    assert fingerprint((one,), {"a": 1}) != fingerprint((one,), {"a": 2})
    with torch.no_grad():
        two.weight[0, 0] += 1e-3
    assert fingerprint((one,), {"a": 1}) != fingerprint((two,), {"a": 1})


@pytest.mark.parametrize(("count", "cost", "budget"), [(7, 2, 6), (7, 100, 6), (1, 1, 1), (6, 1, 3)])
def test_batches_cover_all_once_within_the_budget(count, cost, budget):
    parts = list(batches(count, cost, budget))
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(count))
    assert all((part.stop - part.start) * cost <= max(budget, cost) for part in parts)

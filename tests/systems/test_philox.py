"""Draws by a counter: the published integers, the normal distribution, and the same bits wherever they are computed."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch._subclasses.fake_tensor import FakeTensorMode

from musiccm.device import sent
from musiccm.systems import parallel
from musiccm.systems.philox import normal_rows, philox

CPU = torch.device("cpu")


@pytest.mark.parametrize(("counter", "key", "result"), [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1")])
def test_integers_are_those_of_random123(counter: str, key: str, result: str, device: str) -> None:
    """`kat_vectors` of Random123 1.14, `philox4x32 10`; the same counter twice, as many are computed together."""
    words = torch.tensor([int(word, 16) for word in counter.split()], device=device)
    low, high = (int(word, 16) for word in key.split())
    signed = (high << 32 | low) - (1 << 64 if high >> 31 else 0)
    odd, even = philox(words[:, None].expand(4, 2), torch.tensor(signed))
    for place in range(2):
        found = [odd[0, place], even[0, place], odd[1, place], even[1, place]]
        assert [f"{int(word):08x}" for word in found] == result.split()


def test_numbers_are_box_and_mullers_of_these_integers() -> None:
    key, row, size = torch.tensor(7), 3, 4000
    counters = torch.zeros(4, size // 4, dtype=torch.int64)
    counters[0], counters[1] = torch.arange(size // 4), row
    odd, even = philox(counters, key)
    expected = []
    for block in range(size // 4):
        u = [(int(word) + 1) / 2**32 for word in odd[:, block]]
        angle = [2 * math.pi * (int(word) / 2**32 - 0.5) for word in even[:, block]]
        expected += [math.sqrt(-2 * math.log(u[k])) * f(angle[k]) for f in (math.sin, math.cos) for k in range(2)]
    found = normal_rows(key, row, 1, size, CPU)[0]
    torch.testing.assert_close(found.double(), torch.tensor(expected).double(), rtol=1e-7, atol=1e-8)


def test_numbers_are_normal_and_do_not_depend_on_each_other() -> None:
    x = normal_rows(torch.tensor(11), 0, 64, 4096, CPU)
    assert stats.kstest(x.flatten().numpy(), "norm").pvalue > 1e-3
    assert x.isfinite().all() and 4.3 < float(x.abs().max()) < 6.7
    lagged = [float((x[:, k:] * x[:, : 4096 - k]).mean()) for k in range(1, 9)]  # a block is four numbers
    rows = torch.corrcoef(x) - torch.eye(64)
    squares = torch.corrcoef(x.square().view(-1, 4).T) - torch.eye(4)  # two numbers share a radius
    assert max(map(abs, lagged)) < 5 / 512 and float(rows.abs().max()) < 5 / 64
    assert float(squares.abs().max()) < 5 / 256
    other = normal_rows(torch.tensor(12), 0, 64, 4096, CPU)
    assert abs(float((x * other).mean())) < 5 / 512


def test_bits_are_the_same_everywhere(device: str) -> None:
    """Written down: on no machine, device or version of torch may they be others."""
    found = normal_rows(torch.tensor(0x123456789ABCDEF), 5, 2, 5, torch.device(device))
    assert found.dtype == torch.float32
    assert found.cpu().view(torch.int32).tolist() == BITS


BITS = [[1042918584, 1056489576, 1047953989, 1065431307, -1083932280],
        [1024769767, 1019315518, 1054076885, -1089769318, -1088765836]]


@pytest.mark.parametrize("world", [2, 4])
def test_a_process_computes_its_own_rows_alone(world: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what is drawn afterwards does not depend on how many there are."""

    def drawn(rank: int, world: int) -> tuple[torch.Tensor, torch.Tensor]:
        monkeypatch.setattr(parallel, "rank_and_world", lambda: (rank, world))
        generator = torch.Generator().manual_seed(3)
        like = torch.empty(8 // world, 3, 2, 5)
        return parallel.normal_like(like, generator), torch.rand(1, generator=generator)

    whole, after = drawn(0, 1)
    parts = [drawn(rank, world) for rank in range(world)]
    assert torch.equal(torch.cat([rows for rows, _ in parts]), whole)
    assert all(torch.equal(then, after) for _, then in parts)
    assert not torch.equal(whole[0], whole[1])


def test_a_draw_goes_on_where_the_generator_stands() -> None:
    generator = torch.Generator().manual_seed(3)
    like = torch.empty(2, 3)
    first = parallel.normal_like(like, generator)
    state = generator.get_state()
    second = parallel.normal_like(like, generator)
    again = torch.Generator()
    again.set_state(state)
    assert torch.equal(parallel.normal_like(like, again), second) and not torch.equal(first, second)


def test_what_is_there_already_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samplers send whatever noise they are given; page-locked memory is the host's alone."""
    with FakeTensorMode():
        there = torch.empty(2, device="cuda")
        monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pytest.fail("of the device's memory"))
        assert sent(there, there.device) is there

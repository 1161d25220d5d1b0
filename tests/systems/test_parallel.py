"""Two processes train what one trains on their batches together; both hold the same weights at every step."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import forked
import pytest
import ranks
import torch
from tiny_bundle import build_random_bundle
from torch import Tensor

pytestmark = pytest.mark.e2e

#: Relative distances that another order of summation may make in float32 (measured: 7e-5 and 6e-6).
GRADIENTS, WEIGHTS = 3e-4, 3e-5


class Runs(NamedTuple):
    """What one process came to and each of two, and what the two had saved in the middle of a step."""

    one: dict
    two: list[dict]
    saved: Path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """One process, and two."""
    folder = tmp_path_factory.mktemp("ranks")
    bundle = str(build_random_bundle(folder / "bundle"))
    for name in ("one", "two"):
        (folder / name).mkdir()
    forked.spawn(ranks.worker, (bundle, folder / "two", "ddp", forked.free_port()), 2)
    both = [torch.load(folder / "two" / f"rank{rank}.pt", weights_only=False) for rank in range(2)]
    return Runs(ranks.run(bundle, folder / "one", "auto"), both, folder / "two" / "adversarial.ckpt")


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    gap, size = (torch.cat([value.double().flatten() for value in values])
                 for values in ([a[n] - b[n] for n in a], list(b.values())))
    return float(gap.norm() / size.norm())


@pytest.mark.parametrize("case", [*ranks.CASES, "resumed"])
def test_both_processes_hold_the_same_bits(runs: Runs, case: str) -> None:
    first, second = (found[case] for found in runs.two)
    for part in ("state", "optimizers", "gradients", "watched", "step"):
        assert same(first[part], second[part]), part


@pytest.mark.parametrize("case", ranks.CASES)
def test_two_processes_equal_one_with_the_double_batch(runs: Runs, case: str) -> None:
    one, two = runs.one[case], runs.two[0][case]
    assert one["step"] == two["step"] == ranks.STEPS
    # The warm start has no step of heads and critic.
    assert len(one["gradients"]) == len(two["gradients"]) == (5 if case in ("adversarial", "matching") else 3)
    assert max(distance(a, b) for a, b in zip(two["gradients"], one["gradients"], strict=True)) < GRADIENTS
    for mine, theirs in zip(two["watched"], one["watched"], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-3, abs=1e-5), "logged figures are means over processes"
    for module in {name.split(".")[0] for name in one["state"]}:
        # A bias before a batch norm changes nothing: its gradient is rounding alone, which AdamW makes a step of.
        mine = [name for name in one["state"] if name.startswith(f"{module}.")]
        names = [name for name in mine if module != "discriminator" or not name.endswith("conv.bias")]
        found, expected = ({n: run["state"][n] for n in names} for run in (two, one))
        assert distance(found, expected) < WEIGHTS, module


def test_a_resumed_run_of_two_processes_goes_on_to_the_same_bits(runs: Runs) -> None:
    """Saved between two batches of a step: what the heads had gathered by then is of both processes."""
    for found in runs.two:
        assert same(found["resumed"]["state"], found["adversarial"]["state"])
        assert same(found["resumed"]["optimizers"], found["adversarial"]["optimizers"])


def test_the_heads_keep_no_running_statistics(runs: Runs) -> None:
    """Their batch norm is local: of it, only weight and bias go into a checkpoint, and nothing is synchronised."""
    names = {name.rsplit(".", 1)[-1] for name in runs.one["adversarial"]["state"] if name.startswith("discriminator.")}
    assert names == {"weight", "bias", "original", "_u", "_v"}


def test_sharded_networks_train_as_whole_ones(runs: Runs, tmp_path: Path) -> None:
    """FSDP2 on two gloo processes: the same figures and weights, and checkpoints that any strategy goes on from."""
    bundle = str(build_random_bundle(tmp_path / "bundle"))
    (tmp_path / "two").mkdir()
    shutil.copy(runs.saved, tmp_path / "ddp.ckpt")
    forked.spawn(ranks.worker, (bundle, tmp_path / "two", "fsdp", forked.free_port()), 2)
    found = torch.load(tmp_path / "two" / "rank0.pt", weights_only=False)

    def far(state: dict[str, Tensor], case: str) -> float:
        expected = runs.one[case]["state"]
        names = [n for n in expected if not (n.startswith("discriminator") and n.endswith("conv.bias"))]
        return distance(*({n: weights[n] for n in names} for weights in (state, expected)))

    for case in ranks.CASES.keys() - set(ranks.WHOLE):
        for mine, theirs in zip(found[case]["watched"], runs.one[case]["watched"], strict=True):
            assert mine == pytest.approx(theirs, rel=1e-3, abs=1e-5)
        assert far(found[case]["state"], case) < WEIGHTS
    # Gone on from its own checkpoint: the same bits, of weights, averages and moments.
    for part in ("state", "optimizers", "step"):
        assert same(found["resumed"][part], found["adversarial"][part]), part
    assert far(found["from_ddp"]["state"], "adversarial") < WEIGHTS
    # What it saves is whole, and named as by one process, which goes on from it.
    path = tmp_path / "two" / "adversarial.ckpt"
    saved, theirs = (torch.load(p, weights_only=True) for p in (path, runs.saved))
    for part in ("state_dict", "gradients"):
        shapes = [{name: value.shape for name, value in s[part].items()} for s in (saved, theirs)]
        assert shapes[0] == shapes[1]
    numbers = [[sorted(state["state"]) for state in s["optimizer_states"]] for s in (saved, theirs)]
    assert numbers[0] == numbers[1]
    assert far(ranks.fit("adversarial", bundle, tmp_path, "auto", path)["state"], "adversarial") < WEIGHTS

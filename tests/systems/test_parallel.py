"""Two processes train what one trains on their batches together; both hold the same weights at every step."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
from tiny_bundle import build_random_bundle
from torch import Tensor

pytestmark = pytest.mark.e2e

SOURCE = Path(__file__).parents[2] / "src"
#: Relative distances that another order of summation may make in float32 (measured: 7e-5 and 6e-6).
GRADIENTS, WEIGHTS = 3e-4, 3e-5


def torchrun(script: Path, *arguments: str, processes: int = 2) -> subprocess.CompletedProcess[str]:
    paths = [str(SOURCE), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1",
                                "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return subprocess.run([*command, str(script), *arguments], env=environment, text=True, timeout=600,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, list[dict]]:
    """What one process came to, and each of two."""
    folder = tmp_path_factory.mktemp("ranks")
    bundle = str(build_random_bundle(folder / "bundle"))
    for name in ("one", "two"):
        (folder / name).mkdir()
    done = torchrun(Path(ranks.__file__), bundle, str(folder / "two"), "ddp")
    assert done.returncode == 0, done.stdout
    both = [torch.load(folder / "two" / f"rank{rank}.pt", weights_only=False) for rank in range(2)]
    return ranks.run(bundle, folder / "one", "auto"), both


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
def test_both_processes_hold_the_same_bits(runs: tuple[dict, list[dict]], case: str) -> None:
    first, second = (found[case] for found in runs[1])
    for part in ("state", "optimizers", "gradients", "watched", "step"):
        assert same(first[part], second[part]), part


@pytest.mark.parametrize("case", ranks.CASES)
def test_two_processes_equal_one_with_the_double_batch(runs: tuple[dict, list[dict]], case: str) -> None:
    one, two = runs[0][case], runs[1][0][case]
    assert one["step"] == two["step"] == ranks.STEPS
    # The warm start has no step of the heads.
    assert len(one["gradients"]) == len(two["gradients"]) == (5 if case == "adversarial" else 3)
    assert max(distance(a, b) for a, b in zip(two["gradients"], one["gradients"], strict=True)) < GRADIENTS
    for mine, theirs in zip(two["watched"], one["watched"], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-3, abs=1e-5), "logged figures are means over processes"
    for module in {name.split(".")[0] for name in one["state"]}:
        # A bias before a batch norm changes nothing: its gradient is rounding alone, which AdamW makes a step of.
        mine = [name for name in one["state"] if name.startswith(f"{module}.")]
        names = [name for name in mine if module != "discriminator" or not name.endswith("conv.bias")]
        found, expected = ({n: run["state"][n] for n in names} for run in (two, one))
        assert distance(found, expected) < WEIGHTS, module


def test_a_resumed_run_of_two_processes_goes_on_to_the_same_bits(runs: tuple[dict, list[dict]]) -> None:
    """Saved between two batches of a step: what the heads had gathered by then is of both processes."""
    for found in runs[1]:
        assert same(found["resumed"]["state"], found["adversarial"]["state"])
        assert same(found["resumed"]["optimizers"], found["adversarial"]["optimizers"])


def test_the_heads_keep_no_running_statistics(runs: tuple[dict, list[dict]]) -> None:
    """Their batch norm is local: of it, only weight and bias go into a checkpoint, and nothing is synchronised."""
    names = {name.rsplit(".", 1)[-1] for name in runs[0]["adversarial"]["state"] if name.startswith("discriminator.")}
    assert names == {"weight", "bias", "original", "_u", "_v"}

"""How much of a card a computation uses: its operations counted, the card's peak by its name, and when it is busy."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

#: Operations a second of tensor cores in bf16 with sums in float32, without structured sparsity, by what
#: `torch.cuda.get_device_name` says. (Lightning's `get_available_flops` counts some with sparsity, and some without
#: their tensor cores.) Sources are NVIDIA's data sheets, which state twice as much "with sparsity": A100 (June 2021),
#: H100 (2023), H200 (2024), L4 and L40S (2023), A10 (2021); whitepapers of GA102 and of Ada, appendix A.
PEAKS = {
    r"A100-(SXM4|PCIE)-\d+GB|A100 80GB PCIe": 312e12,
    r"H100 80GB HBM3": 989.4e12,
    r"H100 PCIe": 756e12,
    r"H100 NVL": 835.5e12,
    r"H200": 989.4e12,
    r"L4": 121e12,
    r"L40S": 362e12,
    r"A10": 125e12,
    r"GeForce RTX 3090": 71e12,
    r"GeForce RTX 4090": 165.2e12,
}


def peak_of(name: str) -> float | None:
    """Operations a second in bf16 that a card could do at most; None of one that is not in `PEAKS`.

    Args:
        name: Of the whole card: a part of one, or one for laptops, has another name.
    """
    return next((peak for known, peak in PEAKS.items() if re.fullmatch(f"NVIDIA ({known})", name)), None)


class Work(TorchDispatchMode):
    """Floating-point operations of matrix products, convolutions and attention, by torch's own formulas.

    (Its `FlopCounterMode` also follows modules, which R1's `autograd.grad` does not allow.)
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call, and count."""
        result = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            self.operations += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=result)
        return result


def operations(function: Callable[[], Any]) -> int:
    """Work of a call, backward passes in it included; what was compiled is not seen."""
    with Work() as work, sdpa_kernel(SDPBackend.MATH):  # torch has no formula for the fused attention of CPUs
        function()
    return work.operations


def covered(intervals: Iterable[tuple[float, float]]) -> float:
    """Length of the union of intervals `(start, end)`: how long at least one kernel ran."""
    total, until = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total

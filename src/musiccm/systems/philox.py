"""Normal draws by a counter: any row of a stream is computed by itself, to the same bits on every device.

The integers are Philox4x32-10's (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011). They become
normal by the transform of Box and Muller, whose logarithm and sine are polynomials here: libraries for CPUs and GPUs
round their own differently. Each operation is one that IEEE 754 rounds exactly, and a kernel of its own; a compiler
that fuses a product with a sum rounds once where two kernels round twice, so this is not to be compiled.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from musiccm.device import sent

_MULTIPLIERS, _WEYL = (0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85)
_ROUNDS, _WORD = 10, 0xFFFFFFFF
#: To the bit, as is `math.pi`: what `math.log` rounds is its library's.
_LN_2 = 0.6931471805599453
#: Taylor series of sin(pi x) / x in x^2, highest power first: in [-1, 1] the error is below 6e-10.
_SINE = [*itertools.accumulate(range(2, 20, 2), lambda c, n: -c * (math.pi * math.pi) / (n * (n + 1)),
                               initial=math.pi)][::-1]
#: Series of artanh(s) / s in s^2, highest power first: for s up to 0.172 the error is below 6e-11.
_ARTANH = [1 / (2 * k + 1) for k in reversed(range(6))]


def philox(counter_4N: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """Philox4x32-10 of many counters under one key.

    Args:
        counter_4N: Words of 32 bits, int64, [4, N].
        key: 64 bits, of which the lower half is the first word, on the CPU.

    Returns:
        The first and third word of each result, and the second and fourth, int64, each [2, N].
    """
    words_R2 = (key >> torch.tensor([0, 32])) + torch.arange(_ROUNDS)[:, None] * torch.tensor(_WEYL) & _WORD
    constants = torch.cat([torch.tensor([_MULTIPLIERS]), words_R2])[..., None]
    multipliers_21, *keys_21 = sent(constants, counter_4N.device).unbind()
    odd_2N, even_2N = counter_4N[0::2], counter_4N[1::2]
    for key_21 in keys_21:
        # A product goes beyond 63 bits and is taken modulo 2^64, as on every device. Its lower half stays among the
        # upper bits, which are cut off before the next product.
        product_2N = (odd_2N * multipliers_21).flip(0)
        odd_2N = (product_2N >> 32).bitwise_xor_(even_2N).bitwise_xor_(key_21).bitwise_and_(_WORD)
        even_2N = product_2N
    return odd_2N, even_2N.bitwise_and_(_WORD)


def normal_rows(key: Tensor, first: int, count: int, size: int, device: torch.device) -> Tensor:
    """Rows of a stream of standard normal draws.

    Args:
        key: Of the stream, an int64 on the CPU.
        first: The first row.
        count: How many.
        size: Numbers in a row.
        device: Where they are computed; one that has float64.

    Returns:
        float32 [count, size]; each number depends on key, row and place alone, and is below 6.7 in size.
    """
    blocks = -(-size // 4)
    counter_4RN = torch.zeros(4, count, blocks, dtype=torch.int64, device=device)
    counter_4RN[0] = torch.arange(blocks, device=device)
    counter_4RN[1] = torch.arange(first, first + count, device=device)[:, None]
    odd_2N, even_2N = philox(counter_4RN.flatten(1), key)
    angle_2N = torch.cat([even_2N, even_2N + (1 << 30) & _WORD])  # a quarter of a turn on, the sine is the cosine
    turn_4N = angle_2N.sub_(1 << 31).double().mul_(2.0**-31)
    sine_4N = _series(_SINE, turn_4N * turn_4N).mul_(turn_4N)
    radius_2N = _log(odd_2N).mul_(-2.0).clamp_(min=0.0).sqrt_()  # ln 1 may be rounded to more than 0
    normal_22N = sine_4N.view(2, 2, -1).mul_(radius_2N)
    return normal_22N.float().view(4, count, blocks).permute(1, 2, 0).reshape(count, -1)[:, :size]


def _log(word: Tensor) -> Tensor:
    """ln((word + 1) / 2^32) of words of 32 bits; float64, with an error below 3e-11."""
    mantissa, exponent = torch.frexp((word + 1).double())
    # ln m = ln c + 2 artanh((m - c) / (m + c)); c lies in the middle of m's [1/2, 1)
    s = (mantissa - math.sqrt(0.5)) / (mantissa + math.sqrt(0.5))
    near = _series(_ARTANH, s * s).mul_(s).mul_(2.0)
    return (exponent - 32.5).double().mul_(_LN_2).add_(near)


def _series(coefficients: list[float], x: Tensor) -> Tensor:
    """A polynomial by Horner's rule, highest power first."""
    total = torch.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        total = total.mul_(x).add_(coefficient)
    return total

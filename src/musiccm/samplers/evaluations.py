"""What music cost: evaluations of networks, counted as they happen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from musiccm.errors import MusiccmError
from musiccm.samplers.base import Stepper


@dataclass
class Evaluations:
    """Evaluations a piece. A guided call is two, and so is a step of a second-order solver; a token is one.

    Args:
        pieces: Pieces that are made together.
        tokens: Tokens that the language model has written for each.
        denoising: Evaluations of the denoiser for each.
    """

    pieces: int = 1
    tokens: int = 0
    denoising: int = 0

    @property
    def total(self) -> int:
        """Tokens and evaluations of the denoiser together."""
        return self.tokens + self.denoising

    def __str__(self) -> str:
        told = f" ({self.tokens} tokens, {self.denoising} of the denoiser)" if self.tokens else ""
        return f"{self.total} network evaluation{'s' if self.total != 1 else ''}{told}"

    def written(self, tokens: int) -> None:
        """Count tokens that the language model has written for each piece."""
        self.tokens += tokens

    def counting(self, stepper: Stepper) -> Stepper:
        """A sampler whose calls are counted here.

        Args:
            stepper: The sampler at work; a held one (`holding`) is made of what this gives.

        Returns:
            The same, counted.
        """
        network: Callable[..., Tensor] = stepper.network

        def counted(z_BCTF: Tensor, t_B: Tensor, cond: Any, **more: Any) -> Tensor:
            calls, rest = divmod(len(z_BCTF), self.pieces)
            if rest:
                raise MusiccmError(f"evaluations: a batch of {len(z_BCTF)} is none of {self.pieces} pieces")
            self.denoising += calls
            return network(z_BCTF, t_B, cond, **more)

        return replace(stepper, network=counted)

"""Whether a state dict is a network's own."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from musiccm.errors import MusiccmError


def require_fit(
    own: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    where: str,
    else_what: str,
    optional: re.Pattern | None = None,
) -> None:
    """Refuse a state dict with a weight missing, unknown or of another size.

    Args:
        own: The network's state dict.
        state: What is to be loaded.
        where: The file, for the message.
        else_what: What a misfit means, for the message.
        optional: Names that may be missing.

    Raises:
        MusiccmError: It does not fit; the first three misfits are named.
    """
    wrong = [f"{name} is missing" for name in own if name not in state and not (optional and optional.search(name))]
    wrong += [f"{name} is unknown" for name in state if name not in own]
    wrong += [f"{name} is {tuple(state[name].shape)} instead of {tuple(value.shape)}" for name, value in own.items()
              if name in state and state[name].shape != value.shape]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise MusiccmError(f"{where}: {'; '.join(wrong[:3])}{more}; {else_what}")

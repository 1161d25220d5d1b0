"""Clip ids as tensors, for they must travel between ranks as rows do."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from musiccm.errors import MusiccmError


def encode_ids(ids: Sequence[str]) -> Tensor:
    """Pack clip ids into one uint8 tensor (UTF-8, each ended by a zero byte), so that they travel like any other state.

    Args:
        ids: Clip ids; none may be empty or hold a zero byte.

    Returns:
        Bytes, `[total]`, uint8.

    Raises:
        MusiccmError: An id is empty or holds a zero byte.
    """
    for clip_id in ids:
        if not isinstance(clip_id, str) or not clip_id or "\0" in clip_id:
            raise MusiccmError(f"clip id: expected a non-empty string without zero bytes, found {clip_id!r}")
    packed = b"".join(clip_id.encode("utf-8", "surrogatepass") + b"\0" for clip_id in ids)
    return torch.frombuffer(bytearray(packed), dtype=torch.uint8) if packed else torch.empty(0, dtype=torch.uint8)


def decode_ids(packed: Tensor) -> list[str]:
    """Undo `encode_ids`.

    Args:
        packed: Bytes, `[total]`, uint8.

    Returns:
        The clip ids, in order.
    """
    return [part.decode("utf-8", "surrogatepass") for part in bytes(packed.cpu().numpy().tobytes()).split(b"\0")[:-1]]

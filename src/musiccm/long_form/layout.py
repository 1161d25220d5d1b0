"""Which way a model's long pieces are made."""

from __future__ import annotations

from typing import Any

from musiccm.long_form.chunk_piece import ChunkPiece
from musiccm.long_form.model import MusicModel
from musiccm.long_form.piece import Piece
from musiccm.long_form.prompts import require_whole


def piece_kind(model: MusicModel) -> type[Piece] | type[ChunkPiece]:
    """The class of a model's pieces.

    A model whose windows are told one condition each shares what they make (`Piece`). One that plans tokens along
    time, and whose network takes frames that are there, makes each window once, beside these (`ChunkPiece`).
    """
    return ChunkPiece if getattr(model.conditioner, "draws", False) else Piece


def lay_out(model: MusicModel, *args: Any, **kwargs: Any) -> Piece | ChunkPiece:
    """A piece of a model; arguments as `Piece.of`.

    Raises:
        MusiccmError: As `Piece.of`; or a text is longer than the model reads, which no window is made for before.
    """
    piece = piece_kind(model).of(model, *args, **kwargs)
    require_whole(model.conditioner, [text for _, text in piece.plan.entries])
    return piece

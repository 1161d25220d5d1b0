"""What a row of results is of: its model and its decoder, whatever version wrote it, and its place in a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from musiccm.evaluation.candidates import compared_model, place_of, present_name
from musiccm.evaluation.comparison import FLOOR
from musiccm.models.bundle.bundle import DECODERS

#: A model of versions 0.1 and 0.2 that is the student by the fast decoder today.
_FAST = "student_fast"


def model_of(row: Mapping[str, Any]) -> str:
    """The model of a row, by its name of today."""
    return present_name(row["model"])


def decoder_of(row: Mapping[str, Any]) -> str:
    """What made sound of a row's latents; versions 0.1 and 0.2 do not say, but name one of the models after it."""
    return row.get("decoder") or ("fast" if row["model"] == _FAST else "original")


def caption_of(row: Mapping[str, Any]) -> str:
    """What people read of a row's model."""
    return FLOOR if model_of(row) == FLOOR else compared_model(model_of(row)).caption


def label_of(row: Mapping[str, Any]) -> str:
    """Such as `teacher@50`."""
    return model_of(row) if is_floor(row) else f"{model_of(row)}@{row['steps']}"


def is_floor(row: Mapping[str, Any]) -> bool:
    """Whether a row says what a faultless model would come to, and is no model."""
    return row["model"] == FLOOR


def sort_rows(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows by decoder; the floor first, then models in the order of `MODELS`, each from few steps to many.

    Args:
        rows: Rows of the table.

    Returns:
        A sorted copy.
    """
    def place(row: dict[str, Any]) -> tuple:
        decoder = decoder_of(row)
        known = DECODERS.index(decoder) if decoder in DECODERS else len(DECODERS)
        return known, decoder, not is_floor(row), place_of(model_of(row)), model_of(row), row["steps"]

    return sorted(rows, key=place)


def by_decoder(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Sorted rows of each decoder: nothing is compared across them."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in sort_rows(rows):
        found.setdefault(decoder_of(row), []).append(row)
    return found


def baseline_of(rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The row that ratios of one decoder are taken to: the teacher at its most steps; None where there is none."""
    return max((row for row in rows if model_of(row) == "teacher"), key=lambda row: row["steps"], default=None)


def at_chance(row: Mapping[str, Any], references: Mapping[str, Any]) -> list[str]:
    """The attributes that the tagger cannot tell: on real clips it is no better than always naming the commonest tag.

    Args:
        row: A row of the table, with `acc_<group>_chance`.
        references: Metrics of the real clips, with `acc_<group>_real`.

    Returns:
        Those groups whose accuracy on the real clips is within two standard errors of chance, or below.
    """
    found = []
    for key, real in references.items():
        if key.startswith("acc_") and key.endswith("_real"):
            group = key.removeprefix("acc_").removesuffix("_real")
            chance = row.get(f"acc_{group}_chance")
            if chance is not None and real <= chance + 2 * math.sqrt(chance * (1 - chance) / row["n"]):
                found.append(group)
    return found

"""Continued and mended clips of a model of MeLoDy's kind: the seams, drums and tempi of `musiccm bench edits`.

The same tracks, measures and hard join (benchmarks/edits.py), of the guided renderer in ten steps, and of its packaged
student in four where there is one. The bundle is chosen as `musiccm bench melody` does; of random weights, rows say so.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from musiccm.commands._timing import student_of
from musiccm.commands.bench import load
from musiccm.errors import MusiccmError
from musiccm.models.bundle.files import resolve_bundle

edits, melody = (load(Path(__file__).with_name(f"{name}.py")) for name in ("edits", "melody"))

STEPS, STUDENT_STEPS = 10, 4


def run(bundle: str) -> list[dict]:
    with tempfile.TemporaryDirectory() as scratch:
        path, said = melody.model_of(bundle, Path(scratch))
        models = {f"{said}, renderer": (path, STEPS)}
        try:
            if student_of(path) != path and resolve_bundle(student_of(path)):
                models[f"{said}, student"] = (student_of(path), STUDENT_STEPS)
        except MusiccmError:
            pass  # it is not in this installation
        return edits.measured(models, path)

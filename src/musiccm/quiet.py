"""Libraries that keep to themselves: their warnings, hints and colours are for those who program with them."""

from __future__ import annotations

import logging
import os
import sys
import warnings

from musiccm.terminal import interactive, show_warnings

# Read when the library is imported, which is later. What the user has set stays.
_ENVIRONMENT = {
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "DIFFUSERS_VERBOSITY": "error",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
}
_IN_LOGS = {
    "NO_COLOR": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}


def quiet_libraries() -> None:
    """Show what this package logs alone, and no colours where no terminal is.

    With `MUSICCM_DEBUG=1` all is shown; warnings also where Python itself was told which (`-W`, `PYTHONWARNINGS`).
    Imports none of the libraries.
    """
    show_warnings()
    if os.environ.get("MUSICCM_DEBUG") == "1":
        return
    for name, value in (_ENVIRONMENT if interactive() else {**_ENVIRONMENT, **_IN_LOGS}).items():
        os.environ.setdefault(name, value)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # this package logs what users should know
    # Lightning's notes (seed, devices, why a run ended, advertisements): commands say what of it is of use
    for name in ("pytorch_lightning.utilities.rank_zero", "lightning_fabric.utilities.rank_zero",
                 "lightning_fabric.utilities.seed"):
        logger = logging.getLogger(name)
        if _warnings_alone not in logger.filters:
            logger.addFilter(_warnings_alone)


def _warnings_alone(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING and "Tip:" not in record.getMessage()

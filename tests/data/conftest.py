"""Lets the tests of this folder import their shared `small_corpus`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

"""Lets the tests of this folder import the shared `tiny_bundle`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

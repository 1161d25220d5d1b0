"""`python -m musiccm` is the `musiccm` command."""

import sys

from musiccm.cli import main

sys.exit(main())

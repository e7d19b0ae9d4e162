"""`python -m tests.fuzz`, from the root of the repository."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # where the tests' helpers lie

from fuzz.command import main

main()

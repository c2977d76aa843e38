"""Lets the tests of this folder import the small models of the engine tests and the pack of the evaluation tests."""

import sys
from pathlib import Path

for folder in ("engine", "evaluation"):
    sys.path.append(str(Path(__file__).parents[1] / folder))

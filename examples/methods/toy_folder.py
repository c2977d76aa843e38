"""Puts `examples/toy` on the import path: its skills, its tokenizer and its training are used here, too."""

import sys
from pathlib import Path

TOY_FOLDER = Path(__file__).parents[1] / "toy"
if str(TOY_FOLDER) not in sys.path:
    sys.path.append(str(TOY_FOLDER))

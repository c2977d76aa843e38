import sys
from pathlib import Path

for name in ("methods", "smollm2"):
    sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / name))

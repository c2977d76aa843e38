import sys
from pathlib import Path

for name in ("methods", "smollm2", "judge", "generations"):
    sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / name))
sys.path.insert(0, str(Path(__file__).parent))

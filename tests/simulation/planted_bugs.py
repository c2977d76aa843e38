"""Plants each bug of `planted/` in a copy of the package, and says which of them the simulation finds."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from simulation.schedule import SEMANTICS

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
PLANTED = sorted((HERE / "planted").glob("*.patch"))
_LONGEST = 240.0  # seconds: a bug that makes the simulation itself hang is found


def plant(patch: Path, folder: Path) -> None:
    """Copy the package into a folder and apply a patch to the copy.

    Raises:
        subprocess.CalledProcessError: it does not apply.
    """
    shutil.copytree(ROOT / "evomerge", folder / "evomerge", ignore=shutil.ignore_patterns("__pycache__"))
    command = ["git", "apply", "--whitespace=nowarn", str(patch)]
    environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(folder.parent)}
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, text=True)


def find(patch: Path, schedules: int) -> str | None:
    """What the simulation says of a planted bug; None where it finds nothing wrong."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        plant(patch, folder)
        command = [sys.executable, str(HERE / "many_schedules.py"), "--until-wrong", "--schedules", str(schedules)]
        command += ["--semantics", *_semantics(patch)]
        environment = {**os.environ, "PYTHONPATH": str(folder)}
        try:
            done = subprocess.run(
                command, env=environment, cwd=folder, capture_output=True, text=True, timeout=_LONGEST
            )
        except subprocess.TimeoutExpired:
            return f"no end after {_LONGEST:.0f} s"
    said = [line for line in done.stdout.splitlines() if line.startswith("WRONG")]
    if done.returncode and not said:
        raise RuntimeError(f"{patch.name} breaks the simulation itself: {done.stderr[-1000:]}")
    return said[0] if said else None


def _semantics(patch: Path) -> tuple[str, ...]:
    """The kinds of storage that a bug is in, by its name."""
    words = patch.stem.split("-")
    if "journal" in words or "file" in words:
        return ("journal",)
    return ("redis",) if "redis" in words else SEMANTICS


def main() -> int:
    """Look for each planted bug. 1 where more than one of twenty is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--schedules", type=int, default=4000, help="at most, for one bug")
    parser.add_argument("names", nargs="*", help="of single patches")
    arguments = parser.parse_args()
    patches = [patch for patch in PLANTED if not arguments.names or patch.stem in arguments.names]
    missed = []
    for patch in patches:
        begun = time.monotonic()
        found = find(patch, arguments.schedules)
        if found is None:
            missed.append(patch.stem)
        said = "MISSED" if found is None else found[:160]
        print(f"{patch.stem}: {said} ({time.monotonic() - begun:.0f} s)", flush=True)
    print(f"{len(patches) - len(missed)} of {len(patches)} found")
    return 1 if len(missed) * 20 > len(patches) else 0


if __name__ == "__main__":
    sys.exit(main())

"""Memory of a study in fresh processes: in bare Optuna, and beside that what the libraries take without a study."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_PEAK = """
import re
print(int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) / 1000)
"""

_OPTUNA = """
import sys
import optuna
url = open(sys.argv[1]).read()
storage = optuna.storages.get_storage(url)
storage.get_all_studies()
"""

_STUDY = """
study = optuna.load_study(storage=storage, study_name=sys.argv[2])
trials = study.get_trials(deepcopy=False)
assert len(trials) > 0
"""


def optuna_mb(url_file: Path) -> float:
    """Peak of a process that has Optuna and a connection to the database, and has loaded no study."""
    return _peak_of(_OPTUNA + _PEAK, url_file)


def study_mb(url_file: Path, name: str) -> float:
    """Peak of a process that has loaded a study with its trials through Optuna, and nothing of evomerge."""
    return _peak_of(_OPTUNA + _STUDY + _PEAK, url_file, name)


def _peak_of(code: str, url_file: Path, *arguments: str) -> float:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(url_file), *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout.splitlines()[-1])

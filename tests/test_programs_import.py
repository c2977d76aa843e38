"""Programs outside of the package find all that they import: no type checker reads them, and few run in the tests."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROGRAMS = [
    str(path)
    for folder in ("benchmarks", "tests/drills", "tests/simulation", "tests/soak")
    for path in sorted((ROOT / folder).glob("[!t]*.py"))  # no tests
    if "__main__" in path.read_text("utf-8")
]
# One process imports the libraries once. Each program has its own path, and its own modules beside it.
IMPORT_ALL = """
import json, pathlib, runpy, sys, traceback
root, *programs = json.loads(sys.argv[1])
path, failures = list(sys.path), {}
for program in programs:
    sys.path[:] = [str(pathlib.Path(program).parent), *path]
    try:
        runpy.run_path(program)
    except Exception:
        failures[program] = traceback.format_exc()
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None) or ""
        if file.startswith(root) and ".venv" not in file and not name.startswith("evomerge"):
            del sys.modules[name]
print(json.dumps(failures))
"""


def test_every_program_finds_all_that_it_imports():
    assert {"verdict.py", "run_soak.py", "many_schedules.py"} <= {Path(program).name for program in PROGRAMS}
    given = json.dumps([str(ROOT), *PROGRAMS])
    done = subprocess.run([sys.executable, "-c", IMPORT_ALL, given], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {}

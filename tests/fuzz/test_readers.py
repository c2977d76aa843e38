"""Mutated input of every reader: it is read, or refused by an error of evomerge; nothing is run, fetched or written.

`make fuzz` reads more than 100,000 inputs, the ordinary tests a few hundred of each kind.
"""

import os
import sys
import warnings
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.append(str(Path(__file__).parent))

import readers

MANY = bool(os.environ.get("EVOMERGE_FUZZ"))
QUICK = 200

# What reading never does, as Python's audit events name it.
FORBIDDEN = ("os.exec", "os.fork", "os.posix_spawn", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.system",
             "pickle.find_class", "shutil.rmtree", "socket.connect", "subprocess.Popen")  # fmt: skip
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC


class Guard:
    """Watches what a process does to anything but the folder of the inputs."""

    folder = None

    def __call__(self, event, arguments):
        if self.folder is None:
            return
        if event in FORBIDDEN:
            raise AssertionError(f"{event} {arguments}")
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING:
            self._check_place(event, arguments[0])
        if event == "os.mkdir":
            self._check_place(event, arguments[0])

    def _check_place(self, event, path):
        place = os.path.realpath(os.fsdecode(path)) if isinstance(path, str | bytes | os.PathLike) else ""
        if not place.startswith((self.folder, "/dev/")):
            raise AssertionError(f"{event} {path}")


GUARD = Guard()
sys.addaudithook(GUARD)


@pytest.fixture
def guarded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    readers.prepare(tmp_path)
    readers.check("spec", 0)  # imports write caches
    GUARD.folder = os.path.realpath(tmp_path)
    yield tmp_path
    GUARD.folder = None


@pytest.mark.parametrize("name", readers.READERS)
@pytest.mark.timeout(0 if MANY else 600)
def test_mutated_input_is_read_or_refused_and_does_nothing_else(guarded, name, capsys):
    count = 0

    @settings(
        max_examples=readers.READERS[name][1] if MANY else QUICK,
        database=None,
        deadline=None,
        derandomize=not MANY,
        suppress_health_check=list(HealthCheck),
    )
    @given(seed=st.integers(0, 2**62))
    def read(seed):
        nonlocal count
        count += 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            readers.check(name, seed)

    read()
    assert count >= (readers.READERS[name][1] if MANY else QUICK)
    if MANY:
        with capsys.disabled():
            print(f"\n{name}: {count:,} inputs", end="")


def test_the_guard_sees_what_is_forbidden(guarded):
    with pytest.raises(AssertionError, match=r"os\.system"):
        os.system("true")
    with pytest.raises(AssertionError, match="open"):
        Path("../elsewhere").write_text("x")
    assert not Path("../elsewhere").exists()
    Path("here").write_text("x")

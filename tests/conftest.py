"""What all tests share: no network, a home of their own, and searches over the toy models that cost next to nothing."""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

sys.path.append(str(Path(__file__).parent))

from object_servers import bucket, s3_server  # noqa: F401
from servers import mariadb, postgres, redis  # noqa: F401
from two_skills import pack  # noqa: F401

# A shell has what it runs in the background ignore SIGINT, nohup SIGHUP, and so do the children of such tests.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

ROOT = Path(__file__).parent.parent
TOY = ROOT / "examples" / "toy"


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary HOME, offline hubs, and Ray without left-over tokens."""
    home = tmp_path_factory.getbasetemp() / "home"
    home.mkdir(exist_ok=True)
    for name, value in {
        "HOME": str(home),
        "HF_HOME": str(home / "hf"),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TQDM_DISABLE": "1",
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
    }.items():
        monkeypatch.setenv(name, value)
    return home


@pytest.fixture
def room_for() -> Callable[[int], AbstractContextManager[None]]:
    """A function that gives a context in which no file grows beyond so many bytes, as on a full disk."""

    @contextmanager
    def limited(size: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))  # Python ignores the signal of the limit
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest test first: with two processes it would otherwise be what everybody waits for at the end."""
    items.sort(key=lambda item: item.path.name != "test_toy.py")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """With EVOMERGE_NO_SKIP a skipped test is a failed one: that is what `make test-all` promises.

    But for those marked `gpu`, whose libraries need one: they say that they were not run.
    """
    outcome = yield
    report = outcome.get_result()
    if (
        report.skipped
        and os.environ.get("EVOMERGE_NO_SKIP")
        and not hasattr(report, "wasxfail")
        and not item.get_closest_marker("gpu")
    ):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, and EVOMERGE_NO_SKIP is set: {report.longrepr}"


SOURCES = [{"name": name, "location": str(TOY / "models" / name)} for name in ("base", "reverse", "sort")]


@pytest.fixture
def write_spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """write_spec(**changes) -> a search.yaml over three toy models and the synthetic evaluator, in a folder of its own.

    The working directory is that folder, so that a search leaves nothing elsewhere.
    """
    monkeypatch.chdir(tmp_path)

    def write(file: str = "search.yaml", **changes: Any) -> Path:
        content: dict[str, Any] = {
            "name": "sim",
            "sources": SOURCES,
            "space": "task-arithmetic-per-block",
            "evaluator": {"name": "synthetic", "items": 40},
            "budget": {"trials": 6},
            "workers": {"count": 1},
            "baselines": ["uniform-soup"],
            "seed": 1,
        }
        path = tmp_path / file
        path.write_text(yaml.safe_dump({**content, **changes}, sort_keys=False), encoding="utf-8")
        return path

    return write


@pytest.fixture(params=[1, 3])
def torch_threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Each of these numbers of threads for torch, on which no result may depend."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)

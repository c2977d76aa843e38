"""Lets the tests of this folder import the tiny models of others, and puts the fake of vLLM on the path."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

for folder in ("engine", "evaluation", "vllm_engine"):
    sys.path.append(str(Path(__file__).parents[1] / folder))

FAKE = Path(__file__).parent / "fake"
ROOM = "evomerge.vllm_engine."


@pytest.fixture
def fake_vllm(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The fake as `vllm`, without faults; modules that have imported it are forgotten in the end."""
    _forget()
    monkeypatch.syspath_prepend(FAKE)
    monkeypatch.setenv("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")
    yield importlib.import_module("vllm")
    _forget()


def _forget() -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "vllm" or name.startswith(ROOM)]:
        del sys.modules[name]

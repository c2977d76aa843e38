"""Fixtures of the evaluation tests: no network, a temporary home, one thread."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent))  # the helpers beside the tests, which are no package
sys.path.append(str(Path(__file__).parents[1] / "engine"))

from tiny_pack import make_model, make_tokenizer, write_pack


@pytest.fixture(autouse=True)
def offline(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path_factory.getbasetemp() / "home"
    home.mkdir(exist_ok=True)
    for name, value in (
        ("HOME", str(home)),
        ("HF_HOME", str(home / "hf")),
        ("HF_HUB_OFFLINE", "1"),
        ("HF_DATASETS_OFFLINE", "1"),
        ("TQDM_DISABLE", "1"),
    ):
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return make_tokenizer()


@pytest.fixture
def model() -> Any:
    return make_model(0)


@pytest.fixture
def pack_folder(tmp_path: Path) -> Path:
    return write_pack(tmp_path / "tiny")

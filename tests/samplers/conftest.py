"""Lets the tests of this folder import the contract that they share, and runs it over each sampler's spaces."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    spaces = list(getattr(metafunc.cls, "spaces", ()))
    if "storage_kind" in metafunc.fixturenames:
        pairs = [(name, "memory") for name in spaces] + [(spaces[0], "sqlite")]
        metafunc.parametrize(("space_name", "storage_kind"), pairs)
    elif "space_name" in metafunc.fixturenames:
        metafunc.parametrize("space_name", spaces)

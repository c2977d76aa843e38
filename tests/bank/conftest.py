"""What tests of the bank share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def toy_model() -> Path:
    return Path(__file__).parent.parent.parent / "examples" / "toy" / "models" / "base"

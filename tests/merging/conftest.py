"""One thread: on small tensors more of them only wait for each other, above all on a busy machine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from evomerge.tensors.one_thread import one_thread


@pytest.fixture(autouse=True, scope="package")
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield

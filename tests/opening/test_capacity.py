"""Memory of a search: threshold tables are counted for the methods that have some."""

from __future__ import annotations

import pytest

from evomerge.opening.capacity import memory_of
from evomerge.opening.inputs import open_inputs
from evomerge.spec import load_spec


def worker_bytes(write_spec, space: str, baselines: list[str]) -> int:
    return memory_of(open_inputs(load_spec(write_spec(space=space, baselines=baselines)))).worker


@pytest.mark.parametrize("space", ["pcb-global", "task-arithmetic-per-block"])
def test_only_methods_that_sort_magnitudes_need_memory_for_it(write_spec, space):
    without = worker_bytes(write_spec, space, [])
    assert worker_bytes(write_spec, "ties-per-block", []) > without
    assert worker_bytes(write_spec, space, ["ties"]) > without
    assert worker_bytes(write_spec, space, ["uniform-soup"]) == without

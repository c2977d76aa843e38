"""The rows of the baselines: complete, and all that a spec needs without loading torch."""

import subprocess
import sys

import pytest

from evomerge.baselines.info import BASELINES
from evomerge.baselines.plans import PLANS
from evomerge.methods import METHODS


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_is_built_in_one_way(name):
    info = BASELINES[name]
    assert info.name == name
    assert [info.method in METHODS, info.sampler is not None, name in PLANS].count(True) == 1


def test_every_plan_has_a_row():
    assert set(PLANS) <= set(BASELINES)


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_that_needs_the_search_is_built_on_request_only_and_never_before_it(name):
    info = BASELINES[name]
    assert not info.needs_search or (info.on_request and not info.early)


def test_baseline_names_are_checked_without_torch():
    code = (
        "import sys; from evomerge.spec import BaselineSpec, SearchSpec; "
        "spec = SearchSpec(name='x', sources=({'name': 'a', 'location': 'a'}, {'name': 'b', 'location': 'b'}), "
        "space='s', evaluator='e', baselines=['ties', 'random-search']); "
        "print([each.name for each in spec.chosen_baselines], sorted({'torch', 'optuna'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['ties', 'random-search'] []"

"""The rows of the baselines: complete, and all that a spec needs without loading torch."""

import subprocess
import sys

import pytest

from evomerge.baselines.info import BASELINES
from evomerge.methods import METHODS
from evomerge.methods.functions import load_function
from evomerge.trainers import TRAINERS


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_is_built_in_one_way(name):
    info = BASELINES[name]
    assert info.name == name
    assert bool(info.plan) != bool(info.sampler)
    assert info.method is None or info.method in METHODS
    assert info.trainer is None or info.trainer in TRAINERS


@pytest.mark.parametrize("name", BASELINES)
def test_the_functions_that_a_row_names_exist(name):
    for function in (BASELINES[name].plan, BASELINES[name].candidates):
        assert not function or callable(load_function(function))


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

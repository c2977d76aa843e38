"""Methods as data: what exists, what is accepted, and what is said about what is not."""

from __future__ import annotations

import dataclasses
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

import evomerge
from evomerge.errors import InvalidInput
from evomerge.methods import (
    MERGEKIT_SEMANTICS,
    METHODS,
    MethodInfo,
    method_info,
    resolve_options,
    resolve_parameters,
    validate,
)


def test_every_method_is_described_completely():
    for name, info in METHODS.items():
        assert info.name == name
        assert info.title
        assert info.paper
        assert info.needs <= {"base", "statistics", "gradients"}
        for parameter in info.parameters:
            assert parameter.minimum <= parameter.low < parameter.high <= parameter.maximum
            assert parameter.low <= parameter.default <= parameter.high
            assert parameter.description
        for option in info.options:
            assert option.default == option.choices[0]
            assert option.description
        assert len({known.name for known in (*info.parameters, *info.options)}) == len(info.parameters) + len(
            info.options
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"integer from 0 to 2, and has no default"),
        ({"task": 3}, "from 0 to 2, but got 3"),
        ({"task": -1}, "but got -1"),
        ({"task": True}, "but got True"),
        ({"task": 1.0}, r"but got 1\.0"),
        ({"task": "1"}, "but got '1'"),
        ({"task": 0, "tasks": 1}, "unknown option of 'emr' 'tasks'"),
        ({"task": 0, "rescaler": "mean"}, "rescaler"),
    ],
)
def test_the_position_of_a_source_has_no_default_and_must_exist(options, message):
    with pytest.raises(InvalidInput, match=message):
        validate("emr", {}, options, 3)
    assert validate("emr", {}, {"task": 2}, 3) == ({}, {"task": 2, "rescaler": "flat_sum"})


def test_method_data_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        method_info("ties").name = "other"  # type: ignore[misc]


def test_mergekit_semantics_are_valid_for_every_method():
    assert MERGEKIT_SEMANTICS.keys() == METHODS.keys()
    for method, preset in MERGEKIT_SEMANTICS.items():
        known = {option.name: option.choices for option in method_info(method).options}
        assert all(value in known[name] for name, value in preset.items())


def test_mergekit_semantics_differ_from_the_authors_where_the_definitions_do():
    assert resolve_options("ties", {}) == {
        "trim_scope": "global",
        "kept_rule": "ge_kth",
        "elect": "mass",
        "zero_sign": "global majority",
        "agg": "dis-mean",
        "weighting": "count",
    }
    assert resolve_options("ties", {}, semantics="mergekit") == {
        "trim_scope": "tensor",
        "kept_rule": "exact",
        "elect": "mass",
        "zero_sign": "plus",
        "agg": "dis-mean",
        "weighting": "norm",
    }
    mergekit = resolve_options("dare_ties", {"semantics": "mergekit", "agg": "dis-sum"})
    assert mergekit["rescale"] == "l1_match"
    assert mergekit["dare_ties"] == "no_trim"
    assert mergekit["weighting"] == "sum"
    assert mergekit["agg"] == "dis-sum"  # what is given wins over the preset
    assert "semantics" not in mergekit


def test_scope_yields_to_the_preset_and_to_what_is_given():
    assert resolve_options("ties", {}, scope="layer_group")["trim_scope"] == "layer_group"
    assert resolve_options("ties", {}, semantics="mergekit", scope="layer_group")["trim_scope"] == "tensor"
    assert resolve_options("ties", {"trim_scope": "global"}, scope="layer_group")["trim_scope"] == "global"
    assert "trim_scope" not in resolve_options("linear", {}, scope="layer_group")


@pytest.mark.parametrize("spelling", ["global majority", "global_majority", "Global-Majority"])
def test_values_are_stored_in_one_spelling(spelling):
    assert resolve_options("ties", {"zero_sign": spelling})["zero_sign"] == "global majority"


def test_defaults_are_filled_in_and_numbers_broadcast_to_all_sources():
    assert resolve_parameters("ties", {"density": 0.5, "weight": [1, 2, 3]}, 3) == {
        "density": (0.5, 0.5, 0.5),
        "weight": (1.0, 2.0, 3.0),
        "lambda": 1.0,
    }
    assert resolve_parameters("slerp", {}, 2) == {"t": 0.5}
    assert resolve_parameters("task_arithmetic", {}, 2) == {"weight": (0.3, 0.3)}


@pytest.mark.parametrize(
    ("method", "parameters", "options", "n_sources", "message"),
    [
        ("tise", {}, {}, 2, "unknown merge method 'tise'; did you mean 'ties'"),
        ("ties", {"densty": 0.5}, {}, 2, "did you mean 'density'"),
        ("ties", {}, {"electt": "mass"}, 2, "did you mean 'elect'"),
        ("ties", {}, {"elect": "mas"}, 2, "did you mean 'mass'"),
        ("ties", {}, {"elect": "normfrac"}, 2, "elect"),
        ("linear", {}, {"normalize": 1}, 2, "normalize"),
        ("linear", {}, {"normalize": "yes"}, 2, "normalize"),
        ("ties", {}, {"semantics": "mergkit"}, 2, "did you mean 'mergekit'"),
        ("ties", {}, {"semantics": ["mergekit"]}, 2, "semantics"),
        ("dare_linear", {}, {"delta_only": False}, 2, "delta_only"),
        ("slerp", {}, {"multi_model": "top-2 by score"}, 2, "reject"),
        ("ties", {"density": -0.1}, {}, 2, r"density = -0.1 is outside of what the method allows \(0 to 1\)"),
        ("ties", {"density": [0.5, 1.1]}, {}, 2, "density = 1.1 is outside"),
        ("dare_ties", {"drop_rate": 1.5}, {}, 2, "drop_rate = 1.5 is outside"),
        ("linear", {"weight": [0.5, -0.5]}, {}, 2, "weight = -0.5 is outside"),
        ("linear", {"weight": [0.5, math.nan]}, {}, 2, "weight must be finite"),
        ("ties", {"lambda": math.inf}, {}, 2, "lambda must be finite"),
        ("ties", {"lambda": [1.0, 1.0]}, {}, 2, "lambda is one number"),
        ("linear", {"weight": "0.5"}, {}, 2, "weight must be a number"),
        ("linear", {"weight": True}, {}, 2, "weight must be a number"),
        ("linear", {"weight": None}, {}, 2, "weight must be a number"),
        ("linear", {"weight": [1, 2, 3]}, {}, 2, "3 values for 2 sources"),
        ("linear", {}, {}, 0, "at least one source"),
        ("slerp", {}, {}, 3, "exactly 2 sources, but got 3"),
        ("slerp", {"t": -0.1}, {}, 2, "t = -0.1 is outside"),
    ],
)
def test_invalid_input_is_refused_with_what_is_allowed(method, parameters, options, n_sources, message):
    with pytest.raises(InvalidInput, match=message):
        validate(method, parameters, options, n_sources)


@pytest.mark.parametrize("method", [name for name, info in METHODS.items() if "base" in info.needs])
def test_a_missing_base_is_refused(method):
    with pytest.raises(InvalidInput, match="give the base"):
        validate(method, {}, {}, 2, has_base=False)


def test_n24_validation_changes_no_argument():
    weights = [2, 1]
    parameters, options = {"weight": weights}, {"normalize": True}
    resolved, chosen = validate("linear", parameters, options, 2)
    assert resolved["weight"] == (2.0, 1.0)
    assert (weights, parameters, options) == ([2, 1], {"weight": weights}, {"normalize": True})
    assert chosen is not options
    mergekit = {"semantics": "mergekit"}
    resolve_options("ties", mergekit)["agg"] = "changed"
    assert mergekit == {"semantics": "mergekit"}
    assert MERGEKIT_SEMANTICS["ties"]["agg"] == "dis-mean"


def _run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(evomerge.__file__).parents[1])}
    return subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_n24_validation_survives_optimised_python():
    code = """
from evomerge.errors import InvalidInput
from evomerge.methods import validate
cases = [("ties", {"density": -1}, {}), ("ties", {"nope": 1}, {}), ("ties", {}, {"agg": "nope"}), ("nope", {}, {})]
for method, parameters, options in cases:
    try:
        validate(method, parameters, options, 2)
    except InvalidInput:
        continue
    raise SystemExit(f"accepted: {method} {parameters} {options}")
"""
    finished = _run_python("-O", "-c", code)
    assert finished.returncode == 0, finished.stdout + finished.stderr


def test_methods_and_seeding_import_nothing_beyond_the_standard_library():
    code = "import sys, evomerge.methods, evomerge.seeding; print(*sys.modules)"
    finished = _run_python("-S", "-c", code)
    assert finished.returncode == 0, finished.stderr
    assert not {"torch", "numpy", "pydantic", "optuna", "ray"} & set(finished.stdout.split())


def test_a_method_that_needs_what_it_does_not_describe_is_refused_where_it_is_defined():
    named = {"name": "toy", "title": "a toy", "paper": "none", "merge": "toy:merge"}
    with pytest.raises(ValueError, match="describe them in its field `statistics`"):
        MethodInfo(**named, needs=frozenset({"statistics"}))
    with pytest.raises(ValueError, match="known needs: base, gradients, statistics"):
        MethodInfo(**named, needs=frozenset({"bases"}))
    with pytest.raises(ValueError, match="give it the parameter `weight`"):
        MethodInfo(**named, weighted_sum=True)

"""The contract of `merge_state_dicts` and `merge_rule`, held by every method."""

from __future__ import annotations

import itertools
import math
import os
import random
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

import evomerge
from evomerge import merging
from evomerge.errors import InvalidInput, MergeError
from evomerge.merging import RuleTensors, merge_rule
from evomerge.methods import METHODS, validate
from evomerge.methods.functions import load_function
from evomerge.tensors import rule_tensors
from evomerge.tensors.sums import ordered_sum

# Those with tensors: test_column_linear. Those that read the names of tensors as an architecture: test_ot_fusion.
ALL = sorted(name for name, info in METHODS.items() if not info.tensors and info.same_shapes)
SHAPES = {
    "model.embed.weight": (30, 8),
    "model.layers.0.attn.weight": (8, 8),
    "model.layers.0.norm.bias": (8,),
    "model.layers.1.attn.weight": (8, 8),
    "scalar": (),
    "empty": (0, 4),
}


def models(n: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> list[dict[str, torch.Tensor]]:
    """A base and n sources near it."""
    generator = torch.Generator().manual_seed(seed)
    base = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    made = [base] + [
        {name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator) for name, tensor in base.items()}
        for _ in range(n)
    ]
    made = [{name: tensor.to(dtype) for name, tensor in model.items()} for model in made]
    for index, model in enumerate(made):
        model["position_ids"] = torch.arange(4) + index
        model["flag"] = torch.tensor(index == 0)
    return made


def n_sources(method: str) -> int:
    return METHODS[method].sources or 3


def statistics_of(method: str, sources: Sequence[Mapping[str, torch.Tensor]]) -> list[dict[str, torch.Tensor]] | None:
    """Statistics for methods that need some: a Fisher for every tensor, a Gram for every matrix."""
    info = METHODS[method]
    if "statistics" not in info.needs:
        return None
    generator = torch.Generator().manual_seed(9)
    names = sorted(name for name, tensor in sources[0].items() if tensor.is_floating_point() and tensor.numel())
    if info.statistics.name == "fisher":
        return [{name: torch.rand(source[name].shape, generator=generator) for name in names} for source in sources]
    rows = [
        {
            name: torch.randn(600, source[name].shape[1], generator=generator)
            for name in names
            if source[name].dim() == 2
        }
        for source in sources
    ]
    return [{name: x.T @ x / len(x) for name, x in each.items()} for each in rows]


def merge_state_dicts(method, sources, base=None, parameters=None, options=None, **arguments):
    """The merge under test, with statistics where the method needs them."""
    known = method in METHODS and isinstance(sources, list) and sources and "statistics" not in arguments
    statistics = {"statistics": statistics_of(method, sources)} if known else {}
    return merging.merge_state_dicts(method, sources, base, parameters or {}, options or {}, **statistics, **arguments)


def required(method: str) -> dict[str, int]:
    """The options that have no default."""
    return {option.name: 0 for option in METHODS[method].source_options}


def merge(method: str, dtype: torch.dtype = torch.float32, options=None, **arguments):
    base, *sources = models(n_sources(method), dtype)
    return merge_state_dicts(method, sources, base, options={**required(method), **(options or {})}, **arguments)


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return list(one) == list(two) and all(torch.equal(one[name], two[name]) for name in one)


def test_every_method_has_exactly_one_function():
    functions = [load_function(info.merge) for info in METHODS.values()]
    assert [function.__name__ for function in functions] == [f"merge_{name}" for name in METHODS]
    assert len(set(functions)) == len(METHODS)
    assert all(callable(load_function(info.plan)) for info in METHODS.values() if info.plan is not None)


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_results_have_names_shapes_and_dtype_of_the_base_and_its_integer_tensors(method, dtype):
    base, *sources = models(n_sources(method), dtype)
    result = merge_state_dicts(method, [{**source} for source in sources], base, options=required(method))
    assert list(result) == list(base)
    for name, tensor in result.items():
        assert tensor.dtype == base[name].dtype
        assert tensor.shape == base[name].shape
        assert not tensor.requires_grad
    assert torch.equal(result["position_ids"], base["position_ids"])
    assert torch.equal(result["flag"], base["flag"])


def test_without_a_base_the_first_source_is_the_template():
    _, one, two = models(2)
    result = merge_state_dicts("linear", [{k: v.half() if v.is_floating_point() else v for k, v in one.items()}, two])
    assert result["scalar"].dtype == torch.float16
    assert torch.equal(result["position_ids"], one["position_ids"])


@pytest.mark.parametrize("method", ALL)
def test_n24_inputs_are_neither_changed_nor_shared(method):
    base, *sources = models(n_sources(method))
    before = [{name: tensor.clone() for name, tensor in model.items()} for model in (base, *sources)]
    parameters, options = (
        {parameter.name: parameter.default for parameter in METHODS[method].parameters},
        required(method),
    )
    result = merge_state_dicts(method, sources, base, parameters, options)
    assert all(same(model, copy) for model, copy in zip((base, *sources), before, strict=True))
    assert parameters == {parameter.name: parameter.default for parameter in METHODS[method].parameters}
    addresses = {tensor.data_ptr() for model in (base, *sources) for tensor in model.values() if tensor.numel()}
    assert not addresses & {tensor.data_ptr() for tensor in result.values() if tensor.numel()}


@pytest.mark.parametrize("method", ALL)
def test_n24_one_source_alone_is_not_aliased(method):
    if METHODS[method].sources not in (None, 1):
        return
    base, source = models(1)
    result = merge_state_dicts(method, [source], base, options=required(method))
    result["model.embed.weight"].zero_()
    assert bool(source["model.embed.weight"].any())


@pytest.mark.parametrize("method", ALL)
def test_n13_global_generators_are_untouched_and_do_not_matter(method):
    torch.manual_seed(1)
    first = merge(method)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    torch.manual_seed(2)
    second = merge(method)
    torch.manual_seed(1)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[:2]
    assert torch.equal(torch.get_rng_state(), states[2])
    assert same(first, second)


@pytest.mark.parametrize("method", [name for name in ALL if METHODS[name].random])
def test_the_seed_decides_the_masks(method):
    assert same(merge(method, seed=1), merge(method, seed=1))
    assert not same(merge(method, seed=1), merge(method, seed=2))


def options_of(method: str):
    """The defaults, mergekit's choices, and every other choice of each option alone."""
    yield required(method)
    yield {"semantics": "mergekit", **required(method)}
    for option in METHODS[method].options:
        for choice in option.choices[1:]:
            yield {option.name: choice, **required(method)}


def ends_of(method: str, widest: bool):
    """All combinations of the lowest and highest values of the parameters, to search or (`widest`) valid at all."""
    ends = [
        (
            p.minimum if widest and math.isfinite(p.minimum) else p.low,
            p.maximum if widest and math.isfinite(p.maximum) else p.high,
        )
        for p in METHODS[method].parameters
    ]
    for values in itertools.product(*ends):
        yield {p.name: value for p, value in zip(METHODS[method].parameters, values, strict=True)}


@pytest.mark.parametrize("size", [1, 64, 128])
@pytest.mark.parametrize("method", ALL)
def test_n6_every_method_is_finite_at_the_ends_of_every_range_on_small_tensors(method, size):
    generator = torch.Generator().manual_seed(0)
    base = {"a": torch.randn(size, generator=generator), "b": torch.randn(1, size, generator=generator)}
    sources = [
        {name: tensor + 0.01 * torch.randn(tensor.shape, generator=generator) for name, tensor in base.items()}
        for _ in range(n_sources(method) - 1)
    ]
    sources.append(base)  # and one source that has not moved at all
    for options in options_of(method):
        search_ends = ends_of(method, widest=False) if options == required(method) else ()
        for parameters in itertools.chain(search_ends, ends_of(method, widest=True)):
            try:
                result = merge_state_dicts(method, sources, base, parameters, options)
            except MergeError as refusal:
                # Weights that are all zero cannot be normalised, and of one element the directions may cancel.
                if parameters["weight"] != 0.0 and not (size == 1 and "cancel each other" in str(refusal)):
                    raise
                continue
            assert all(bool(tensor.isfinite().all()) for tensor in result.values())


@pytest.mark.parametrize("method", ALL)
def test_n5_a_nan_in_a_source_is_an_error_and_never_hidden(method):
    base, *sources = models(n_sources(method))
    sources[0]["model.layers.0.norm.bias"][3] = math.nan
    parameters = {"weight": 1.0} if any(p.name == "weight" for p in METHODS[method].parameters) else {}
    parameters |= {"drop_rate": 0.0} if method.startswith("dare") else {}
    with pytest.raises(MergeError, match=r"not finite in tensor 'model.layers.0.norm.bias'"):
        merge_state_dicts(method, sources, base, parameters, required(method))


def test_an_overflow_of_the_final_cast_is_an_error():
    base, source = {"w": torch.zeros(2).half()}, {"w": torch.full((2,), 60000.0).half()}
    with pytest.raises(MergeError, match="not finite"):
        merge_state_dicts("task_arithmetic", [source, source], base, {"weight": 1.0})


# --- the same numbers by every path ---


def grouped(method, base, sources, options, names, **arguments):
    resolved, chosen = validate(method, {}, options, len(sources))
    tensors = RuleTensors(
        names=tuple(names),
        base=base,
        sources=sources,
        parameters=resolved,
        options=chosen,
        statistics=statistics_of(method, sources),
        **arguments,
    )
    yielded = list(merge_rule(method, tensors))
    assert [name for name, _ in yielded] == list(names)
    return dict(yielded)


@pytest.mark.parametrize("method", ALL)
def test_merging_group_by_group_gives_the_reference(method):
    base, *sources = models(n_sources(method))
    layers = [
        ["model.layers.0.norm.bias", "model.layers.0.attn.weight"],
        ["model.layers.1.attn.weight"],
        ["scalar", "model.embed.weight", "empty"],
    ]
    everything = sorted(itertools.chain(*layers))
    for scope in ("layer_group", "global", "tensor"):
        options = {"trim_scope": scope} if "trim_scope" in METHODS[method].option_names else required(method)
        reference = merge_state_dicts(method, sources, base, {}, options)
        for names in layers:
            for name, tensor in grouped(method, base, sources, options, names, scope_names=everything).items():
                assert tensor.dtype == torch.float32
                assert torch.equal(tensor, reference[name])


class SortedTable:
    def __init__(self, sources, base):
        self._sources, self._base = sources, base

    def kth_magnitude(self, source, scope, k):
        assert list(scope) == sorted(scope)
        flat = torch.cat([(self._sources[source][name] - self._base[name]).reshape(-1) for name in scope])
        assert 1 <= k <= len(flat)
        return float(flat.abs().sort().values[k - 1])

    def ties_from(self, source, scope, k):
        return None  # of random numbers none are tied


@pytest.mark.parametrize("kept_rule", ["ge_kth", "mask_rate", "topk", "exact"])
def test_looked_up_thresholds_give_the_reference(kept_rule):
    base, *sources = models(3)
    names = sorted(SHAPES)
    for scope in ("global", "tensor", "layer_group"):
        options = {"trim_scope": scope, "kept_rule": kept_rule}
        counted = grouped("ties", base, sources, options, names)
        looked_up = grouped("ties", base, sources, options, names, thresholds=SortedTable(sources, base))
        assert same(counted, looked_up)


SUMMED_BY_PIECE = ("emr", "karcher", "model_stock", "multislerp", "nuslerp", "sce", "slerp")


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("semantics", ["evomerge", "mergekit"])
def test_any_division_into_pieces_gives_the_same_bits(method, semantics, monkeypatch):
    options = {"semantics": semantics}
    whole = merge(method, options=options)
    monkeypatch.setattr(rule_tensors, "CPU_PIECE", 7)
    pieced = merge(method, options=options)
    if method in SUMMED_BY_PIECE or (method.startswith(("dare", "della")) and semantics == "mergekit"):
        # Norms and rescalers are sums over the pieces: fixed by the size of a piece, which is a constant.
        assert all(torch.allclose(whole[name], pieced[name]) for name in whole)
    else:
        assert same(whole, pieced)


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("semantics", ["evomerge", "mergekit"])
def test_the_number_of_threads_changes_no_bit(method, semantics):
    generator = torch.Generator().manual_seed(0)
    base = {"w": torch.randn(200, 501, generator=generator)}
    sources = [{"w": base["w"] + 0.01 * torch.randn(200, 501, generator=generator)} for _ in range(n_sources(method))]
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(merge_state_dicts(method, sources, base, {}, {"semantics": semantics, **required(method)}))
    finally:
        torch.set_num_threads(threads)
    assert same(results[0], results[1])
    assert same(results[0], results[2])


@pytest.mark.parametrize("method", ALL)
def test_the_order_of_tensors_and_their_strides_change_no_bit(method):
    base, *sources = models(n_sources(method))
    plain = merge_state_dicts(method, sources, base, options=required(method))

    def shuffled(model):
        return {
            name: model[name].t().contiguous().t() if model[name].dim() == 2 else model[name]
            for name in reversed(model)
        }

    result = merge_state_dicts(method, [shuffled(source) for source in sources], shuffled(base), {}, required(method))
    assert list(result) == list(reversed(base))
    assert same({name: result[name] for name in base}, plain)


def test_ordered_sums_are_exact_enough_and_of_any_length():
    for n in (0, 1, 2, 3, 1000, 1023):
        values = torch.randn(n, generator=torch.Generator().manual_seed(n))
        assert ordered_sum(values.split(100)) == pytest.approx(math.fsum(values.tolist()), abs=1e-12)


def test_tied_tensors_count_once_and_stay_equal():
    generator = torch.Generator().manual_seed(0)

    def tied():
        shared = torch.randn(100, generator=generator)
        return {"lm_head.weight": shared, "other": torch.randn(50, generator=generator), "embed.weight": shared}

    base, *sources = (tied() for _ in range(3))
    for method in ("ties", "dare_ties", "dare_linear", "pcb", "emr"):
        result = merge_state_dicts(method, sources, base, options=required(method), seed=5)
        once = [{name: model[name] for name in ("embed.weight", "other")} for model in (base, *sources)]
        expected = merge_state_dicts(method, once[1:], once[0], options=required(method), seed=5)
        assert torch.equal(result["embed.weight"], expected["embed.weight"])
        assert torch.equal(result["lm_head.weight"], expected["embed.weight"])
        assert torch.equal(result["other"], expected["other"])
        assert result["lm_head.weight"].data_ptr() != result["embed.weight"].data_ptr()


def test_parameters_that_require_gradients_are_merged_without_them():
    base, *sources = (torch.nn.Linear(4, 4).state_dict(keep_vars=True) for _ in range(3))
    assert not merge_state_dicts("ties", sources, base)["weight"].requires_grad


# --- what is refused ---


def test_misfits_are_named():
    base, one, two = models(2)
    with pytest.raises(InvalidInput, match="source 1 lacks tensors that base has: scalar"):
        merge_state_dicts("linear", [one, {k: v for k, v in two.items() if k != "scalar"}], base)
    with pytest.raises(InvalidInput, match="source 0 has tensors that base lacks: extra"):
        merge_state_dicts("linear", [{**one, "extra": torch.zeros(1)}, two], base)
    with pytest.raises(InvalidInput, match=r"source 1 does not fit source 0: scalar .*shape \(2,\).*shape \(\)"):
        merge_state_dicts("linear", [one, {**two, "scalar": torch.zeros(2)}])
    with pytest.raises(InvalidInput, match=r"does not fit base: scalar \(torch.int64"):
        merge_state_dicts("linear", [{**one, "scalar": torch.tensor(1)}, two], base)
    with pytest.raises(InvalidInput, match="and 95 more"):
        merge_state_dicts("linear", [one, {**two, **{f"extra{i:03}": torch.zeros(1) for i in range(100)}}])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sources": {"w": torch.ones(1)}}, "list of state dicts"),
        ({"sources": []}, "at least one source"),
        ({"base": None}, "give the base"),
        ({"statistics": [{}, {}]}, "uses no statistics"),
        ({"seed": 1.5}, "seed must be an integer"),
        ({"method": "tiess"}, "did you mean 'ties'"),
        ({"parameters": {"density": 2}}, "outside"),
        ({"options": {"agg": "mean"}}, "dis-mean"),
    ],
)
def test_invalid_arguments_are_refused(arguments, message):
    model = {"w": torch.ones(1)}
    with pytest.raises(InvalidInput, match=message):
        merge_state_dicts(**{"method": "ties", "sources": [model, model], "base": model, **arguments})


def test_complex_tensors_are_refused():
    with pytest.raises(InvalidInput, match="complex"):
        merge_state_dicts("linear", [{"w": torch.ones(1, dtype=torch.complex64)}])


def test_groups_refuse_integer_tensors_and_unknown_methods():
    model = {"w": torch.tensor([1, 2])}
    with pytest.raises(InvalidInput, match="only floating-point"):
        grouped("linear", None, [model], {}, ["w"])
    with pytest.raises(InvalidInput, match="did you mean"):
        merge_rule("liner", RuleTensors(names=("w",), base=None, sources=(model,), parameters={}, options={}))


def test_n24_refusals_survive_optimised_python():
    code = """
import torch
from evomerge.errors import InvalidInput, MergeError
from evomerge.merging import merge_state_dicts
one, two = {"w": torch.ones(2)}, {"w": torch.ones(3)}
cases = [
    ("linear", [one, two], None, {}), ("ties", [one], None, {}), ("linear", [one], None, {"weight": -1}),
    ("linear", [one], None, {"weight": 0}), ("slerp", [one], None, {}), ("ties", [one], one, {"density": 2}),
]
for method, sources, base, parameters in cases:
    try:
        merge_state_dicts(method, sources, base, parameters)
    except (InvalidInput, MergeError):
        continue
    raise SystemExit(f"accepted: {method} {parameters}")
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(evomerge.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(
        [sys.executable, "-O", "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr


@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"sources": None}, "sources is a list of state dicts"),
        ({"sources": [1, 2]}, "state dict of source 0 must be"),
        ({"sources": [{"w": np.ones(2)}] * 2}, "'w' in the state dict of source 0 must be a tensor, but is ndarray"),
        ({"base": 3}, "state dict of the base must be"),
        ({"parameters": None}, "parameters must be {name: value}, but got None"),
        ({"options": None}, "options must be {name: value}, but got None"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_no_model_and_no_setting_is_refused(method, changed, message):
    given = {"sources": [{"w": torch.ones(2)}] * 2, "base": {"w": torch.zeros(2)}, **changed}
    with pytest.raises(InvalidInput, match=message):
        merging.merge_state_dicts(method, **given)


def test_a_method_has_to_be_a_name():
    with pytest.raises(InvalidInput, match="unknown merge method"):
        merging.merge_state_dicts(["linear"], [{"w": torch.ones(2)}])

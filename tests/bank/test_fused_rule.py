"""Formulas and kernels: the same bits as the methods' own functions, however they are run."""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import subprocess
import sys
from dataclasses import asdict

import pytest
import torch

from evomerge.elementwise import pcb
from evomerge.errors import MergeError
from evomerge.merging import RuleTensors, merge_rule
from evomerge.methods import METHODS, resolve_options, resolve_parameters
from evomerge.native.compiled_loops import default_folder
from evomerge.passes import fused_rule, masked_passes
from evomerge.passes.fused_rule import SourceCache, fuse_rule, kinds
from evomerge.passes.kernels import KernelKind, Kernels, package_path
from evomerge.passes.masked_passes import masked_pass
from evomerge.passes.threshold_tables import ThresholdTables
from evomerge.tensors.plans import Formula, plan_rule

CPU = torch.device("cpu")

SIZES = {"a": 1, "b": 2, "c": 17, "d": 20_001}

PARAMETERS = {
    "linear": {"weight": [1.0, 0.3, 2.0]},
    "passthrough": {"scale": [0.7]},
    "multislerp": {"weight": [1.0, 0.3, 2.0]},
    "karcher": {"weight": [1.0, 0.3, 2.0]},
    "nuslerp": {"weight": [1.0, 0.4]},
    "model_stock": {},
    "slerp": {"t": 0.3},
    "task_arithmetic": {"weight": [0.7, -0.4, 1.1]},
    "elected_arithmetic": {"density": [0.3, 0.5, 1.0], "weight": [0.7, -0.4, 1.1]},
    "ties": {"density": [0.3, 0.5, 1.0], "weight": [1.0, 0.6, -1.3], "lambda": 1.7},
    "breadcrumbs": {"density": [0.5, 0.9, 1.0], "gamma": [0.1, 0.3, 0.2], "weight": [0.7, -0.4, 1.1], "lambda": 1.7},
    "breadcrumbs_ties": {
        "density": [0.5, 0.9, 0.2],
        "gamma": [0.1, 0.3, 0.2],
        "weight": [0.7, -0.4, 1.1],
        "lambda": 0.3,
    },
    "della_linear": {"density": [0.5, 1.0, 0.3], "spread": [0.9, 0.5, 0.0], "weight": [0.7, -0.4, 1.1], "lambda": 1.7},
    "della": {"density": [0.5, 1.0, 0.3], "spread": [0.9, 0.5, 0.0], "weight": [0.7, -0.4, 1.1], "lambda": 0.3},
    "dare_linear": {"drop_rate": [0.5, 0.0, 0.9], "weight": [0.7, -0.4, 1.1]},
    "nearswap": {"t": 0.02},
    "ram": {"epsilon": 0.01},
    "ram_plus": {"epsilon": 0.01, "r": 0.3, "alpha": 0.9},
    "fisher": {"weight": [0.7, 0.4, 1.1], "floor": 0.02},
    "consensus": {"weight": [0.7, -0.4, 1.1], "threshold": [0.3, 0.5, 0.4], "agreement": 2.0},
    "sce": {"select_topk": 0.3},
    "pcb": {"density": 0.2, "weight": [0.7, -0.4, 1.1]},
    "dare_ties": {"drop_rate": [0.5, 0.0, 0.9], "density": [0.3, 0.5, 0.1], "weight": [1.0, 0.6, -1.3], "lambda": 0.3},
}


WITHOUT_FORMULA = [
    ("dare_ties", {"kept_rule": "topk"}),
    ("dare_ties", {"kept_rule": "exact"}),
    ("nuslerp", {"units": "rows"}),
    ("nuslerp", {"units": "columns"}),
    ("model_stock", {"filter_wise": True}),
]


class EagerKernels:
    """The formulas in eager operations: what a kernel is compiled from."""

    def find(self, kind, *, compile_missing):
        return lambda arguments: kind.run(*arguments)


class CompiledKernels:
    """Waits for the compiled kernel, which the user's cache keeps between runs of the tests."""

    def __init__(self):
        self._kernels = Kernels(CPU)

    def find(self, kind, *, compile_missing):
        return self._kernels.compile(kind)


class LoopKernels:
    """The compiled loops of masked rules."""

    def find(self, kind, *, compile_missing):
        dtypes = (kind.base, *kind.sources, kind.out)
        loop = masked_pass(kind.formula, dtypes, default_folder(), compile_missing=True)
        assert loop is not None
        return lambda arguments: self.checked(kind, arguments, loop(arguments))

    def checked(self, kind, arguments, found):
        *given, out = arguments
        expected = kind.run(*given, torch.empty_like(out))
        assert torch.equal(found, expected) or not torch.isfinite(found + expected)
        assert found.dtype == expected.dtype
        return found


def models_of(count, dtypes, seed=0):
    """Base and sources on one coarse grid, so that values tie and cancel, with zeros of both signs in the base."""
    generator = torch.Generator().manual_seed(seed)

    def tensor(size, scale, dtype):
        return (torch.randint(-40, 41, (size,), generator=generator) * scale).to(dtype)

    base = {name: tensor(size, 2**-7, dtypes[0]) for name, size in SIZES.items()}
    for each in base.values():
        each[::5] = -0.0
        each[1::5] = 0.0
    sources = [
        {name: (base[name].float() + tensor(size, 2**-9, torch.float32)).to(dtype) for name, size in SIZES.items()}
        for dtype in itertools.islice(itertools.cycle(dtypes[1:]), count)
    ]
    return base, sources


def rule_of(method, options, dtypes, names=tuple(SIZES), tables=True, seed=0):
    count = METHODS[method].sources or 3
    base, sources = models_of(count, dtypes, seed)
    parameters = resolve_parameters(method, PARAMETERS[method], count)
    thresholds = ThresholdTables(base, sources) if tables else None
    resolved = resolve_options(method, options)
    return RuleTensors(
        names=names,
        base=base,
        sources=tuple(sources),
        parameters=parameters,
        options=resolved,
        seed=11,
        thresholds=thresholds,
        scope_names=tuple(SIZES),
        statistics=fishers_of(count, dtypes[-1]) if METHODS[method].statistics else None,
    )


def fishers_of(count, dtype):
    """Fishers of all tensors but one, with zeros in all sources at once."""
    generator = torch.Generator().manual_seed(5)
    sizes = {name: size for name, size in SIZES.items() if name != "b"}
    return tuple(
        {
            name: (torch.randint(0, 3, (size,), generator=generator) ** 5 * 2**-8).to(dtype)
            for name, size in sizes.items()
        }
        for _ in range(count)
    )


def assert_same_bits(method, tensors, dtype, kernels):
    expected = {name: tensor.to(dtype) for name, tensor in merge_rule(method, tensors)}
    rule = fuse_rule(method, tensors, kernels=kernels, dtype=dtype, device=CPU, cache=SourceCache())
    written = {name: torch.full((SIZES[name],), 7.0, dtype=dtype) for name in tensors.names}
    rule.write(written)
    for name, tensor in expected.items():
        assert torch.equal(bits(written[name]), bits(tensor)), name
    for name, tensor in rule.tensors():
        assert torch.equal(bits(tensor), bits(expected[name])), name


def bits(tensor):
    return tensor.view(torch.int16 if tensor.itemsize == 2 else torch.int32)


def choices(method):
    """Every combination of the options of TIES; of other methods, which share them, each option by itself."""
    options = [option for option in METHODS[method].options if len(option.choices) > 1]
    if method == "ties":
        for values in itertools.product(*(option.choices for option in options)):
            yield dict(zip((option.name for option in options), values, strict=True))
        return
    yield {"semantics": "mergekit"}
    for option in options:
        yield from ({option.name: choice} for choice in option.choices)


def test_every_method_with_a_formula_is_compared_with_it():
    assert PARAMETERS.keys() == {name for name, info in METHODS.items() if info.plan is not None}


@pytest.mark.parametrize("method", PARAMETERS)
def test_the_formula_has_the_bits_of_the_method_for_every_option(method, monkeypatch):
    monkeypatch.setattr(fused_rule, "CPU_CHUNK", 1 << 13)  # votes and masks go on from piece to piece
    dtypes = (torch.bfloat16,) * 4
    tested = 0
    for options in choices(method):
        tensors = rule_of(method, options, dtypes)
        if plan_rule(method, tensors) is None:
            assert (method, options) in WITHOUT_FORMULA
            continue
        assert_same_bits(method, tensors, torch.bfloat16, EagerKernels())
        tested += 1
    assert tested >= 1


@pytest.mark.parametrize("out", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dtypes", [(torch.float32, torch.bfloat16, torch.float16), (torch.float16, torch.float32)])
@pytest.mark.parametrize("method", PARAMETERS)
def test_the_formula_has_the_bits_of_the_method_for_every_mixture_of_types(method, dtypes, out):
    assert_same_bits(method, rule_of(method, {}, dtypes), out, EagerKernels())


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("scope", ["global", "tensor", "layer_group"])
def test_zero_sums_take_the_sign_of_the_majority_of_all_tensors_in_scope(scope, seed):
    tensors = rule_of("ties", {"trim_scope": scope}, (torch.bfloat16,) * 4, names=("c", "d"), seed=seed)
    assert_same_bits("ties", tensors, torch.bfloat16, EagerKernels())


def test_thresholds_can_be_counted_as_well_as_looked_up():
    for method in ("ties", "dare_ties"):
        tensors = rule_of(method, {"trim_scope": "tensor"}, (torch.float32,) * 4, tables=False)
        assert_same_bits(method, tensors, torch.float32, EagerKernels())
    assert plan_rule("ties", rule_of("ties", {"kept_rule": "topk"}, (torch.float32,) * 4, tables=False)) is None


@pytest.mark.parametrize("scope", ["global", "tensor", "layer_group"])
@pytest.mark.parametrize("method", ["ties", "elected_arithmetic"])
def test_with_tables_as_many_tied_elements_are_kept_as_are_counted_without(method, scope, monkeypatch):
    monkeypatch.setattr(fused_rule, "CPU_CHUNK", 1 << 13)  # the last tied element that is kept is in some later piece
    options = {"kept_rule": "exact", "trim_scope": scope}
    counted = rule_of(method, options, (torch.bfloat16,) * 4, tables=False)
    looked_up = rule_of(method, options, (torch.bfloat16,) * 4)
    expected = {name: tensor.bfloat16() for name, tensor in merge_rule(method, counted)}
    for name, tensor in merge_rule(method, looked_up):
        assert torch.equal(bits(tensor.bfloat16()), bits(expected[name])), name
    for tensors in (counted, looked_up):
        assert_same_bits(method, tensors, torch.bfloat16, EagerKernels())
    all_tied = {**looked_up.options, "kept_rule": "topk"}
    others = dict(merge_rule(method, dataclasses.replace(looked_up, options=all_tied)))
    assert any(not torch.equal(tensor.bfloat16(), expected[name]) for name, tensor in others.items())


def test_an_output_that_is_not_contiguous_is_written_all_the_same():
    tensors = rule_of("ties", {}, (torch.bfloat16,) * 4, names=("d",))
    rule = fuse_rule("ties", tensors, kernels=EagerKernels(), dtype=torch.bfloat16, device=CPU, cache=SourceCache())
    straight, strided = torch.zeros(SIZES["d"]).bfloat16(), torch.zeros(SIZES["d"], 2).bfloat16()[:, 0]
    rule.write({"d": straight})
    rule.write({"d": strided})
    assert torch.equal(straight, strided)


# Breadcrumbs drops what is merely large.
BAD = [
    (method, bad)
    for method, bad in itertools.product(PARAMETERS, (float("nan"), float("inf"), 3e38))
    if method != "pcb" and not (method.startswith("breadcrumbs") and bad == 3e38)
]


@pytest.mark.parametrize(("method", "bad"), BAD)
def test_n5_what_is_not_finite_is_refused_by_name(method, bad):
    tensors = rule_of(method, {}, (torch.float32,) * 4, names=("c",))
    for source in tensors.sources[:2]:
        source["c"][3] = bad
    rule = fuse_rule(method, tensors, kernels=EagerKernels(), dtype=torch.float16, device=CPU, cache=SourceCache())
    with pytest.raises(MergeError, match="'c' of the merge is not finite in float16"):
        rule.write({"c": torch.zeros(SIZES["c"], dtype=torch.float16)})


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_n5_what_clipping_would_hide_is_refused_by_name_where_it_is_measured(bad):
    tensors = rule_of("pcb", {}, (torch.float32,) * 4, names=("d",))
    tensors.sources[0]["c"][3] = bad
    with pytest.raises(MergeError, match="not finite in tensor 'c'"):
        fuse_rule("pcb", tensors, kernels=EagerKernels(), dtype=torch.float16, device=CPU, cache=SourceCache())


def test_pcb_is_measured_once_for_all_weights_and_again_for_another_density(monkeypatch):
    measured = []
    for name in ("magnitude_bounds", "competition_bounds"):
        original = getattr(pcb, name)
        monkeypatch.setattr(pcb, name, lambda *given, o=original, n=name: (measured.append(n), o(*given))[1])
    tensors, cache = rule_of("pcb", {}, (torch.bfloat16,) * 4), {}
    for density, weight in ((0.1, 1.0), (0.1, 2.0), (0.2, 2.0), (0.1, 0.5), (0.2, 0.7)):
        parameters = {"density": density, "weight": (weight, 1.0, 0.3)}
        for names in (("a", "c"), ("b", "d")):
            one = dataclasses.replace(tensors, names=names, parameters=parameters, cache=cache)
            assert_same_bits("pcb", one, torch.bfloat16, EagerKernels())
    assert measured == ["magnitude_bounds", "competition_bounds", "competition_bounds"]


@pytest.mark.parametrize("variant", ["main", "nlp", "vision", "vision_es"])
@pytest.mark.parametrize("count", [1, 4, 66, 160])
def test_a_competition_of_any_number_of_sources_has_the_bits_of_the_method(count, variant):
    base, sources = models_of(count, (torch.bfloat16,) * 4, seed=3)
    tensors = RuleTensors(
        names=("b", "c"),
        base=base,
        sources=tuple(sources),
        parameters=resolve_parameters("pcb", {"density": 0.4}, count),
        options=resolve_options("pcb", {"variant": variant}),
    )
    assert_same_bits("pcb", tensors, torch.float32, EagerKernels())


def test_a_power_of_fishers_has_no_formula_and_other_statistics_are_other_pieces():
    tensors, cache = rule_of("fisher", {}, (torch.float32,) * 4), SourceCache()
    powered = dataclasses.replace(tensors, parameters={**tensors.parameters, "power": 0.5})
    assert plan_rule("fisher", powered) is None
    for scale in (1.0, 3.0):
        statistics = tuple({name: each.pow(scale) for name, each in source.items()} for source in tensors.statistics)
        given = dataclasses.replace(tensors, statistics=statistics, cache={})
        expected = dict(merge_rule("fisher", given))
        rule = fuse_rule("fisher", given, kernels=EagerKernels(), dtype=torch.float32, device=CPU, cache=cache)
        for name, tensor in rule.tensors():
            assert torch.equal(tensor, expected[name])


def test_the_cosines_of_a_pair_are_computed_once_for_all_candidates():
    kept = {}
    tensors = rule_of("slerp", {}, (torch.float32,) * 4)
    first = dataclasses.replace(tensors, prefix_cache=lambda sources: kept.setdefault(sources, {}))
    expected = {name: plan_rule("slerp", first).factors(name) for name in SIZES}
    of_other_files = dataclasses.replace(first, sources=({}, {}), cache={})  # there is nothing to compute one from
    assert {name: plan_rule("slerp", of_other_files).factors(name) for name in SIZES} == expected


def test_a_type_without_kernels_is_merged_eagerly():
    tensors = rule_of("linear", {}, (torch.float64,) * 4)
    assert kinds(tensors, plan_rule("linear", tensors), torch.float32) is None
    assert (
        fuse_rule("linear", tensors, kernels=EagerKernels(), dtype=torch.float32, device=CPU, cache=SourceCache())
        is None
    )


BFLOAT16 = ("bfloat16",) * 3


@pytest.mark.parametrize(
    ("method", "options", "dtypes", "out"),
    [
        ("linear", {}, (torch.bfloat16,) * 4, torch.bfloat16),
        ("ties", {}, (torch.bfloat16,) * 4, torch.bfloat16),
        ("ties", {"semantics": "mergekit"}, (torch.bfloat16,) * 4, torch.bfloat16),
        ("dare_ties", {"weighting": "norm"}, (torch.float32, torch.bfloat16, torch.float16), torch.float32),
        ("pcb", {}, (torch.bfloat16,) * 4, torch.bfloat16),
        ("della", {}, (torch.bfloat16,) * 4, torch.bfloat16),
        ("fisher", {}, (torch.float32, torch.bfloat16, torch.float16), torch.float32),
    ],
)
def test_compiled_kernels_have_the_bits_of_the_method_with_any_chunks_and_threads(
    method, options, dtypes, out, monkeypatch
):
    kernels = CompiledKernels()
    for chunk, threads in ((1 << 22, 1), (1 << 13, 1), (1 << 14, 2)):
        monkeypatch.setattr(fused_rule, "CPU_CHUNK", chunk)
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            for scope in ("global", "tensor") if "ties" in method else (None,):
                chosen = options if scope is None else {**options, "trim_scope": scope}
                assert_same_bits(method, rule_of(method, chosen, dtypes), out, kernels)
        finally:
            torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("dtypes", "out", "threads"),
    [
        ((torch.float32,) * 4, torch.float32, 1),
        ((torch.bfloat16, torch.float32, torch.bfloat16), torch.bfloat16, 2),
    ],
)
@pytest.mark.parametrize("method", ["dare_linear", "dare_ties", "della_linear", "della"])
def test_loops_over_masked_vectors_have_the_bits_of_the_method_for_every_option(
    method, dtypes, out, threads, monkeypatch
):
    monkeypatch.setattr(fused_rule, "CPU_CHUNK", 1 << 13)
    monkeypatch.setattr(masked_passes, "SHARED", 1 << 4)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        elections = [{"elect": "count", "agg": "dis-max"}] if method in ("dare_ties", "della") else []
        for options in (*choices(method), *elections):
            tensors = rule_of(method, options, dtypes)
            if plan_rule(method, tensors) is not None:
                assert_same_bits(method, tensors, out, LoopKernels())
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 3e38])
@pytest.mark.parametrize("method", ["dare_linear", "dare_ties", "della_linear", "della"])
def test_n5_what_a_loop_writes_and_is_not_finite_is_refused_by_name(method, bad):
    tensors = rule_of(method, {}, (torch.float32,) * 4, names=("d",), tables=False)
    for source in tensors.sources:
        source["d"][1234:1248] = bad
    rule = fuse_rule(method, tensors, kernels=LoopKernels(), dtype=torch.bfloat16, device=CPU, cache=SourceCache())
    with pytest.raises(MergeError, match="'d' of the merge is not finite in bfloat16"):
        rule.write({"d": torch.zeros(SIZES["d"], dtype=torch.bfloat16)})


def test_a_compiled_kernel_is_loaded_without_the_compiler():
    kind = KernelKind(formula=Formula(kind="average"), base=None, sources=BFLOAT16, out="bfloat16")
    assert Kernels(CPU).compile(kind) is not None
    code = (
        "import json, os, sys, torch; before = dict(os.environ)\n"
        "from evomerge.passes.kernels import Kernels, _kind_from\n"
        f"kind = _kind_from(json.loads({json.dumps(json.dumps(asdict(kind)))}))\n"
        "kernel = Kernels(torch.device('cpu')).find(kind, compile_missing=False)\n"
        "kernel(kind.arguments(100))\n"
        "assert dict(os.environ) == before\n"
        "print(sorted({'torch._inductor', 'torch._dynamo'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_small_rules_never_start_a_compiler(tmp_path):
    tensors = rule_of("task_arithmetic", {}, (torch.bfloat16,) * 4)
    kernels = Kernels(CPU, tmp_path)
    assert (
        fuse_rule("task_arithmetic", tensors, kernels=kernels, dtype=torch.bfloat16, device=CPU, cache=SourceCache())
        is None
    )
    assert list(tmp_path.iterdir()) == []


def test_without_a_compiler_it_is_said_once_and_the_eager_path_serves(tmp_path, caplog, monkeypatch):
    monkeypatch.setenv("CXX", "/nowhere/c++")
    monkeypatch.setenv("PATH", "/nowhere")
    kernels = Kernels(CPU, tmp_path)
    with caplog.at_level(logging.WARNING):
        for formula in (Formula(kind="average"), Formula(kind="average", weighting="another")):
            assert kernels.compile(KernelKind(formula=formula, base=None, sources=BFLOAT16, out="bfloat16")) is None
    assert [record.getMessage()[:15] for record in caplog.records] == ["merging eagerly"]


def test_a_package_is_named_after_all_that_its_code_depends_on(tmp_path, monkeypatch):
    kind = KernelKind(formula=Formula(kind="average"), base=None, sources=BFLOAT16, out="bfloat16")
    other = KernelKind(formula=Formula(kind="average"), base=None, sources=BFLOAT16, out="float32")
    assert package_path(tmp_path, kind) != package_path(tmp_path, other)
    before = package_path(tmp_path, kind)
    monkeypatch.setattr("evomerge.passes.kernels.target_machine", lambda: "another processor")
    assert package_path(tmp_path, kind) != before

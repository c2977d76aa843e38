"""The weight bank: one path for what is scored, exported and verified; nothing per candidate that can be done once."""

import builtins
import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from evomerge.bank import WeightBank
from evomerge.bank.memory import memory_need
from evomerge.checkpoints import open_source, tensor_digest
from evomerge.errors import InvalidInput, MergeError
from evomerge.merging import RuleTensors, merge_state_dicts
from evomerge.methods import resolve_options, resolve_parameters
from evomerge.passes import threshold_tables
from evomerge.passes.kernels import KernelKind, Kernels
from evomerge.passes.table_store import TableStore
from evomerge.recipe import ModelRef, Recipe, Rule
from evomerge.spaces import load_space
from evomerge.spaces.bound import bind
from evomerge.tensors.plans import Formula

TOY = Path(__file__).parent.parent.parent / "examples" / "toy" / "models"
EXPERTS = ("reverse", "sort", "swap")


@pytest.fixture(scope="module")
def sources():
    base = open_source(ModelRef("base", str(TOY / "base")))
    return base, [open_source(ModelRef(name, str(TOY / name)), like=base) for name in EXPERTS]


@pytest.fixture(params=["float32", "bfloat16"])
def dtype(request):
    return request.param


@pytest.fixture
def bank(sources, dtype):
    torch.set_num_threads(1)
    return WeightBank(*sources, dtype=getattr(torch, dtype), device=torch.device("cpu"))


def recipe_of(sources, method, dtype, parameters=None, options=None, experts=EXPERTS, tensors=None):
    base, opened = sources
    refs = tuple(source.ref for source in opened if source.ref.name in experts)
    rule = Rule(
        tensors=tensors or tuple(entry.name for entry in base.catalogue.mergeable),
        method=method,
        sources=experts,
        parameters=resolve_parameters(method, parameters or {}, len(experts)),
        options=resolve_options(method, options or {}, n_sources=len(experts)),
    )
    return Recipe(base=base.ref, sources=refs, rules=(rule,), dtype=dtype, seed=7)


def live_bits(model):
    return {name: tensor_digest(tensor) for name, tensor in model.state_dict().items() if name != "lm_head.weight"}


@pytest.mark.parametrize(
    ("method", "parameters", "options"),
    [
        ("linear", {"weight": [1.0, 2.0, 0.5]}, {}),
        ("task_arithmetic", {"weight": 0.4}, {}),
        ("ties", {"density": 0.3, "weight": [1.0, 0.5, 2.0]}, {"trim_scope": "tensor"}),
        ("ties", {"density": 0.3}, {"trim_scope": "tensor", "zero_sign": "plus", "weighting": "norm"}),
        ("dare_linear", {"drop_rate": 0.5, "weight": 0.4}, {}),
        ("pcb", {"density": 0.2, "weight": [1.0, 0.5, 2.0]}, {"variant": "vision_es"}),
        ("emr", {}, {"task": 1}),
        ("multislerp", {"weight": [1.0, 0.5, 2.0]}, {"vectors": "task_vectors"}),
        ("karcher", {"weight": [1.0, 0.5, 2.0]}, {}),
        ("model_stock", {}, {}),
        ("model_stock", {}, {"filter_wise": True}),
        ("breadcrumbs", {"density": 0.5, "gamma": 0.1}, {}),
        ("breadcrumbs_ties", {"density": 0.5, "gamma": 0.1, "weight": [1.0, 0.5, 2.0]}, {}),
        ("sce", {"select_topk": 0.3}, {}),
        ("ram", {}, {}),
        ("ram_plus", {"r": 0.5}, {}),
        ("della", {"density": 0.5, "spread": 0.5}, {}),
        ("della_linear", {"density": 0.5, "spread": 0.5}, {"rescale": "l1_match"}),
    ],
)
def test_what_is_materialised_is_what_merge_state_dicts_defines(sources, bank, dtype, method, parameters, options):
    base, experts = sources
    recipe = recipe_of(sources, method, dtype, parameters, options)
    model = bank.materialize(recipe)
    names = base.catalogue.names
    reference = merge_state_dicts(
        method,
        [{name: source.tensors[name].float() for name in names} for source in experts],
        base={name: base.tensors[name].float() for name in names},
        parameters=parameters,
        options=options,
        seed=7,
    )
    live = model.state_dict()
    for name in names:
        torch.testing.assert_close(live[name], reference[name].to(live[name].dtype), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("method", "parameters", "options"),
    [
        ("slerp", {"t": 0.3}, {}),
        ("nearswap", {"t": 1e-3}, {}),
        ("nuslerp", {"weight": [1.0, 0.5]}, {}),
        ("nuslerp", {"weight": [1.0, 0.5]}, {"units": "rows"}),
        ("nuslerp", {"weight": [1.0, 0.5]}, {"units": "columns"}),
        ("arcee_fusion", {}, {}),
    ],
)
def test_a_merge_of_two_sources_is_what_merge_state_dicts_defines(sources, bank, dtype, method, parameters, options):
    _, experts = sources
    recipe = recipe_of(sources, method, dtype, parameters, options, experts=EXPERTS[:2])
    live = bank.materialize(recipe).state_dict()
    reference = merge_state_dicts(
        method,
        [{n: source.tensors[n].float() for n in live if n in source.tensors} for source in experts[:2]],
        parameters=parameters,
        options=options,
    )
    for name, tensor in reference.items():
        torch.testing.assert_close(live[name], tensor.to(live[name].dtype), rtol=1e-5, atol=1e-6)


GLOBAL_SPACES = ["multislerp-global", "karcher-global", "breadcrumbs-ties-global", "sce-global", "della-global"]


@pytest.mark.parametrize(
    "space", ["dare-ties-per-block", "ties-smooth", "linear-global", "pcb-per-block", *GLOBAL_SPACES]
)
def test_n9_scored_exported_and_verified_weights_have_the_same_bits(sources, bank, dtype, space):
    base, experts = sources
    bound = bind(load_space(space), base.catalogue, base.ref, [each.ref for each in experts], dtype=dtype, seed=3)
    recipe = bound.decode(bound.centre)
    scored = live_bits(bank.materialize(recipe))
    exported = {name: tensor_digest(tensor) for name, tensor in bank.merged(recipe)}
    another = WeightBank(*sources, dtype=getattr(torch, dtype), device=torch.device("cpu"))
    assert scored == exported == bank.live_digests(recipe) == another.live_digests(recipe)


def test_statistics_of_the_whole_model_are_measured_once_whatever_the_weights(sources, bank, dtype, monkeypatch):
    reads = []

    def counted(tensors, *arguments):
        reads.append(arguments)
        return pieces(tensors, *arguments)

    pieces = RuleTensors.pieces
    monkeypatch.setattr(RuleTensors, "pieces", counted)
    names = len(sources[0].catalogue.mergeable)
    for method, changes in (("pcb", {"weight": 2.0}), ("emr", {})):
        options = {"task": 0} if method == "emr" else {}
        bank.materialize(recipe_of(sources, method, dtype, {}, options))
        bank.materialize(recipe_of(sources, "linear", dtype))
        reads.clear()
        bank.materialize(recipe_of(sources, method, dtype, changes, options))
        assert len(reads) in (0, names)  # those of the merge itself; none by then where it has been compiled


@pytest.mark.parametrize("scope", ["global", "tensor"])
def test_n9_compiled_and_eager_materialisation_and_export_have_the_same_bits(sources, scope, tmp_path):
    cpu = torch.device("cpu")
    recipe = recipe_of(sources, "ties", "bfloat16", {"density": 0.3}, {"trim_scope": scope})
    eager = WeightBank(*sources, dtype=torch.bfloat16, device=cpu, kernels=Kernels(cpu, tmp_path))
    kernels = Kernels(cpu)
    kernels.compile(
        KernelKind(
            formula=Formula(kind="election", elect="mass", agg="dis-mean", weighting="count"),
            base="bfloat16",
            sources=("bfloat16",) * 3,
            out="bfloat16",
        )
    )
    compiled = WeightBank(*sources, dtype=torch.bfloat16, device=cpu, kernels=kernels)
    assert eager._fused(recipe.rules[0], recipe) is None
    assert compiled._fused(recipe.rules[0], recipe) is not None
    assert compiled.live_digests(recipe) == eager.live_digests(recipe)
    assert dict(digests(compiled.merged(recipe))) == dict(digests(eager.merged(recipe)))
    assert live_bits(compiled.materialize(recipe)) == dict(digests(compiled.merged(recipe)))


def digests(tensors):
    return ((name, tensor_digest(tensor)) for name, tensor in tensors)


def test_n17_a_b_a_gives_the_weights_of_a_twice(sources, bank, dtype):
    a = recipe_of(sources, "ties", dtype, {"density": 0.4})
    b = recipe_of(sources, "dare_ties", dtype, {"drop_rate": 0.5})
    first = live_bits(bank.materialize(a))
    assert live_bits(bank.materialize(b)) != first
    assert live_bits(bank.materialize(a)) == first


def test_tensors_that_no_rule_names_are_the_bases_again(sources, bank, dtype):
    base, _ = sources
    bank.materialize(recipe_of(sources, "task_arithmetic", dtype, {"weight": 1.0}))
    some = recipe_of(sources, "task_arithmetic", dtype, {"weight": 0.5}, tensors=("model.norm.weight",))
    live = bank.materialize(some).state_dict()
    name = "model.layers.3.mlp.up_proj.weight"
    assert torch.equal(live[name], base.tensors[name].to(live[name].dtype))
    assert not torch.equal(
        live["model.norm.weight"], base.tensors["model.norm.weight"].to(live["model.norm.weight"].dtype)
    )


def test_n30_nothing_is_opened_sorted_or_written_again_without_need(sources, bank, dtype, monkeypatch):
    base, experts = sources
    bound = bind(
        load_space("ties-per-block"), base.catalogue, base.ref, [each.ref for each in experts], dtype=dtype, seed=3
    )
    centre = bound.centre
    bank.materialize(bound.decode(centre))
    calls = []
    sort = torch.Tensor.sort
    monkeypatch.setattr(builtins, "open", lambda *args, **kwargs: calls.append("open"))
    monkeypatch.setattr(torch.Tensor, "sort", lambda *args, **kwargs: calls.append("sort") or sort(*args, **kwargs))
    merged = []
    merge = bank._merge_into
    monkeypatch.setattr(bank, "_merge_into", lambda rule, *rest: merged.append(rule.tensors) or merge(rule, *rest))
    changed = {**centre, "layers2-3.density": 0.5}
    bank.materialize(bound.decode(changed))
    assert calls == []
    assert merged == [next(group.tensors for group in bound.groups if group.label == "layers2-3")]


def test_threshold_tables_are_there_for_the_next_worker(sources, dtype, tmp_path, monkeypatch):
    def worker():
        torch.set_num_threads(1)
        store = TableStore(tmp_path)
        return WeightBank(*sources, dtype=getattr(torch, dtype), device=torch.device("cpu"), store=store)

    recipe = recipe_of(sources, "ties", dtype, {"density": 0.4})
    first = live_bits(worker().materialize(recipe))
    assert len(list(tmp_path.iterdir())) == len(EXPERTS)
    monkeypatch.setattr(threshold_tables, "fast_table", lambda *given: pytest.fail("made again"))
    assert live_bits(worker().materialize(recipe)) == first
    assert dict(digests(worker().merged(recipe))).items() >= first.items()


def test_a_merge_that_is_not_finite_is_refused_and_leaves_no_trace(sources, bank, dtype):
    good = recipe_of(sources, "task_arithmetic", dtype, {"weight": 0.3})
    before = live_bits(bank.materialize(good))
    huge = recipe_of(sources, "task_arithmetic", dtype, {"weight": 1e45})
    with pytest.raises(MergeError, match="not finite"):
        bank.materialize(huge)
    assert live_bits(bank.materialize(good)) == before


def test_what_a_merge_has_from_the_base_is_refused_where_its_dtype_cannot_hold_it(sources):
    base, experts = sources
    name, other = "model.norm.weight", "model.layers.3.mlp.up_proj.weight"
    large = base.tensors[name].clone()
    large[0], large[1] = 1e5, float("inf")
    far = replace(base, tensors={each: base.tensors[each] for each in base.catalogue.names} | {name: large})
    recipe = recipe_of((far, experts), "task_arithmetic", "float16", {"weight": 0.5}, tensors=(other,))
    half = WeightBank(far, experts, dtype=torch.float16, device=torch.device("cpu"))
    for make in (half.materialize, lambda recipe: dict(half.merged(recipe))):
        with pytest.raises(MergeError, match=rf"'{name}', which the merge has from the base, is not finite in float16"):
            make(recipe)
    large[0] = 8192  # the infinite element is the base's own
    assert dict(half.merged(recipe))[name][:2].tolist() == [8192, float("inf")]


def test_the_shared_sources_are_never_written_to(sources, bank, dtype):
    base, experts = sources

    def checksum():
        bits = (
            source.tensors[name].view(torch.uint8).numpy().tobytes()
            for source in (base, *experts)
            for name in base.catalogue.names
        )
        return hashlib.sha256(b"".join(bits)).hexdigest()

    before = checksum()
    for method in ("linear", "task_arithmetic", "ties", "dare_linear", "dare_ties"):
        bank.materialize(recipe_of(sources, method, dtype))
    assert checksum() == before


def test_a_recipe_for_other_sources_or_another_dtype_is_refused(sources, bank, dtype):
    recipe = recipe_of(sources, "linear", dtype)
    with pytest.raises(InvalidInput, match="not in this bank"):
        bank.materialize(replace(recipe, base=replace(recipe.base, fingerprint="other")))
    with pytest.raises(InvalidInput, match="the recipe is in float16"):
        bank.materialize(replace(recipe, dtype="float16"))
    with pytest.raises(InvalidInput, match="semantics version 99"):
        bank.materialize(replace(recipe, semantics=99))


def test_memory_is_known_from_the_catalogue_alone(sources):
    base, _ = sources
    need = memory_need(base.catalogue, models=4, dtype="float32")
    assert need.sources == 4 * 2 * base.catalogue.parameters
    assert need.worker > 4 * base.catalogue.parameters

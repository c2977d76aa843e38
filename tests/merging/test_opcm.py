"""OPCM: by hand, by its properties, and against a straightforward implementation of the formula with full SVDs."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace
from functools import partial

import pytest
import torch

from evomerge.errors import InvalidInput, MergeError
from evomerge.merging import RuleTensors, merge_rule, merge_state_dicts, opcm
from evomerge.merging.opcm import OpcmState, decompose, opcm_first, opcm_next, project, split_rank
from evomerge.methods import validate

SHAPES = {
    "fc1.weight": (6, 4),
    "fc1.bias": (6,),
    "fc2.weight": (4, 6),
    "embed_tokens.weight": (5, 4),
    "lm_head.weight": (5, 4),
    "bn.running_mean": (3,),
    "conv.weight": (2, 3, 2, 2),
}


def models(count: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in SHAPES.items()}
        for _ in range(count)
    ]


def run(base, sources, alpha=0.5, options=None) -> OpcmState:
    state = opcm_first(base, sources[0])
    for source in sources[1:]:
        state = opcm_next(state, base, source, alpha, options or {})
    return state


def straightforward(base, sources, alpha, *, zero_diagonal=True, doc=False, heads=False, skip=()):
    """The formula line by line, with full singular vectors, in float64. Returns M, lambda and the mean norm."""
    linear = {"fc1.weight", "fc2.weight"} | ({"lm_head.weight"} if heads else set())

    def norm(vector):
        return torch.cat([vector[name].flatten() for name in vector if name not in skip]).norm()

    taus = [{name: source[name].double() - base[name].double() for name in base} for source in sources]
    merged, factor, norms = taus[0], 1.0, [norm(taus[0])]
    for tau in taus[1:]:
        norms.append(norm(tau))
        average = sum(norms) / len(norms)
        combined = {}
        for name in tau:
            new = tau[name]
            if name in linear:
                u, s, vt = torch.linalg.svd(merged[name], full_matrices=True)
                cumulated = s.cumsum(0) / s.sum()
                rank = next(index for index, value in enumerate(cumulated) if value > alpha) + int(doc)
                p = u.T @ new @ vt.T
                if zero_diagonal:
                    for index in range(min(p.shape)):
                        p[index, index] = 0
                p[:rank, :rank] = 0
                new = u @ p @ vt
            combined[name] = factor * merged[name] + new
        factor = norm(combined) / average
        merged = {name: tensor / factor for name, tensor in combined.items()}
    return merged, float(factor), float(sum(norms) / len(norms))


@pytest.mark.parametrize(
    ("options", "reference"),
    [
        ({}, {}),
        ({"zero_diagonal": False}, {"zero_diagonal": False}),
        ({"split_rank": "doc"}, {"doc": True}),
        ({"lm_head": "projected"}, {"heads": True}),
        ({"norm_tensors": "parameters"}, {"skip": ("bn.running_mean",)}),
    ],
)
@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.95])
def test_four_arrivals_follow_the_formula(alpha, options, reference):
    base, *sources = models(5)
    state = run(base, sources, alpha, options)
    merged, factor, mean_norm = straightforward(base, sources, alpha, **reference)
    assert state.factor == pytest.approx(factor, rel=1e-5)
    assert state.mean_norm == pytest.approx(mean_norm, rel=1e-6)
    assert state.arrived == 4
    for name in base:
        torch.testing.assert_close(state.task_vector[name], merged[name].float(), rtol=1e-4, atol=1e-5)


def test_the_first_model_is_kept_as_it_is():
    base, source = models(2)
    state = opcm_first(base, source)
    assert state.factor == 1.0
    assert all(torch.equal(state.task_vector[name], source[name] - base[name]) for name in base)
    assert state.mean_norm == pytest.approx(math.sqrt(sum(float((v**2).sum()) for v in state.task_vector.values())))


def test_two_diagonal_task_vectors_by_hand():
    """M = diag(3, 1) has r = 0 for alpha 0.5 and r = 1 for 0.8; tau_2 = [[1, 2], [2, 4]] in its own basis."""
    base = {"fc.weight": torch.zeros(2, 2)}
    first, second = {"fc.weight": torch.diag(torch.tensor([3.0, 1.0]))}, {"fc.weight": torch.tensor([[1.0, 2], [2, 4]])}
    average = (math.sqrt(10) + 5) / 2
    for alpha, options, kept in [
        (0.5, {}, [[0.0, 2.0], [2.0, 0.0]]),
        (0.5, {"zero_diagonal": False}, [[1.0, 2.0], [2.0, 4.0]]),
        (0.8, {"zero_diagonal": False}, [[0.0, 2.0], [2.0, 4.0]]),
        (0.8, {"zero_diagonal": False, "split_rank": "doc"}, [[0.0, 0.0], [0.0, 0.0]]),
    ]:
        state = opcm_next(opcm_first(base, first), base, second, alpha, options)
        combined = first["fc.weight"] + torch.tensor(kept)
        assert state.mean_norm == pytest.approx(average)
        assert state.factor == pytest.approx(float(combined.norm()) / average)
        torch.testing.assert_close(state.task_vector["fc.weight"], combined * average / combined.norm())


def test_the_split_is_the_first_entry_above_alpha():
    values = torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=torch.float64)  # cumulated 0.4, 0.7, 0.9, 1
    assert [split_rank(values, alpha) for alpha in (0.0, 0.39, 0.5, 0.8, 0.95)] == [0, 0, 1, 2, 3]
    assert [split_rank(values, alpha, "doc") for alpha in (0.0, 0.5, 0.95)] == [1, 2, 4]
    assert split_rank(torch.full((7,), 0.1, dtype=torch.float64), 1 - 1e-16) == 6


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 4), (1, 4)])
def test_the_projection_is_orthogonal(shape):
    """It is idempotent, what it removes is orthogonal to what it keeps, and the kept part has none of the block."""
    generator = torch.Generator().manual_seed(3)
    old, new = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    decomposition = decompose(old)
    rank = min(2, min(shape))
    kept = project(new, decomposition, rank)
    torch.testing.assert_close(project(kept, decomposition, rank), kept)
    assert abs(float((kept * (new - kept)).sum())) < 1e-12
    inner = decomposition.left.mT @ kept @ decomposition.right
    assert float(inner[:rank, :rank].abs().max()) < 1e-12
    assert float(inner.diagonal().abs().max()) < 1e-12
    # With the diagonal removed nothing of the new model lies along the old one.
    assert abs(float((kept * old).sum())) < 1e-12


def test_an_adapter_of_any_base_removes_the_same_from_the_next_model():
    generator = torch.Generator().manual_seed(4)
    adapter = torch.randn(24, 3, generator=generator) @ torch.randn(3, 20, generator=generator)
    base, new = (torch.randn(24, 20, generator=generator) for _ in range(2))
    olds = [adapter + weights - weights for weights in (0 * base, base, 2 * base)]
    exact, *others = (project(new, decompose(old), 2) for old in olds)
    for other in others:
        torch.testing.assert_close(other, exact, rtol=1e-4, atol=1e-4)


def test_outputs_in_another_order_are_projected_in_that_order_though_the_rank_is_low():
    generator = torch.Generator().manual_seed(4)
    left, right, new = (torch.randn(shape, generator=generator).double() for shape in ((24, 3), (3, 20), (24, 20)))
    old, order = left @ right, torch.randperm(24, generator=generator)
    kept, moved = project(new, decompose(old), 2), project(new[order], decompose(old[order]), 2)
    torch.testing.assert_close(moved, kept[order])


def test_a_model_keeps_what_has_no_direction_of_the_models_before():
    old, new = (torch.zeros(4, 4).double() for _ in range(2))
    old[0, 0], new[1:, 1:] = 2.0, 1.0
    torch.testing.assert_close(project(new, decompose(old), 1), new)


def test_the_norm_of_the_task_vector_is_the_running_mean_of_the_norms():
    base, *sources = models(5, seed=1)
    norms = [math.sqrt(sum(float(((s[n] - base[n]) ** 2).sum()) for n in base)) for s in sources]
    state = opcm_first(base, sources[0])
    for count, source in enumerate(sources[1:], start=2):
        state = opcm_next(state, base, source)
        assert state.mean_norm == pytest.approx(sum(norms[:count]) / count, rel=1e-6)
        norm = math.sqrt(sum(float((tensor**2).sum()) for tensor in state.task_vector.values()))
        assert norm == pytest.approx(state.mean_norm, rel=1e-6)


def test_lambda_grows_as_the_square_root_of_the_number_of_unrelated_models():
    generator = torch.Generator().manual_seed(0)
    base = {"fc.weight": torch.zeros(30, 30)}
    sources = [{"fc.weight": torch.randn(30, 30, generator=generator)} for _ in range(9)]
    assert run(base, sources, 0.0, {"zero_diagonal": False}).factor == pytest.approx(3, rel=0.1)


def test_the_order_of_arrival_matters():
    base, one, two = models(3)
    forth, back = run(base, [one, two]), run(base, [two, one])
    assert forth.mean_norm == pytest.approx(back.mean_norm)
    assert not torch.allclose(forth.task_vector["fc1.weight"], back.task_vector["fc1.weight"])


def test_a_stored_state_goes_on_as_if_it_had_never_been_stored():
    base, *sources = models(4)
    state = run(base, sources[:2])
    stored = {name: tensor.clone() for name, tensor in state.task_vector.items()}
    again = OpcmState(task_vector=stored, factor=state.factor, mean_norm=state.mean_norm, arrived=state.arrived)
    there, here = opcm_next(again, base, sources[2]), opcm_next(state, base, sources[2])
    assert all(torch.equal(there.task_vector[name], here.task_vector[name]) for name in base)
    assert (there.factor, there.mean_norm) == (here.factor, here.mean_norm)


def test_a_further_arrival_changes_neither_state_nor_models():
    base, one, two = models(3)
    state = opcm_first(base, one)
    before = [{name: tensor.clone() for name, tensor in each.items()} for each in (base, two, state.task_vector)]
    opcm_next(state, base, two)
    for each, copy in zip((base, two, state.task_vector), before, strict=True):
        assert all(torch.equal(each[name], copy[name]) for name in copy)


def test_a_model_that_equals_the_base_leaves_the_next_one_unprojected():
    base, one = models(2)
    state = opcm_next(opcm_first(base, base), base, one)
    assert state.factor == pytest.approx(2.0)
    assert all(torch.allclose(state.task_vector[name], (one[name] - base[name]) / 2) for name in base)


def test_models_that_all_equal_the_base_give_the_base():
    (base,) = models(1)
    state = run(base, [base, base, base])
    assert state.mean_norm == 0
    assert all(not tensor.any() for tensor in state.task_vector.values())


def test_a_tied_tensor_counts_once_and_is_never_projected():
    generator = torch.Generator().manual_seed(0)

    def tied(names):
        tensor = torch.randn(4, 4, generator=generator)
        return dict.fromkeys(names, tensor)

    names = ["lm_head.weight", "embed_tokens.weight"]
    base, one, two = (tied(names) for _ in range(3))
    state = run(base, [one, two], 0.9, {"lm_head": "projected"})
    first, second = (each["lm_head.weight"] - base["lm_head.weight"] for each in (one, two))
    combined = first + second
    average = float(first.norm() + second.norm()) / 2
    assert state.mean_norm == pytest.approx(average)
    assert state.task_vector["lm_head.weight"] is state.task_vector["embed_tokens.weight"]
    torch.testing.assert_close(state.task_vector["lm_head.weight"], combined * average / combined.norm())


def test_integer_tensors_are_left_out():
    base = {"fc.weight": torch.zeros(2, 2), "steps": torch.tensor(3)}
    source = {"fc.weight": torch.ones(2, 2), "steps": torch.tensor(5)}
    assert list(run(base, [source, source]).task_vector) == ["fc.weight"]


@pytest.mark.parametrize(
    ("dtype", "kept"), [(torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float64, torch.float64)]
)
def test_the_state_has_at_least_single_precision(dtype, kept):
    base, one, two = models(3, dtype=dtype)
    state = run(base, [one, two])
    assert {tensor.dtype for tensor in state.task_vector.values()} == {kept}


@pytest.mark.parametrize("alpha", [1.0, -0.1, float("nan"), "0.5", True])
def test_alpha_outside_of_its_range_is_refused(alpha):
    base, one, two = models(3)
    with pytest.raises(InvalidInput, match="opcm: alpha"):
        opcm_next(opcm_first(base, one), base, two, alpha)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"zero_diagonals": True}, "did you mean 'zero_diagonal'"),
        ({"zero_diagonal": 1}, "value of 'opcm' option 'zero_diagonal'"),
        ({"split_rank": "zero"}, "did you mean 'zero_based'"),
    ],
)
def test_unknown_options_are_refused(options, message):
    base, one, two = models(3)
    with pytest.raises(InvalidInput, match=message):
        opcm_next(opcm_first(base, one), base, two, 0.5, options)


def test_models_that_do_not_fit_are_refused():
    base, one = models(2)
    with pytest.raises(InvalidInput, match=r"only some have conv\.weight"):
        opcm_first(base, {name: tensor for name, tensor in one.items() if name != "conv.weight"})
    with pytest.raises(InvalidInput, match=r"fc1\.weight' must have one shape"):
        opcm_first(base, {**one, "fc1.weight": torch.zeros(4, 6)})
    with pytest.raises(InvalidInput, match="must be a real tensor"):
        opcm_first(base, {**one, "fc1.weight": [1.0]})
    with pytest.raises(InvalidInput, match="must be a real tensor"):
        opcm_first({"w": torch.zeros(2, dtype=torch.complex64)}, {"w": torch.zeros(2, dtype=torch.complex64)})
    other = opcm_first({"w": torch.zeros(2)}, {"w": torch.ones(2)})
    with pytest.raises(InvalidInput, match="only some have"):
        opcm_next(other, base, one)


def test_values_that_are_not_finite_are_no_merge():
    base, one, two = models(3)
    two["fc2.weight"][0, 0] = float("inf")
    with pytest.raises(MergeError, match=r"not finite in tensor 'fc2\.weight'"):
        opcm_next(opcm_first(base, one), base, two)


# --- as a merge method ---


@pytest.mark.parametrize(
    "options",
    [{}, {"zero_diagonal": False}, {"split_rank": "doc"}, {"lm_head": "projected"}, {"norm_tensors": "parameters"}],
    ids=str,
)
def test_the_method_is_the_last_state_of_the_sequence(options):
    base, *sources = models(4)
    merged = merge_state_dicts("opcm", sources, base, {"alpha": 0.7}, options)
    state = run(base, sources, 0.7, options)
    assert all(torch.equal(merged[name], base[name] + state.task_vector[name]) for name in base)


def test_the_method_rounds_once_to_the_dtype_of_the_base():
    base, *sources = models(4, dtype=torch.bfloat16)
    merged = merge_state_dicts("opcm", sources, base)
    state = run(base, sources)
    assert all(torch.equal(merged[n], (base[n].float() + state.task_vector[n]).bfloat16()) for n in base)


def test_a_single_source_comes_back():
    base, source = models(2)
    merged = merge_state_dicts("opcm", [source], base)
    assert all(torch.allclose(merged[name], source[name], atol=1e-6) for name in base)


def test_the_method_treats_a_tied_head_as_an_embedding():
    generator = torch.Generator().manual_seed(0)
    tied = [
        dict.fromkeys(("lm_head.weight", "embed_tokens.weight"), torch.randn(4, 4, generator=generator))
        for _ in range(3)
    ]
    base, *sources = tied
    merged = merge_state_dicts("opcm", sources, base, {"alpha": 0.9}, {"lm_head": "projected"})
    expected = base["lm_head.weight"] + run(base, sources, 0.9).task_vector["lm_head.weight"]
    assert torch.equal(merged["lm_head.weight"], expected)
    assert torch.equal(merged["embed_tokens.weight"], expected)


def rule(base, sources, names, alpha=0.5, cache=None):
    _, options = validate("opcm", {}, {}, len(sources))
    return RuleTensors(
        names=names,
        base=base,
        sources=sources,
        parameters={"alpha": alpha},
        options=options,
        scope_names=tuple(sorted(base)),
        cache={} if cache is None else cache,
    )


def test_candidates_share_the_decompositions_of_the_first_model(monkeypatch):
    base, *sources = models(3)
    names, cache, decomposed = tuple(sorted(base)), {}, []
    original = opcm.decompose
    monkeypatch.setattr(opcm, "decompose", lambda matrix: decomposed.append(matrix.shape) or original(matrix))
    for alpha in (0.2, 0.5, 0.8):
        merged = dict(merge_rule("opcm", rule(base, sources, names, alpha, cache)))
        expected = merge_state_dicts("opcm", sources, base, {"alpha": alpha})
        assert all(torch.equal(merged[name], expected[name]) for name in names)
    assert len(decomposed) == 2 + 3 * 2  # two linear weights once, and at every call of merge_state_dicts


def test_decompositions_beyond_the_bound_are_not_kept(monkeypatch):
    base, *sources = models(3)
    monkeypatch.setattr(opcm, "KEPT_BYTES", 500)  # one of the two takes (6 * 4 + 4 + 4 * 4) * 8 = 352 bytes
    cache = {}
    dict(merge_rule("opcm", rule(base, sources, tuple(base), 0.5, cache)))
    assert list(cache["first sources", 1]) == [("opcm", "first", "fc1.weight")]


def test_orders_that_begin_alike_share_the_decompositions_of_their_first_model(monkeypatch):
    base, *sources = models(4)
    caches, decomposed, counts = defaultdict(dict), [], []
    original = opcm.decompose
    monkeypatch.setattr(opcm, "decompose", lambda matrix: decomposed.append(matrix.shape) or original(matrix))
    for order in [(0, 1, 2), (0, 2, 1), (1, 0, 2), (0, 1, 2), (1, 2, 0)]:
        arriving = [sources[place] for place in order]
        expected = merge_state_dicts("opcm", arriving, base)
        decomposed.clear()
        prefixes = partial(lambda order, count: caches[order[:count]], order)
        merged = dict(merge_rule("opcm", replace(rule(base, arriving, tuple(base)), prefix_cache=prefixes)))
        counts.append(len(decomposed))
        assert all(torch.equal(merged[name], expected[name]) for name in base)
    assert counts == [4, 2, 4, 2, 2]  # two linear weights of the second state, and of a first model that is new


def test_rules_with_parts_of_a_model_share_its_state(monkeypatch):
    base, *sources = models(3)
    cache, arrivals = {}, []
    original = opcm.arrive
    monkeypatch.setattr(opcm, "arrive", lambda *given, **named: arrivals.append(1) or original(*given, **named))
    expected = merge_state_dicts("opcm", sources, base)
    arrivals.clear()
    for name in base:
        merged = dict(merge_rule("opcm", rule(base, sources, (name,), 0.5, cache)))
        assert torch.equal(merged[name], expected[name])
    assert len(arrivals) == 1


def test_the_method_needs_a_base():
    _, one, two = models(3)
    with pytest.raises(InvalidInput, match="give the base model"):
        merge_state_dicts("opcm", [one, two])

"""OT fusion: recovery of permuted copies, small cases by hand, and a straightforward implementation of the formula."""

from __future__ import annotations

from itertools import pairwise, permutations

import pytest
import torch

from evomerge.alignment import transport
from evomerge.alignment.alignment import OtSettings
from evomerge.alignment.chain_alignment import align_chain as align_chain_by
from evomerge.alignment.transport import (
    Permutation,
    assignment,
    corrected,
    cost_matrix,
    exact_plan,
    sinkhorn_plan,
)
from evomerge.errors import InvalidInput, MergeError
from evomerge.merging import RuleTensors, merge_rule, merge_state_dicts, ot_fusion
from evomerge.merging.ot_fusion import interpolate
from evomerge.methods import validate

WIDTHS = (4, 6, 5, 3)


def mlp(seed: int, widths=WIDTHS, dtype=torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    model = {}
    for layer, (inputs, outputs) in enumerate(pairwise(widths)):
        model[f"layers.{layer}.weight"] = torch.randn(outputs, inputs, generator=generator).to(dtype)
        model[f"layers.{layer}.bias"] = torch.randn(outputs, generator=generator).to(dtype)
    return model


def shuffled(model, seed: int, output: bool = False):
    """The same function with its hidden units (and its outputs) in another order."""
    generator = torch.Generator().manual_seed(seed)
    result, before = {}, None
    depth = len(model) // 2
    for layer in range(depth):
        weight, bias = model[f"layers.{layer}.weight"], model[f"layers.{layer}.bias"]
        order = torch.randperm(len(bias), generator=generator)
        if layer == depth - 1 and not output:
            order = torch.arange(len(bias))
        result[f"layers.{layer}.weight"] = (weight if before is None else weight[:, before])[order]
        result[f"layers.{layer}.bias"] = bias[order]
        before = order
    return result


def align_chain(source, target, settings=None, activations=None):
    return align_chain_by(source, target, settings or OtSettings(), activations)


def fuse(aligned, target, t):
    return {name: interpolate(aligned[name], tensor, t, torch.float64) for name, tensor in target.items()}


def forward(model, x):
    depth = len(model) // 2
    for layer in range(depth):
        x = x.to(model["layers.0.weight"].dtype) @ model[f"layers.{layer}.weight"].T + model[f"layers.{layer}.bias"]
        x = torch.relu(x) if layer < depth - 1 else x
    return x


def activations(model, x):
    found, depth = {}, len(model) // 2
    for layer in range(depth):
        x = x @ model[f"layers.{layer}.weight"].T + model[f"layers.{layer}.bias"]
        found[f"layers.{layer}.weight"] = x
        x = torch.relu(x)
    return found


def equal(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("output", [False, True])
@pytest.mark.parametrize("cost", ["euclidean", "squared", "cosine"])
def test_a_permuted_copy_is_recovered_exactly(cost, output):
    model = mlp(0)
    alignment = align_chain(shuffled(model, 1, output), model, OtSettings(cost=cost))
    assert equal(alignment.tensors, model)
    assert sum(alignment.moved.values()) > 4


def test_activations_recover_a_permuted_copy_exactly():
    model = mlp(0)
    other = shuffled(model, 1, output=True)
    inputs = torch.randn(20, 4, generator=torch.Generator().manual_seed(5))
    given = [activations(other, inputs), activations(model, inputs)]
    assert equal(align_chain(other, model, OtSettings(mode="acts"), given).tensors, model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_permuted_copy_is_recovered_in_every_dtype(dtype):
    model = mlp(0, dtype=dtype)
    assert equal(align_chain(shuffled(model, 1), model).tensors, model)


def test_fine_tunes_of_one_base_stay_where_they_are():
    base, one, two = mlp(0), mlp(1), mlp(2)
    one, two = ({name: base[name] + 0.05 * each[name] for name in base} for each in (one, two))
    alignment = align_chain(one, two)
    assert set(alignment.moved.values()) == {0}
    assert equal(alignment.tensors, one)
    assert all(torch.allclose(value, (one[n] + two[n]).double() / 2) for n, value in fuse(one, two, 0.5).items())


def test_an_aligned_model_computes_what_it_computed_before():
    one, two = mlp(3), mlp(4)
    alignment = align_chain(one, two, OtSettings(align_output=False))
    assert alignment.moved["layers.0.weight"] > 0
    assert "layers.2.weight" not in alignment.moved
    x = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(forward(alignment.tensors, x), forward(one, x))


def test_the_ends_of_the_mixture_are_the_aligned_first_and_the_second_model():
    one, two = mlp(3), mlp(4)
    aligned = align_chain(one, two).tensors
    assert all(torch.equal(value, aligned[name].double()) for name, value in fuse(aligned, two, 0.0).items())
    assert all(torch.equal(value, two[name].double()) for name, value in fuse(aligned, two, 1.0).items())


def straightforward(one, two, *, cost, solver, correction, past_correction, marginals, align_output, reg):
    """The formula layer by layer with full matrices; exact plans by trying all permutations."""
    names = [name for name in one if name.endswith("weight")]
    before = torch.eye(one[names[0]].shape[1], dtype=torch.float64)
    result = {}
    for name in names:
        weight, other = one[name].double(), two[name].double()
        shifted = weight @ before
        n = len(weight)
        costs = torch.zeros(n, n, dtype=torch.float64)
        for i in range(n):
            for j in range(n):
                a, b = shifted[i], other[j]
                costs[i, j] = {
                    "euclidean": (a - b).norm(),
                    "squared": ((a - b) ** 2).sum(),
                    "cosine": 1 - a @ b / (a.norm() * b.norm()),
                }[cost]
        plan = torch.zeros(n, n, dtype=torch.float64)
        if solver == "exact":
            best = min(permutations(range(n)), key=lambda order: sum(float(costs[order[j], j]) for j in range(n)))
            for j in range(n):
                plan[best[j], j] = 1 / n
        else:
            kernel, v = torch.exp(-costs / reg), torch.ones(n, dtype=torch.float64)
            for _ in range(5000):
                u = (1 / n) / (kernel @ v)
                v = (1 / n) / (kernel.T @ u)
            plan = u[:, None] * kernel * v[None, :]
        if correction:
            beta = {"column_sums": plan.sum(0), "row_sums": plan.sum(1), "uniform": torch.full_like(plan[0], 1 / n)}[
                marginals
            ]
            plan = plan @ torch.diag(1 / (beta + 1e-7))
        if name == names[-1] and not align_output:
            plan, past_correction = torch.eye(n, dtype=torch.float64), True
        result[name] = plan.T @ (shifted if past_correction else weight)
        result[name.replace("weight", "bias")] = plan.T @ one[name.replace("weight", "bias")].double()
        before = plan
    return result


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"cost": "squared"},
        {"cost": "cosine"},
        {"correction": False},
        {"past_correction": False},
        {"align_output": False},
        {"align_output": False, "past_correction": False},
        {"marginals": "uniform"},
        {"marginals": "row_sums"},
    ],
    ids=str,
)
@pytest.mark.parametrize("solver", ["exact", "sinkhorn"])
def test_alignment_follows_the_formula(solver, changes):
    chosen = {
        "cost": "euclidean",
        "correction": True,
        "past_correction": True,
        "marginals": "column_sums",
        "align_output": True,
        "solver": solver,
        **changes,
    }
    reg = 5.0 if chosen["cost"] == "squared" else 0.5
    one, two = mlp(5), mlp(6)
    alignment = align_chain(one, two, OtSettings(reg=reg, **chosen))
    for name, expected in straightforward(one, two, reg=reg, **chosen).items():
        torch.testing.assert_close(alignment.tensors[name].double(), expected, rtol=1e-5, atol=1e-5)


def test_costs_by_hand():
    x, y = torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [0.0, 2.0], [6.0, 8.0]])
    assert cost_matrix(x, y, "squared").tolist() == [pytest.approx([25.0, 13.0, 25.0]), [0.0, 4.0, 100.0]]
    assert cost_matrix(x, y).tolist() == [pytest.approx([5.0, 13**0.5, 5.0]), [0.0, 2.0, 10.0]]
    assert cost_matrix(x, y, "cosine").tolist() == [pytest.approx([1.0, 0.2, 0.0]), [1.0, 1.0, 1.0]]
    assert cost_matrix(x, y, "euclidean", unit_rows=True)[0].tolist() == pytest.approx([1.0, 0.4**0.5, 0.0])


def test_distances_by_products_are_those_by_differences(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 30, generator=generator), torch.randn(50, 30, generator=generator)
    exact = cost_matrix(x, y)
    monkeypatch.setattr(transport, "EXACT_DISTANCES", 1)
    torch.testing.assert_close(cost_matrix(x, y), exact)


def test_scalings_by_hand():
    x, y = torch.tensor([[0.0]]), torch.tensor([[1.0], [2.0], [3.0], [10.0]])
    assert cost_matrix(x, y, scaling="max").tolist() == [[0.1, 0.2, 0.3, 1.0]]
    assert cost_matrix(x, y, scaling="mean").tolist() == [[0.25, 0.5, 0.75, 2.5]]
    assert cost_matrix(x, y, scaling="median").tolist() == [[0.5, 1.0, 1.5, 5.0]]
    assert cost_matrix(x, y, scaling="log").exp().tolist() == [pytest.approx([2.0, 3.0, 4.0, 11.0])]
    assert cost_matrix(x, x, scaling="max").tolist() == [[0.0]]


@pytest.mark.parametrize(("n", "m"), [(3, 3), (3, 5), (4, 6), (6, 4), (1, 4), (5, 1)])
def test_an_exact_plan_has_its_marginals_and_the_cost_of_the_linear_program(n, m):
    costs = torch.rand(n, m, generator=torch.Generator().manual_seed(n * m), dtype=torch.float64)
    plan = exact_plan(costs)
    torch.testing.assert_close(plan.sum(1), torch.full((n,), 1 / n, dtype=torch.float64))
    torch.testing.assert_close(plan.sum(0), torch.full((m,), 1 / m, dtype=torch.float64))
    program = torch.from_numpy(transport._linear_program(costs.numpy()))
    torch.testing.assert_close(plan, program, atol=1e-9, rtol=0)


def test_many_copies_are_solved_as_a_linear_program(monkeypatch):
    costs = torch.rand(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    plan = exact_plan(costs)
    monkeypatch.setattr(transport, "MOST_COPIES", 14)
    torch.testing.assert_close(exact_plan(costs), plan, atol=1e-9, rtol=0)


def test_units_that_are_alike_stay_where_they_are():
    """Two dead units: every assignment costs the same."""
    costs = torch.tensor([[0.0, 0.0, 3.0], [0.0, 0.0, 3.0], [3.0, 3.0, 0.0]], dtype=torch.float64)
    assert assignment(costs).order.tolist() == [0, 1, 2]
    assert assignment(costs[[2, 0, 1]]).moved == 3


def test_sinkhorn_nears_the_permutation_as_its_entropy_vanishes():
    costs = torch.rand(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(sinkhorn_plan(costs, 1e-3), exact_plan(costs), atol=1e-3, rtol=0)
    flat = sinkhorn_plan(costs, 1e3)
    torch.testing.assert_close(flat, torch.full_like(flat, 1 / 36), atol=1e-4, rtol=0)


def test_sinkhorn_is_finite_where_its_kernel_underflows():
    costs = 1e4 * torch.rand(4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert float(torch.exp(-costs / 1e-2).max()) == 0
    plan = sinkhorn_plan(costs, 1e-2)
    assert bool(torch.isfinite(plan).all())
    torch.testing.assert_close(plan.sum(1), torch.full((4,), 1 / 4, dtype=torch.float64))


def test_marginals_of_a_plan_by_hand():
    plan = torch.tensor([[0.3, 0.1], [0.2, 0.4]], dtype=torch.float64)
    close = {"atol": 1e-5, "rtol": 0}
    torch.testing.assert_close(corrected(plan, "column_sums"), plan / torch.tensor([0.5, 0.5]), **close)
    torch.testing.assert_close(corrected(plan, "row_sums"), plan / torch.tensor([0.4, 0.6]), **close)
    torch.testing.assert_close(corrected(plan, "uniform"), plan / 0.5, **close)


@pytest.mark.parametrize("solver", ["exact", "sinkhorn"])
def test_a_wider_model_is_folded_into_the_widths_of_the_second(solver):
    one, two = mlp(0, (4, 8, 3)), mlp(1, (4, 5, 3))
    aligned = align_chain(one, two, OtSettings(solver=solver, reg=0.1)).tensors
    assert {name: tensor.shape for name, tensor in aligned.items()} == {n: tensor.shape for n, tensor in two.items()}
    assert fuse(aligned, two, 0.5)["layers.0.weight"].shape == (5, 4)


def test_doubled_units_are_folded_into_one():
    """Each unit twice, with half the outgoing weight: the narrow model comes back but for 1e-7 / beta."""
    narrow = mlp(0, (4, 3, 2))
    wide = {
        "layers.0.weight": narrow["layers.0.weight"].repeat(2, 1),
        "layers.0.bias": narrow["layers.0.bias"].repeat(2),
        "layers.1.weight": narrow["layers.1.weight"].repeat(1, 2) / 2,
        "layers.1.bias": narrow["layers.1.bias"],
    }
    aligned = align_chain(wide, narrow, OtSettings(align_output=False)).tensors
    torch.testing.assert_close(aligned["layers.0.weight"].float(), narrow["layers.0.weight"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(aligned["layers.0.bias"].float(), narrow["layers.0.bias"], rtol=1e-5, atol=1e-5)


def test_moved_units_are_counted():
    assert Permutation(torch.tensor([1, 0, 2])).moved == 2
    one, two = mlp(5), mlp(6)
    exact = align_chain(one, two).moved
    assert align_chain(one, two, OtSettings(correction=False)).moved["layers.0.weight"] == exact["layers.0.weight"]


def test_scalars_and_integers_stay():
    model = {**mlp(0), "steps": torch.tensor(4), "temperature": torch.tensor(2.0)}
    aligned = align_chain(model, {**mlp(1), "steps": torch.tensor(7), "temperature": torch.tensor(4.0)}).tensors
    assert int(aligned["steps"]) == 4
    assert float(aligned["temperature"]) == 2.0


@pytest.mark.parametrize(
    ("one", "two", "message"),
    [
        (mlp(0), {n: t for n, t in mlp(1).items() if "2" not in n}, "same tensor names"),
        ({"fc.bias": torch.zeros(3)}, {"fc.bias": torch.zeros(3)}, "have none"),
        ({"a.weight": torch.zeros(3, 2), "b.weight": torch.zeros(2, 4)},) * 2 + ("needs a chain",),
        (mlp(0), {**mlp(1), "layers.1.weight": torch.zeros(5, 9)}, "of the second model has 9 inputs"),
        (mlp(0, (4, 6, 3)), mlp(1, (5, 6, 3)), "inputs that are not aligned"),
        ({**mlp(0), "norm.weight": torch.ones(6)}, {**mlp(1), "norm.weight": torch.ones(6)}, "with which units"),
        ({**mlp(0), "conv.weight": torch.ones(6, 3, 2)},) * 2 + ("with which units",),
        ({**mlp(0), "layers.0.bias": torch.zeros(2)},) * 2 + ("with which units",),
        (mlp(0), {**mlp(1), "layers.0.bias": torch.tensor(0.0)}, "differ in their biases"),
    ],
)
def test_models_that_cannot_be_aligned_are_refused(one, two, message):
    with pytest.raises(InvalidInput, match=message):
        align_chain(one, two)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"marginals": "uniform"}, "use column_sums"),
        ({"marginals": "row_sums"}, "use column_sums"),
        ({"past_correction": False}, "not aligned"),
    ],
)
def test_settings_for_equal_widths_refuse_other_widths(changes, message):
    with pytest.raises(InvalidInput, match=message):
        align_chain(mlp(0, (4, 8, 3)), mlp(1, (4, 5, 3)), OtSettings(**changes))


def test_unaligned_outputs_must_have_the_same_width():
    with pytest.raises(InvalidInput, match="align_output"):
        align_chain(mlp(0, (4, 8, 3)), mlp(1, (4, 8, 2)), OtSettings(align_output=False))


def test_activations_that_are_missing_or_do_not_fit_are_refused():
    one, two = mlp(0), mlp(1)
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    acts = OtSettings(mode="acts")
    with pytest.raises(InvalidInput, match="give `statistics`"):
        align_chain(one, two, acts)
    with pytest.raises(InvalidInput, match="source 1 has none"):
        align_chain(one, two, acts, [activations(one, x), {}])
    with pytest.raises(InvalidInput, match="same samples"):
        align_chain(one, two, acts, [activations(one, x), activations(two, x[:3])])
    with pytest.raises(InvalidInput, match=r"\[samples, 6\]"):
        align_chain(one, two, acts, [{n: t.T for n, t in activations(one, x).items()}, activations(two, x)])


def test_activations_of_outputs_that_are_not_aligned_are_not_needed():
    one, two = mlp(0), mlp(1)
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    given = [activations(one, x), activations(two, x)]
    for each in given:
        del each["layers.2.weight"]
    assert align_chain(one, two, OtSettings(mode="acts", align_output=False), given).moved.keys() == given[0].keys()


def test_weights_that_are_not_finite_are_no_merge():
    one = mlp(0)
    one["layers.1.weight"][0, 0] = float("nan")
    with pytest.raises(MergeError, match="not finite"):
        align_chain(one, mlp(1))


# --- as a merge method ---


def test_the_method_interpolates_the_aligned_first_and_the_second_source():
    one, two = mlp(3), mlp(4)
    aligned = align_chain(one, two).tensors
    for t in (0.0, 0.25, 0.5, 1.0):
        merged = merge_state_dicts("ot_fusion", [one, two], parameters={"t": t})
        assert list(merged) == list(one)
        for name, tensor in merged.items():
            assert torch.equal(tensor, ((1 - t) * aligned[name].double() + t * two[name].double()).float())


def test_the_method_gives_back_a_permuted_copy_and_the_second_source():
    one, two = shuffled(mlp(0), 1, output=True), mlp(0)
    for t in (0.0, 0.3, 1.0):
        assert equal(merge_state_dicts("ot_fusion", [one, two], parameters={"t": t}), two)


def test_layers_are_a_chain_in_the_order_of_the_dictionary():
    """Names that sort in another order than they are applied in."""
    renamed = {"layers.0": "zero", "layers.1": "one", "layers.2": "last"}

    def named(model):
        return {renamed[name[:8]] + name[8:]: tensor for name, tensor in model.items()}

    one, two = mlp(3), mlp(4)
    plain, other = (merge_state_dicts("ot_fusion", pair) for pair in ([one, two], [named(one), named(two)]))
    assert equal(named(plain), other)


def test_every_option_reaches_the_alignment():
    one, two = mlp(5), mlp(6)
    x = torch.randn(9, 4, generator=torch.Generator().manual_seed(5))
    given = [activations(one, x), activations(two, x)]
    for options in [
        {"mode": "acts"},
        {"cost": "cosine"},
        {"cost_scaling": "log", "solver": "sinkhorn"},
        {"unit_rows": True},
        {"correction": False},
        {"past_correction": False},
        {"marginals": "row_sums", "solver": "sinkhorn"},
        {"align_output": False},
    ]:
        statistics = given if options.get("mode") == "acts" else None
        merged = merge_state_dicts("ot_fusion", [one, two], None, {"t": 0.0, "reg": 0.5}, options, statistics)
        aligned = align_chain(one, two, OtSettings(**options, reg=0.5), statistics).tensors
        assert all(torch.equal(merged[name], aligned[name].float()) for name in merged)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_result_has_the_dtype_of_the_sources_and_shares_no_memory(dtype):
    one, two = ({**mlp(seed, dtype=dtype), "steps": torch.tensor(seed)} for seed in (1, 2))
    merged = merge_state_dicts("ot_fusion", [one, two])
    assert [merged[name].dtype for name in merged] == [one[name].dtype for name in one]
    assert not {t.data_ptr() for t in merged.values()} & {t.data_ptr() for m in (one, two) for t in m.values()}
    assert int(merged["steps"]) == 1


def test_sources_of_different_width_merge_in_the_shapes_of_the_second():
    one, two = mlp(0, (4, 8, 3)), mlp(1, (4, 5, 3))
    merged = merge_state_dicts("ot_fusion", [one, two])
    assert {name: tensor.shape for name, tensor in merged.items()} == {n: tensor.shape for n, tensor in two.items()}
    assert equal(merge_state_dicts("ot_fusion", [one, two], parameters={"t": 1.0}), two)
    with pytest.raises(InvalidInput, match="does not fit"):
        merge_state_dicts("linear", [one, two])


def test_threads_and_strides_change_no_bit():
    one, two = mlp(0, (64, 48, 32)), mlp(1, (64, 48, 32))
    options, results = {"solver": "sinkhorn"}, []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(merge_state_dicts("ot_fusion", [one, two], None, {"reg": 0.5}, options))
    finally:
        torch.set_num_threads(threads)
    assert equal(*results)
    turned = {name: tensor.t().contiguous().t() if tensor.dim() == 2 else tensor for name, tensor in one.items()}
    assert equal(merge_state_dicts("ot_fusion", [turned, two], None, {"reg": 0.5}, options), results[0])


def test_candidates_with_other_t_share_one_alignment(monkeypatch):
    one, two = mlp(3), mlp(4)
    cache, alignments = {}, []
    original = ot_fusion.align
    monkeypatch.setattr(ot_fusion, "align", lambda *given: alignments.append(1) or original(*given))
    for t in (0.2, 0.7):
        parameters, options = validate("ot_fusion", {"t": t}, {}, 2)
        for name in one:
            rule = RuleTensors(
                names=(name,),
                base=None,
                sources=(one, two),
                parameters=parameters,
                options=options,
                scope_names=tuple(sorted(one)),
                cache=cache,
            )
            ((_, merged),) = merge_rule("ot_fusion", rule)
            assert torch.equal(merged, merge_state_dicts("ot_fusion", [one, two], parameters={"t": t})[name])
    assert len(alignments) == 1 + 2 * len(one)  # one, and one for every call of merge_state_dicts


def test_three_sources_and_useless_or_missing_activations_are_refused():
    one, two = mlp(3), mlp(4)
    with pytest.raises(InvalidInput, match="exactly 2 sources"):
        merge_state_dicts("ot_fusion", [one, two, two])
    with pytest.raises(InvalidInput, match="leave them out"):
        merge_state_dicts("ot_fusion", [one, two], statistics=[{}, {}])
    with pytest.raises(InvalidInput, match="give `statistics`"):
        merge_state_dicts("ot_fusion", [one, two], options={"mode": "acts"})
    with pytest.raises(InvalidInput, match="reg = 0"):
        merge_state_dicts("ot_fusion", [one, two], parameters={"reg": 0.0})

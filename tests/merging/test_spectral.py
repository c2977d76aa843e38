"""TSV-M, Iso-C and WUDI: what their papers' equations say of small matrices, and what a worker makes once."""

import pytest
import torch

from evomerge.adapters.adapted_tensors import AdaptedTensors, Change, LowRank
from evomerge.merging import RuleTensors, merge_rule, merge_state_dicts
from evomerge.methods import resolve_options, resolve_parameters
from evomerge.spaces import load_space
from evomerge.spectral import task_matrices

METHODS = ["tsv_m", "iso_c", "wudi"]
COMBINED = [task_matrices.task_singular_vectors, task_matrices.isotropic_sum, task_matrices.least_interference]
NAME = "model.layers.0.mlp.up_proj.weight"


def vectors(count=3, shape=(7, 9), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(count)]


def test_task_singular_vectors_are_orthonormal_in_all_and_have_the_leading_values():
    given = vectors(2, (8, 6))
    merged = task_matrices.task_singular_vectors(given)
    # Orthonormal U and V: the singular values of the merge are those of the triples that were kept.
    kept = torch.cat([torch.linalg.svdvals(each)[:3] for each in given]).sort(descending=True).values
    torch.testing.assert_close(torch.linalg.svdvals(merged), kept)


def test_task_vectors_in_directions_of_their_own_are_added_up_where_triples_suffice():
    first, second = torch.zeros(4, 4).double(), torch.zeros(4, 4).double()
    first[0, 1], first[1, 0] = 3.0, 2.0
    second[2, 3], second[3, 2] = -1.0, 0.5
    torch.testing.assert_close(task_matrices.task_singular_vectors([first, second]), first + second)
    torch.testing.assert_close(task_matrices.least_interference([first, second]), first + second)


@pytest.mark.parametrize("combine", [task_matrices.task_singular_vectors, task_matrices.least_interference])
def test_what_all_task_vectors_share_counts_once(combine):
    (one,) = vectors(1)
    low_rank = one[:, :2] @ one[:2]  # two triples, which a third of the seven directions holds
    torch.testing.assert_close(combine([low_rank] * 3), low_rank)


def test_an_isotropic_sum_has_the_sums_directions_with_equal_lengths():
    given = vectors()
    merged, total = task_matrices.isotropic_sum(given), sum(given)
    values = torch.linalg.svdvals(total)
    torch.testing.assert_close(torch.linalg.svdvals(merged), values.mean().expand(7))
    left, _, right = torch.linalg.svd(total, full_matrices=False)
    torch.testing.assert_close(merged, values.mean() * left @ right)


def test_least_interference_has_no_gradient_and_less_interference_than_the_sum():
    given = vectors(3, (5, 4))

    def interference(merged):
        return sum(((merged - each) @ each.T).square().sum() / each.square().sum() for each in given)

    merged = task_matrices.least_interference(given).requires_grad_()
    (gradient,) = torch.autograd.grad(interference(merged), merged)
    assert float(gradient.abs().max()) < 1e-12
    assert interference(merged) < interference(sum(given))


def test_fewer_rows_than_task_vectors_are_averaged():
    given = vectors(3, (2, 5))
    torch.testing.assert_close(task_matrices.task_singular_vectors(given), sum(given) / 3)


@pytest.mark.parametrize("combine", COMBINED)
def test_outputs_in_another_order_are_merged_in_that_order_though_ranks_are_low(combine):
    given = [each[:, :2] @ each[:2] for each in vectors(2, (12, 12))]
    order = torch.randperm(12, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(combine([each[order] for each in given]), combine(given)[order])


def test_a_task_vector_of_zeros_leaves_the_leading_triples_of_the_other():
    (one,) = vectors(1, (8, 6))
    left, values, right = torch.linalg.svd(one, full_matrices=False)
    merged = task_matrices.task_singular_vectors([one, torch.zeros_like(one)])
    torch.testing.assert_close(merged, left[:, :3] * values[:3] @ right[:3])


@pytest.mark.parametrize("combine", COMBINED)
def test_task_vectors_that_are_zeros_are_merged_into_zeros(combine):
    assert not combine([torch.zeros(4, 3).double()] * 2, [1e-7, 1e-7]).any()


@pytest.mark.parametrize("combine", COMBINED)
def test_rounding_changes_nothing_of_task_vectors_of_full_rank(combine):
    given = vectors(2, (40, 30))
    assert torch.equal(combine(given, [1e-6, 1e-6]), combine(given))


def adapters(*, shared, shape=(48, 40), rank=3):
    """Two of small products, which have the same factor of the inputs if it is shared."""
    generator = torch.Generator().manual_seed(5)
    outputs = [torch.randn(shape[0], rank, generator=generator) for _ in range(2)]
    inputs = [torch.randn(rank, shape[1], generator=generator) for _ in range(2)]
    return [LowRank(left, inputs[0 if shared else index], 1e-2) for index, left in enumerate(outputs)]


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_adapters_have_the_same_merge_on_every_base(method, shared):
    base = torch.randn((48, 40), generator=torch.Generator().manual_seed(6))

    def vector(weights):
        models = [AdaptedTensors({NAME: weights}, {NAME: Change(product=each)}) for each in adapters(shared=shared)]
        return merge_state_dicts(method, models, {NAME: weights}, {"lambda": 1.0})[NAME].double() - weights.double()

    plain, doubled, zeros = vector(base), vector(2 * base), vector(0 * base)
    assert float((plain - doubled).norm()) < 1e-4 * float(plain.norm())
    assert float((plain - zeros).norm()) < 1e-4 * float(plain.norm())


def stored(*vectors, dtype, scale=2e-2):
    """A base in float32 whose numbers have a place in the dtype, and models with task vectors, rounded to it."""
    base = (torch.randn(vectors[0].shape, generator=torch.Generator().manual_seed(7)) * scale).to(dtype).float()
    return {NAME: base}, [{NAME: (base + vector).to(dtype)} for vector in vectors]


@pytest.mark.parametrize(("dtype", "scale"), [(torch.bfloat16, 2e-2), (torch.float16, 2e-2), (torch.float16, 2e-5)])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_merged_adapters_that_were_stored_in_few_bits_have_the_merge_of_the_adapters(method, shared, dtype, scale):
    exact = [scale * (each.left.double() @ each.right.double()) for each in adapters(shared=shared)]
    base, rounded = stored(*exact, dtype=dtype, scale=scale)
    models = [{NAME: base[NAME] + vector} for vector in exact]
    expected, merged = (merge_state_dicts(method, each, base)[NAME].double() - base[NAME] for each in (models, rounded))
    assert float((merged - expected).norm()) < 2e-2 * float(expected.norm())


@pytest.mark.parametrize("changed", [1.0, 0.1])
@pytest.mark.parametrize(("method", "combine"), [*zip(METHODS, COMBINED, strict=True)])
def test_all_directions_count_of_full_fine_tunes_that_were_stored_in_few_bits(method, combine, changed):
    def fine_tuned(seed):
        generator = torch.Generator().manual_seed(seed)
        kept = torch.rand(128, 96, generator=generator) < changed
        return torch.randn(128, 96, generator=generator) * 2e-4 * kept

    base, rounded = stored(fine_tuned(1), fine_tuned(2), dtype=torch.bfloat16)
    vectors = [model[NAME].double() - base[NAME].double() for model in rounded]
    merged = merge_state_dicts(method, rounded, base)[NAME]
    torch.testing.assert_close(merged, (base[NAME] + combine(vectors)).float())


def models(count=2):
    generator = torch.Generator().manual_seed(1)
    shapes = {NAME: (6, 5), "model.embed_tokens.weight": (9, 5), "model.norm.weight": (5,)}
    base = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return base, [
        {name: each + 0.1 * torch.randn(each.shape, generator=generator) for name, each in base.items()}
        for _ in range(count)
    ]


@pytest.mark.parametrize("method", METHODS)
def test_what_is_no_linear_weight_is_the_mean_and_all_is_times_lambda(method):
    base, sources = models()
    whole, half = (merge_state_dicts(method, sources, base, {"lambda": factor}) for factor in (1.0, 0.5))
    for name in ("model.embed_tokens.weight", "model.norm.weight"):
        torch.testing.assert_close(whole[name], (sources[0][name] + sources[1][name]) / 2)
    for name in base:
        torch.testing.assert_close(half[name] - base[name], (whole[name] - base[name]) / 2)
    assert not torch.allclose(whole[NAME], (sources[0][NAME] + sources[1][NAME]) / 2)


@pytest.mark.parametrize("method", METHODS)
def test_an_embedding_is_none_by_another_of_its_names(method):
    base, sources = models()
    for model in (base, *sources):
        model["a.proj.weight"] = model["model.embed_tokens.weight"]
    merged = merge_state_dicts(method, sources, base, {"lambda": 1.0})
    torch.testing.assert_close(merged["a.proj.weight"], (sources[0]["a.proj.weight"] + sources[1]["a.proj.weight"]) / 2)


@pytest.mark.parametrize("method", METHODS)
def test_a_worker_decomposes_once_for_all_candidates(method, monkeypatch):
    base, sources = models()
    calls = []
    monkeypatch.setattr(
        task_matrices, "decompose", lambda matrix, real=task_matrices.decompose: (calls.append(1), real(matrix))[1]
    )
    cache = {}

    def candidate(factor):
        tensors = RuleTensors(
            names=tuple(sorted(base)),
            base=base,
            sources=tuple(sources),
            parameters=resolve_parameters(method, {"lambda": factor}, 2),
            options=resolve_options(method, {}),
            cache=cache,
        )
        return dict(merge_rule(method, tensors))

    candidate(1.0)
    first = len(calls)
    assert first > 0
    merged = candidate(0.7)
    assert len(calls) == first
    expected = merge_state_dicts(method, sources, base, {"lambda": 0.7})
    assert all(torch.equal(merged[name], expected[name]) for name in base)


@pytest.mark.parametrize("name", ["tsv-m", "iso-c", "wudi"])
def test_their_spaces_search_one_factor(name):
    ((method, chosen),) = load_space(name).methods.items()
    assert method.replace("_", "-") == name
    assert list(chosen.parameters) == ["lambda"]

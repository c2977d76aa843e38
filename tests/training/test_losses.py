"""The losses of DAM against their definitions, written out element by element."""

from __future__ import annotations

import math

import pytest
import torch

from evomerge.training.dam import (
    entropy_loss,
    kl_loss,
    l1_l2,
    merged_weight,
    mse_loss,
    overlap,
    similarity,
    weighted_overlap,
)
from evomerge.training.predictions import entropy_by_position, kl_by_position

B, L, V = 2, 3, 5
MASK = torch.tensor([[1, 1, 1], [1, 0, 0]])
N = 4


def logits(seed):
    return 3 * torch.randn(B, L, V, generator=torch.Generator().manual_seed(seed))


def probabilities(row, temperature):
    exponentials = [math.exp(float(x) / temperature) for x in row]
    return [x / sum(exponentials) for x in exponentials]


def counted():
    return [(b, position) for b in range(B) for position in range(L) if MASK[b, position]]


@pytest.mark.parametrize(("kl_norm", "divisor"), [("tokens_and_batch", N * B), ("tokens", N)])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_kl_is_summed_over_counted_positions(kl_norm, divisor, temperature):
    student, teacher = logits(0), logits(1)
    total = 0.0
    for place in counted():
        p, q = probabilities(teacher[place], temperature), probabilities(student[place], temperature)
        total += sum(x * math.log(x / y) for x, y in zip(p, q, strict=True))
    found = kl_loss(student, teacher, MASK, temperature=temperature, kl_norm=kl_norm)
    assert float(found) == pytest.approx(temperature**2 * total / divisor, rel=1e-5)


def test_kl_is_zero_only_between_equals():
    assert float(kl_loss(logits(0), logits(0) + 1.0, MASK)) == pytest.approx(0, abs=1e-6)
    assert float(kl_loss(logits(0), logits(1), MASK)) > 0.1


def without_one_class(rows):
    """Predictions that rule out the first class."""
    return torch.cat([torch.full_like(rows[..., :1], -torch.inf), rows[..., 1:]], -1)


@pytest.mark.parametrize("loss", ["kl", "entropy"])
def test_a_class_that_cannot_be_adds_nothing_and_has_no_gradient(loss):
    student, teacher = logits(0), logits(1)

    def value_of(given, target):
        return kl_loss(given, target, MASK) if loss == "kl" else entropy_loss(given, MASK)

    ruled_out = without_one_class(student).requires_grad_()
    value = value_of(ruled_out, without_one_class(teacher))
    (gradient,) = torch.autograd.grad(value, ruled_out)
    assert float(value.detach()) == pytest.approx(float(value_of(student[..., 1:], teacher[..., 1:])), rel=1e-6)
    assert gradient.isfinite().all()
    assert not gradient[..., 0].any()


def test_a_class_that_the_teacher_alone_rules_out_adds_nothing_and_the_reverse_is_infinite():
    student, teacher = logits(0), logits(1)
    total = 0.0
    for place in counted():
        p, q = probabilities(teacher[place][1:], 1.0), probabilities(student[place], 1.0)[1:]
        total += sum(x * math.log(x / y) for x, y in zip(p, q, strict=True))
    assert float(kl_loss(student, without_one_class(teacher), MASK, 1.0, "tokens")) == pytest.approx(total / N)
    assert float(kl_loss(without_one_class(student), teacher, MASK)) == math.inf


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_finite_logits_keep_the_bits_of_the_plain_formulas(temperature):
    student, teacher = logits(0), logits(1)
    scores = [torch.log_softmax(each / temperature, -1) for each in (student, teacher)]
    assert torch.equal(entropy_by_position(student, temperature), -(scores[0].exp() * scores[0]).sum(-1))
    plain = (scores[1].exp() * (scores[1] - scores[0])).sum(-1)
    assert torch.equal(kl_by_position(student, teacher, temperature), plain)


def test_mse_is_the_mean_over_the_vocabulary_summed_over_positions():
    student, teacher = logits(0), logits(1)
    total = sum(
        sum(float(x - y) ** 2 for x, y in zip(student[place], teacher[place], strict=True)) / V for place in counted()
    )
    assert float(mse_loss(student, teacher, MASK)) == pytest.approx(total / N, rel=1e-5)


def test_entropy_is_that_of_the_merge():
    student = logits(0)
    total = sum(-sum(x * math.log(x) for x in probabilities(student[place], 2.0)) for place in counted())
    assert float(entropy_loss(student, MASK)) == pytest.approx(0.1 * 4 * total / N, rel=1e-5)


@pytest.mark.parametrize("loss", [lambda s, t: kl_loss(s, t, MASK), lambda s, t: mse_loss(s, t, MASK)])
def test_padding_counts_nothing_whatever_stands_there(loss):
    student, teacher = logits(0), logits(1)
    expected = loss(student, teacher)
    student[1, 1:], teacher[1, 1:] = math.inf, math.nan
    assert torch.equal(loss(student, teacher), expected)
    student.requires_grad_(True)
    loss(student, teacher).backward()
    assert bool((student.grad[1, 1:] == 0).all())
    assert bool(student.grad.isfinite().all())


def test_where_nothing_counts_the_loss_is_zero():
    nothing = torch.zeros(B, L)
    assert float(kl_loss(logits(0), logits(1), nothing)) == 0
    assert float(mse_loss(logits(0), logits(1), nothing)) == 0
    assert float(entropy_loss(logits(0), nothing)) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_widened_first(dtype):
    student, teacher = logits(0).to(dtype), logits(1).to(dtype)
    found = kl_loss(student, teacher, MASK)
    assert found.dtype == torch.float32
    assert torch.equal(found, kl_loss(student.float(), teacher.float(), MASK))


TWO_MODULES = [torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, -2.0]]), torch.tensor([[3.0], [-4.0], [0.5]])]


def test_similarity_is_the_mean_cosine_over_pairs_summed_over_modules():
    root = math.sqrt(0.5)
    first = (root + 0.0 - root) / 3
    second = (-1.0 + 1.0 - 1.0) / 3
    assert float(similarity(TWO_MODULES[0])) == pytest.approx(0.01 * first, abs=1e-8)
    assert float(similarity(TWO_MODULES, weight=1.0)) == pytest.approx(first + second, abs=1e-6)
    assert float(similarity(torch.full((3, 4), 1 / 3), weight=1.0)) == pytest.approx(1)


def test_the_gradient_of_similarity_vanishes_at_uniform_coefficients():
    uniform = torch.full((3, 4), 1 / 3, requires_grad=True)
    similarity(uniform, weight=1.0).backward()
    torch.testing.assert_close(uniform.grad, torch.zeros(3, 4), atol=1e-6, rtol=0)


def test_one_source_has_no_pairs():
    assert float(similarity(torch.ones(1, 4))) == float(overlap(torch.ones(1, 4))) == 0


def test_overlap_is_what_two_sources_share():
    first = (min(1, 1) + min(0, 1) + min(1, 0) + min(0, 2) + min(1, 0) + min(1, 2)) / 3
    second = (3 + 0.5 + 0.5) / 3
    assert float(overlap(TWO_MODULES)) == pytest.approx(1e-5 * (first + second))


@pytest.mark.parametrize(
    ("degrees", "factor"), [(0, 0.0), (45, 1.0), (90, 0.0), (180, 0.0), (30, 0.75), (135, 1.0)]
)  # fmt: skip
def test_weighted_overlap_weighs_a_column_by_the_angle_of_its_task_vectors(degrees, factor):
    angle = math.radians(degrees)
    one = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
    two = torch.tensor([[math.cos(angle), 1.0], [math.sin(angle), 1.0]])  # the second column is of zeros in `one`
    coefficients = torch.tensor([[0.5, 0.5], [-0.25, 0.5]])
    found = weighted_overlap(coefficients, [one, two], weight=1.0)
    assert float(found) == pytest.approx(0.25 * factor, abs=1e-6)
    assert float(weighted_overlap([coefficients] * 2, [[one, two]] * 2)) == pytest.approx(0.5e-5 * factor, abs=1e-10)


def test_l1_l2_does_not_square_the_second_norm():
    module = torch.tensor([[3.0, -4.0], [0.0, 0.0]], requires_grad=True)
    found = l1_l2(module)
    assert float(found.detach()) == pytest.approx(1e-6 * 7 + 1e-6 * 5)
    found.backward()
    assert bool(module.grad.isfinite().all())
    assert float(l1_l2([module.detach()] * 2, l1=1.0, l2=0.0)) == 14


@pytest.mark.parametrize("phi", ["identity", "tanh", "sigmoid", "relu"])
def test_a_merged_weight_scales_columns(phi):
    weights = [torch.randn(3, 2, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
    coefficients = torch.tensor([[0.5, -1.0], [0.25, 2.0]])
    value = {
        "identity": lambda c: c,
        "tanh": math.tanh,
        "sigmoid": lambda c: 1 / (1 + math.exp(-c)),
        "relu": lambda c: max(c, 0.0),
    }[phi]
    found = merged_weight(weights, coefficients, phi)
    for row in range(3):
        for column in range(2):
            expected = sum(float(weights[i][row, column]) * value(float(coefficients[i, column])) for i in range(2))
            assert float(found[row, column]) == pytest.approx(expected, rel=1e-5, abs=1e-6)

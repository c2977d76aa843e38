"""AdaMerging's loss and steps: hand-worked values, the gradient by finite differences and by autograd, bad input."""

from __future__ import annotations

import math

import pytest
import torch

from evomerge.errors import InvalidInput, MergeError
from evomerge.training.adamerging import entropy_loss, train_coefficients


def problem(dtype=torch.float64):
    """A base and two task vectors of a classifier with two tensors, and its entropy on fixed inputs."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    base = {"body": drawn(4, 3).to(dtype), "head": drawn(2, 4).to(dtype), "steps": torch.tensor(7)}
    vectors = [{"body": drawn(4, 3).to(dtype), "head": drawn(2, 4).to(dtype)} for _ in range(2)]
    inputs = drawn(8, 3).to(dtype)

    def loss(tensors):
        return entropy_loss(torch.tanh(inputs @ tensors["body"].T) @ tensors["head"].T)

    return base, vectors, loss


def merged(base, vectors, coefficients, clamp=True):
    """theta_0 + sum_i lambda_i tau_i, plainly; one list of coefficients for all tensors, or one per tensor."""
    result = {}
    for name in vectors[0]:
        factors = coefficients.get(name, coefficients.get("all"))
        factors = [min(1.0, max(0.0, factor)) if clamp else factor for factor in factors]
        result[name] = base[name] + sum(factor * tau[name] for factor, tau in zip(factors, vectors, strict=True))
    return result


def test_the_entropy_of_equal_logits_is_the_logarithm_of_their_number():
    assert float(entropy_loss(torch.zeros(2, 3, 5))) == pytest.approx(math.log(5))


def test_the_entropy_is_the_mean_over_all_leading_dimensions_in_nats():
    p = torch.tensor([[[0.5, 0.25, 0.25], [1.0, 1e-30, 1e-30]]])
    expected = (0.5 * math.log(2) + 0.5 * math.log(4)) / 2
    assert float(entropy_loss(p.log())) == pytest.approx(expected)
    assert float(entropy_loss(p[0, 0].log())) == pytest.approx(2 * expected)


def test_an_impossible_class_adds_nothing_and_has_no_gradient():
    logits = torch.tensor([0.0, 0.0, -math.inf], requires_grad=True)
    entropy = entropy_loss(logits)
    entropy.backward()
    assert float(entropy.detach()) == pytest.approx(math.log(2))
    torch.testing.assert_close(logits.grad, torch.zeros(3))


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_the_entropy_is_a_scalar_of_at_least_float32(dtype, expected):
    entropy = entropy_loss(torch.randn(3, 4).to(dtype))
    assert (entropy.dtype, entropy.shape) == (expected, ())


@pytest.mark.parametrize("logits", [torch.tensor(1.0), torch.zeros(0, 3), torch.tensor([1, 2]), [1.0, 2.0]])
def test_what_is_no_logits_has_no_entropy(logits):
    with pytest.raises(InvalidInput, match="logits"):
        entropy_loss(logits)


@pytest.mark.parametrize("granularity", ["tensor", "task"])
def test_the_gradient_is_the_finite_difference_of_the_loss(granularity):
    base, vectors, loss = problem()
    steps = list(train_coefficients(base, vectors, loss, granularity=granularity, learning_rate=0.05, steps=3))
    before = {key: [0.3, 0.3] for key in steps[0].coefficients}
    for step in steps:
        assert step.loss == pytest.approx(float(loss(merged(base, vectors, before))))
        for key, gradient in step.gradient.items():
            for source in range(2):
                shifted = [
                    {**before, key: [value + (shift if i == source else 0) for i, value in enumerate(before[key])]}
                    for shift in (1e-6, -1e-6)
                ]
                high, low = (float(loss(merged(base, vectors, each))) for each in shifted)
                assert float(gradient[source]) == pytest.approx((high - low) / 2e-6, rel=1e-5, abs=1e-9)
        before = {key: value.tolist() for key, value in step.coefficients.items()}
    assert set(before) == ({"body", "head"} if granularity == "tensor" else {"all"})


@pytest.mark.parametrize("granularity", ["tensor", "task"])
@pytest.mark.parametrize("clamp", [True, False])
@pytest.mark.parametrize("initial", [0.3, 0.98, -0.02])
def test_the_steps_are_those_of_adam_on_a_merge_that_is_differentiated(granularity, clamp, initial):
    """With a large learning rate some coefficients leave [0, 1] on the way, and come back or stay."""
    base, vectors, loss = problem()
    keys = ["body", "head"] if granularity == "tensor" else ["all"]
    raw = {key: torch.full((2,), initial, dtype=torch.float64, requires_grad=True) for key in keys}
    adam = torch.optim.Adam(raw.values(), lr=0.1)
    found = train_coefficients(
        base, vectors, loss, granularity=granularity, initial=initial, learning_rate=0.1, clamp=clamp, steps=12
    )
    for number, step in enumerate(found, start=1):
        adam.zero_grad()
        tensors = {}
        for name in vectors[0]:
            factors = raw[name if granularity == "tensor" else "all"]
            factors = factors.clamp(0, 1) if clamp else factors
            tensors[name] = base[name] + factors[0] * vectors[0][name] + factors[1] * vectors[1][name]
        expected = loss(tensors)
        expected.backward()
        assert step.step == number
        assert step.loss == pytest.approx(float(expected.detach()), rel=1e-12)
        torch.testing.assert_close(step.gradient, {key: value.grad for key, value in raw.items()})
        adam.step()
        torch.testing.assert_close(step.coefficients, {key: value.detach() for key, value in raw.items()})
    assert number == 12


def test_a_coefficient_outside_of_the_clamp_has_no_gradient():
    base, vectors, loss = problem()
    high, low, free = (
        next(train_coefficients(base, vectors, loss, initial=initial, clamp=clamp, steps=1))
        for initial, clamp in ((1.5, True), (-0.5, True), (1.5, False))
    )
    assert not any(gradient.any() for step in (high, low) for gradient in step.gradient.values())
    assert all(gradient.all() for gradient in free.gradient.values())


def test_the_loss_is_called_once_per_step_with_all_tensors_of_the_base():
    base, vectors, loss = problem(torch.bfloat16)
    seen = []

    def watched(tensors):
        seen.append({name: tensor.dtype for name, tensor in tensors.items()})
        assert torch.equal(tensors["steps"], base["steps"])
        return loss(tensors)

    before = {name: tensor.clone() for name, tensor in base.items()}
    steps = list(train_coefficients(base, vectors, watched, steps=4))
    assert len(steps) == len(seen) == 4
    assert seen[0] == {name: tensor.dtype for name, tensor in base.items()}
    assert all(torch.equal(before[name], base[name]) for name in base)
    assert steps[-1].coefficients["body"].dtype == torch.float32


def test_a_tensor_that_the_loss_does_not_use_keeps_its_coefficients():
    base, vectors, _ = problem()
    *_, last = train_coefficients(base, vectors, lambda tensors: tensors["body"].square().mean(), steps=5)
    assert last.coefficients["head"].tolist() == [0.3, 0.3]
    assert last.coefficients["body"].tolist() != [0.3, 0.3]


def test_steps_do_not_share_memory():
    base, vectors, loss = problem()
    first, second = train_coefficients(base, vectors, loss, steps=2, learning_rate=0.1)
    assert not torch.equal(first.coefficients["body"], second.coefficients["body"])
    assert not torch.equal(first.gradient["body"], second.gradient["body"])


def test_entropy_falls():
    base, vectors, loss = problem()
    steps = list(train_coefficients(base, vectors, loss, learning_rate=0.02, steps=40))
    assert steps[-1].loss < steps[0].loss


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"granularity": "layer"}, "unknown granularity"),
        ({"initial": math.nan}, "initial must be a finite number"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"steps": 0}, "steps must be"),
        ({"steps": 1.5}, "steps must be"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_the_first_step(changes, message):
    base, vectors, loss = problem()
    with pytest.raises(InvalidInput, match=message):
        train_coefficients(base, vectors, loss, **changes)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda base, vectors: vectors.clear(), "at least one"),
        (lambda base, vectors: vectors[1].pop("head"), "task vector 1 lacks .*head"),
        (lambda base, vectors: vectors[1].update(tail=torch.ones(1)), "the base lacks: tail"),
        (lambda base, vectors: vectors[1].update(head=torch.ones(3)), r"\[3\] for tensor 'head'"),
        (lambda base, vectors: base.clear(), "nothing to merge"),
    ],
)
def test_task_vectors_that_do_not_fit_the_base_are_refused(spoil, message):
    base, vectors, loss = problem()
    spoil(base, vectors)
    with pytest.raises(InvalidInput, match=message):
        train_coefficients(base, vectors, loss)


@pytest.mark.parametrize(
    ("loss", "error", "message"),
    [
        (lambda tensors: 1.0, InvalidInput, "is a float"),
        (lambda tensors: tensors["body"], InvalidInput, "one floating-point number"),
        (lambda tensors: tensors["body"].detach().mean(), InvalidInput, "cannot be differentiated"),
        (lambda tensors: tensors["body"].mean() * math.nan, MergeError, "the loss is nan"),
        (lambda tensors: (tensors["body"] * 0).sqrt().mean(), MergeError, "a gradient"),
    ],
)
def test_a_loss_that_cannot_be_followed_is_refused(loss, error, message):
    base, vectors, _ = problem()
    with pytest.raises(error, match=message):
        next(train_coefficients(base, vectors, loss))

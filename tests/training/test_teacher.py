"""What is kept of a teacher: the largest probabilities and the rest, which together are 1."""

from __future__ import annotations

import pytest
import torch

from evomerge.training import DamSettings
from evomerge.training.dam_training import _Training
from evomerge.training.predictions import kl_by_position
from evomerge.training.teacher import top_k_targets

V = 12
WHOLE = slice(0, 4)


def logits(seed, scale=3.0):
    return scale * torch.randn(4, V, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("k", [1, 3, V - 1, V, 128])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_top_k_and_rest_sum_to_one(k, temperature):
    kept = top_k_targets(logits(0), k, temperature)
    total = kept.log_probabilities.exp().sum(-1) + kept.log_rest.exp()
    torch.testing.assert_close(total, torch.ones(4))


@pytest.mark.parametrize("k", [V, 128])
def test_with_the_whole_vocabulary_it_is_the_full_kl(k):
    student = logits(1).requires_grad_()
    found = top_k_targets(logits(0), k, 2.0).kl(student, WHOLE, 2.0)
    torch.testing.assert_close(found, kl_by_position(student, logits(0), 2.0))
    found.sum().backward()
    assert bool(student.grad.isfinite().all())


def test_fewer_outcomes_never_give_a_larger_kl_and_the_rest_counts():
    full = kl_by_position(logits(1), logits(0), 2.0)
    previous = torch.zeros(4)
    for k in range(1, V + 1):
        found = top_k_targets(logits(0), k, 2.0).kl(logits(1), WHOLE, 2.0)
        assert bool((found >= previous - 1e-6).all())
        assert bool((found <= full + 1e-6).all())
        previous = found
    same = top_k_targets(logits(0), 2, 2.0).kl(logits(0), WHOLE, 2.0)
    torch.testing.assert_close(same, torch.zeros(4), atol=1e-6, rtol=0)


def test_a_tiny_rest_keeps_its_precision_and_its_gradient_is_finite():
    teacher = torch.zeros(1, V)
    teacher[0, 0] = 40.0
    teacher[0, 1] = 39.0
    kept = top_k_targets(teacher, 2, 1.0)
    expected = torch.softmax(teacher.double(), -1)[0, 2:].sum().log()
    assert float(kept.log_rest) == pytest.approx(float(expected), rel=1e-5)
    student = teacher.clone().requires_grad_()
    kept.kl(student, slice(0, 1), 1.0).sum().backward()
    assert bool(student.grad.isfinite().all())


def test_classes_that_cannot_be_are_among_the_kept_ones_without_harm():
    student, teacher = (torch.randn(3, V, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    teacher[:, 3:] = student[:, 3:] = -torch.inf
    found = top_k_targets(teacher, 5, 1.0).kl(student, slice(0, 3), 1.0)
    assert torch.allclose(found, kl_by_position(student[:, :3], teacher[:, :3], 1.0), atol=1e-6)


def test_a_part_of_the_positions_is_compared_alone():
    kept = top_k_targets(logits(0), 3, 2.0)
    whole = kept.kl(logits(1), WHOLE, 2.0)
    assert torch.equal(kept.kl(logits(1)[1:3], slice(1, 3), 2.0), whole[1:3])


def test_cached_targets_are_held_until_the_last_step_that_reads_them(family):
    built = family()
    settings = DamSettings(steps=8, batch_size=2, teacher="cached")
    training = _Training(built.inputs(), settings)
    steps = [training.calibration.step(number) for number in range(settings.steps)]
    keys = [{(source, text) for source, texts in step.items() for text in texts} for step in steps]
    for number in range(settings.steps):
        training.step()
        read, still = set().union(*keys[: number + 1]), set().union(*keys[number + 1 :])
        assert training._teachers._cached.keys() == read & still
    assert read
    assert not still

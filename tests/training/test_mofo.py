"""The optimiser: AdamW where nothing is filtered, and only the largest momenta move where it is."""

from __future__ import annotations

import pytest
import torch

from evomerge.optimisation.mofo import Mofo, clip_gradients


def gradients(step):
    generator = torch.Generator().manual_seed(step)
    return {"vector": torch.randn(3, 10, generator=generator), "scalar": torch.randn(3, generator=generator)}


def values():
    return {name: value + 1 for name, value in gradients(100).items()}


def test_without_alpha_it_is_adamw_as_torch_has_it():
    mine, theirs = values(), {name: value.requires_grad_() for name, value in values().items()}
    optimizer = Mofo(mine, learning_rate=0.01, alpha=None, weight_decay=0.1)
    reference = torch.optim.AdamW(theirs.values(), lr=0.01, weight_decay=0.1)
    for step in range(5):
        optimizer.step(gradients(step))
        for name, gradient in gradients(step).items():
            theirs[name].grad = gradient
        reference.step()
    for name in mine:
        torch.testing.assert_close(mine[name], theirs[name].detach())


def test_only_the_entries_with_the_largest_momentum_of_each_source_move():
    moved = values()
    optimizer = Mofo(moved, learning_rate=0.01, alpha=0.3, weight_decay=0.0)
    for step in range(3):
        before = moved["vector"].clone()
        optimizer.step(gradients(step))
        changed = moved["vector"] != before
        largest = optimizer.first["vector"].abs().topk(3, dim=1).indices
        assert changed.sum(1).tolist() == [3, 3, 3]
        assert bool(changed.gather(1, largest).all())


def test_moments_are_updated_everywhere_and_so_equal_those_of_adam():
    filtered = Mofo(values(), learning_rate=0.01, alpha=0.3, weight_decay=0.0)
    plain = Mofo(values(), learning_rate=0.01, alpha=None, weight_decay=0.0)
    for step in range(3):
        filtered.step(gradients(step))
        plain.step(gradients(step))
    for name in filtered.first:
        assert torch.equal(filtered.first[name], plain.first[name])
        assert torch.equal(filtered.second[name], plain.second[name])


def test_vectors_of_one_element_move_as_under_plain_adam():
    filtered, plain = values(), values()
    first = Mofo(filtered, learning_rate=0.01, alpha=0.1, weight_decay=0.0)
    second = Mofo(plain, learning_rate=0.01, alpha=None, weight_decay=0.0)
    first.step(gradients(0))
    second.step(gradients(0))
    assert torch.equal(filtered["scalar"], plain["scalar"])
    assert not torch.equal(filtered["vector"], plain["vector"])


def test_at_least_one_entry_moves_and_shapes_with_rows_are_vectors_too():
    moved = {"conv": torch.ones(2, 4, 1)}
    Mofo(moved, learning_rate=0.01, alpha=0.01, weight_decay=0.0).step({"conv": torch.arange(8.0).reshape(2, 4, 1)})
    assert (moved["conv"] != 1).flatten(1).sum(1).tolist() == [1, 1]


def test_weight_decay_applies_to_every_entry():
    moved = {"vector": torch.ones(2, 10)}
    Mofo(moved, learning_rate=0.1, alpha=0.3, weight_decay=0.5).step({"vector": torch.zeros(2, 10)})
    torch.testing.assert_close(moved["vector"], torch.full((2, 10), 0.95))


@pytest.mark.parametrize(("largest", "expected"), [(1.0, 1.0), (100.0, 5.0)])
def test_the_global_norm_is_clipped(largest, expected):
    given = {"a": torch.tensor([3.0]), "b": torch.tensor([[4.0]])}
    assert float(clip_gradients(given, largest)) == 5
    norm = torch.sqrt(given["a"].square().sum() + given["b"].square().sum())
    assert float(norm) == pytest.approx(expected, rel=1e-5)

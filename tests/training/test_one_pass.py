"""The trainers with compiled loops: the merges and gradients that they have without."""

from __future__ import annotations

import pytest
import torch

from evomerge.native import weighted_vectors
from tests.training.learned_family import settings_of, train

STORED = [("float32", None), ("float32", "bfloat16"), ("bfloat16", "bfloat16")]


@pytest.fixture
def covered(monkeypatch):
    """Says how many tensors the loops took so far."""
    found = []
    inner = weighted_vectors.share
    monkeypatch.setattr(weighted_vectors, "share", lambda *given, **named: found.append(1) or inner(*given, **named))
    return lambda: len(found)


@pytest.mark.parametrize(("dtype", "stored"), STORED)
@pytest.mark.parametrize("granularity", ["tensor", "column"])
@pytest.mark.parametrize("kind", ["llama_tied", "gpt2"])
def test_a_learned_step_is_that_of_the_operations(family, monkeypatch, covered, kind, granularity, dtype, stored):
    def slopes():
        built = family(kind, dtype, stored)
        caught = []
        monkeypatch.setattr("evomerge.optimisation.mofo.Mofo.step", lambda self, given: caught.append(given))
        train(built, settings=settings_of(built, granularity, steps=1))
        return caught[0], {name: tensor.detach().clone() for name, tensor in built.live.items()}

    found, written = slopes()
    count = covered()
    assert count >= 2 * len(written)
    monkeypatch.setattr(weighted_vectors, "_compiled", lambda: None)
    expected, plain = slopes()
    assert covered() == count
    assert all(torch.equal(written[name], plain[name]) for name in plain)
    for key, slope in expected.items():
        torch.testing.assert_close(found[key], slope, rtol=1e-5, atol=1e-5 * float(slope.abs().max()))


def test_a_step_of_dam_is_that_of_the_operations(family, monkeypatch, covered):
    def trained():
        built = family("gpt2")
        built.train(steps=1, trainable=["linear", "bias", "norm", "embedding"])
        return {name: tensor.detach().clone() for name, tensor in built.live.items()}

    found = trained()
    assert covered() >= 2 * len(found)
    monkeypatch.setattr(weighted_vectors, "_compiled", lambda: None)
    for name, tensor in trained().items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-5)

"""Inner products of task vectors: worked by hand, and the same bits however they are computed."""

import pytest
import torch

from evomerge.errors import InvalidInput
from evomerge.statistics.products import task_vector_products
from evomerge.tensors import rule_tensors

BASE = {"w": torch.tensor([[1.0, 1.0], [1.0, 1.0]]), "b": torch.tensor([0.0])}
SOURCES = [
    {"w": torch.tensor([[2.0, 1.0], [1.0, 3.0]]), "b": torch.tensor([0.0])},
    {"w": torch.tensor([[1.0, 0.0], [1.0, 2.0]]), "b": torch.tensor([-4.0])},
]


def test_they_are_those_of_source_minus_base():
    assert task_vector_products(BASE, SOURCES, ["w", "b"]) == {
        "w": ((5.0, 2.0), (2.0, 2.0)),
        "b": ((0.0, 0.0), (0.0, 16.0)),
    }


def test_neither_the_number_of_threads_nor_the_pieces_of_others_change_a_bit(monkeypatch):
    generator = torch.Generator().manual_seed(3)
    models = [{"w": torch.randn(301, 97, generator=generator)} for _ in range(4)]
    found, threads = [], torch.get_num_threads()
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            found.append(task_vector_products(models[0], models[1:], ["w"])["w"])
    finally:
        torch.set_num_threads(threads)
    assert found[0] == found[1]
    vectors = torch.stack([(model["w"] - models[0]["w"]).double().reshape(-1) for model in models[1:]])
    assert torch.allclose(torch.tensor(found[0], dtype=torch.float64), vectors @ vectors.T, rtol=1e-12)
    monkeypatch.setattr(rule_tensors, "CPU_PIECE", 1000)
    in_pieces = task_vector_products(models[0], models[1:], ["w"])["w"]
    assert torch.allclose(torch.tensor(in_pieces), torch.tensor(found[0]), rtol=1e-12)


def test_a_task_vector_that_is_not_finite_is_refused():
    broken = [SOURCES[0], {**SOURCES[1], "b": torch.tensor([torch.inf])}]
    with pytest.raises(InvalidInput, match="not finite in tensor 'b'"):
        task_vector_products(BASE, broken, ["w", "b"])

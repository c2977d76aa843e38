"""Norms of masked task vectors: those of adding up what the definitions leave, to the bit."""

from __future__ import annotations

import pytest
import torch

from evomerge.merging import RuleTensors
from evomerge.merging.della import RankedDrop, RankedDropping
from evomerge.methods import resolve_options, resolve_parameters
from evomerge.native import masked_norms
from evomerge.native.compiled_loops import compiled_library
from evomerge.tensors import rule_tensors, vector_norms
from evomerge.tensors.dropping import Drop, Dropping
from evomerge.tensors.masks import mask_key
from evomerge.tensors.sums import ordered_sum
from evomerge.tensors.task_vectors import TaskVectors
from evomerge.tensors.vector_norms import Mask, masked_vector_norm, whole_norm

SHAPES = {"embed": (700, 301), "row": (1, 40_000), "few": (3, 5), "one": (), "bias": (131_071,)}
DTYPES = [(torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16), (torch.bfloat16, torch.float32)]
UNCOVERED = [(torch.float16, torch.float16), (torch.float64, torch.float32)]


def rule(dtypes, method="dare_linear", **given):
    generator = torch.Generator().manual_seed(3)
    base = {name: torch.randn(shape, generator=generator) * 0.02 for name, shape in SHAPES.items()}
    source = {name: tensor + torch.randn(tensor.shape, generator=generator) * 0.002 for name, tensor in base.items()}
    return RuleTensors(
        names=tuple(SHAPES),
        base={name: tensor.to(dtypes[0]) for name, tensor in base.items()},
        sources=[{name: tensor.to(dtypes[1]) for name, tensor in source.items()}],
        parameters=resolve_parameters(method, given, 1),
        options=resolve_options(method, {"rescale": "l1_match"}),
        seed=5,
    )


def added_up(tensors, name, change):
    return ordered_sum(piece.abs() for piece in TaskVectors(tensors, lambda source, name: change).pieces(0, name))


@pytest.mark.usefixtures("torch_threads")
@pytest.mark.parametrize("piece", [7, 1000, 1 << 17])
@pytest.mark.parametrize("dtypes", [*DTYPES, *UNCOVERED])
def test_norms_are_the_sums_of_what_the_definitions_leave(dtypes, piece, monkeypatch):
    monkeypatch.setattr(rule_tensors, "CPU_PIECE", piece)
    compiled_library(masked_norms.SOURCE)
    tensors = rule(dtypes)
    for name in SHAPES if piece > 7 else ("few", "one"):
        assert whole_norm(tensors, 0, name) == added_up(tensors, name, None)
        for rate in (0.0, 0.3, 0.999):
            drop = Drop(mask_key(5, 0, name), rate)
            assert masked_vector_norm(tensors, 0, name, drop, Mask(drop.key, rate)) == added_up(tensors, name, drop)


@pytest.mark.parametrize("dtypes", [*DTYPES, *UNCOVERED])
def test_norms_of_what_is_dropped_by_rank_are_the_sums_of_what_the_definition_leaves(dtypes):
    tensors = rule(dtypes, "della_linear", density=0.4, spread=0.5)
    for name in SHAPES:
        drop = RankedDropping(tensors)(0, name)
        plain = RankedDrop(drop.key, drop.density, drop.half_width, drop.ranks, drop.width)
        expected = added_up(tensors, name, plain)
        mask = Mask(drop.key, ranks=drop.ranks, line=drop.line)
        assert masked_vector_norm(tensors, 0, name, plain, mask) == expected
        assert (drop.divisor, drop.factor) == ((expected, added_up(tensors, name, None)) if expected else (1.0, 1.0))


def test_the_norm_of_a_whole_vector_is_added_up_once_for_all_candidates(monkeypatch):
    asked = []
    inner = vector_norms.masked_norm
    monkeypatch.setattr(vector_norms, "masked_norm", lambda *given, **named: asked.append(1) or inner(*given, **named))
    tensors = rule(DTYPES[0], drop_rate=0.5)
    for _candidate in range(3):
        assert Dropping(tensors)(0, "embed").factor == whole_norm(tensors, 0, "embed")
    assert len(asked) == 1 + 3

"""Passthrough: one source, bit for bit or times a number."""

import pytest
import torch

from evomerge.errors import InvalidInput
from evomerge.merging import merge_state_dicts

SOURCE = {"w": torch.tensor([[1.0, -3.0]]), "one": torch.tensor(0.1)}


def test_without_a_scale_it_is_the_source():
    for dtype in (torch.float32, torch.bfloat16):
        source = {name: tensor.to(dtype) for name, tensor in SOURCE.items()}
        merged = merge_state_dicts("passthrough", [source])
        assert all(torch.equal(merged[name], source[name]) for name in source)


def test_the_scale_is_a_factor_of_every_weight():
    assert merge_state_dicts("passthrough", [SOURCE], parameters={"scale": -0.5})["w"].tolist() == [[-0.5, 1.5]]
    assert merge_state_dicts("passthrough", [SOURCE], parameters={"scale": [0.0]})["w"].abs().sum() == 0


def test_a_second_source_is_refused():
    with pytest.raises(InvalidInput, match="exactly 1 sources"):
        merge_state_dicts("passthrough", [SOURCE, SOURCE])

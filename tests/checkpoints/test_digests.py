from __future__ import annotations

import pytest
import torch

from evomerge.checkpoints import WeightsDiffer, tensor_digest, tensor_digests, verify_digests
from evomerge.errors import InvalidInput


def test_a_digest_tells_one_bit() -> None:
    tensor = torch.zeros(4)
    other = tensor.clone()
    other[3] = -0.0  # equal by value, not by bit
    assert tensor.equal(other)
    assert tensor_digest(tensor) != tensor_digest(other)


def test_a_digest_tells_dtype_and_shape() -> None:
    zeros = torch.zeros(4, dtype=torch.bfloat16)
    assert len({tensor_digest(t) for t in (zeros, zeros.to(torch.float16), zeros.reshape(2, 2))}) == 3


def test_a_digest_does_not_tell_strides_or_gradients() -> None:
    tensor = torch.arange(6.0).reshape(2, 3)
    assert tensor_digest(tensor.t().contiguous().t()) == tensor_digest(tensor)
    assert tensor_digest(torch.nn.Parameter(tensor)) == tensor_digest(tensor)
    assert tensor_digest(torch.stack([tensor, tensor])[1]) == tensor_digest(tensor)


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (1,)])
def test_tensors_of_every_size_have_a_digest(shape: tuple[int, ...]) -> None:
    assert len(tensor_digest(torch.ones(shape, dtype=torch.bfloat16))) == 64


def test_n9_tensors_that_differ_are_named() -> None:
    scored = {"a": torch.zeros(2), "b": torch.ones(2), "c": torch.ones(2)}
    exported = scored | {"b": torch.ones(2) + 1e-6}
    del exported["c"]
    expected, actual = tensor_digests(scored.items()), tensor_digests(exported.items())
    verify_digests(expected, dict(expected))
    with pytest.raises(WeightsDiffer, match=r"2 of 3 tensors .*: b, c") as raised:
        verify_digests(expected, actual)
    assert raised.value.names == ("b", "c")
    assert isinstance(raised.value, InvalidInput)

"""Grams of layer inputs against X'X over the counted rows, and what they are taken from."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from evomerge.errors import InvalidInput
from evomerge.statistics.grams import input_grams


class Tokens(nn.Module):
    """Two layers over positions, one of them called twice, and a head behind a mean over positions."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(9, 4)
        self.fc1 = nn.Linear(4, 6)
        self.conv = Conv1D(6, 6)
        self.never_called = nn.Linear(2, 2)
        self.pooled = nn.Linear(6, 3, bias=False)

    def forward(self, tokens):
        hidden = torch.relu(self.fc1(self.embed(tokens)))
        return self.pooled(self.conv(self.conv(hidden)).mean(1))


TOKENS = torch.tensor([[1, 2, 3], [4, 5, 0], [6, 0, 0], [7, 8, 0]])
MASK = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0], [0, 0, 0]])


def gram(rows):
    return (rows.double().T @ rows.double() / len(rows)).float()


def test_a_gram_is_the_second_moment_of_a_layers_inputs_at_the_counted_positions():
    model = Tokens()
    found = input_grams(model, [(TOKENS, MASK)])
    assert list(found) == ["fc1.weight", "conv.weight", "pooled.weight"]
    counted = MASK.bool()
    embedded = model.embed(TOKENS).detach()
    once = torch.relu(model.fc1(embedded)).detach()
    twice = model.conv(once).detach()
    rows_of_texts = model.conv(twice).detach().mean(1)[counted.any(1)]
    torch.testing.assert_close(found["fc1.weight"], gram(embedded[counted]))
    torch.testing.assert_close(found["conv.weight"], gram(torch.cat([once[counted], twice[counted]])))
    torch.testing.assert_close(found["pooled.weight"], gram(rows_of_texts))


def test_without_a_mask_everything_counts():
    model = nn.Linear(2, 3)
    inputs = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    found = input_grams(model, [(inputs, None)])
    torch.testing.assert_close(found, {"weight": torch.tensor([[5.0, 7.0], [7.0, 10.0]])})


@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_division_into_batches_changes_nothing(size):
    """Though the batches hold different numbers of counted positions."""
    whole = input_grams(Tokens(), [(TOKENS, MASK)])
    parts = [(TOKENS[start : start + size], MASK[start : start + size]) for start in range(0, 4, size)]
    torch.testing.assert_close(input_grams(Tokens(), parts), whole)


def test_padding_does_not_count():
    model = Tokens()
    short = input_grams(model, [(TOKENS[:1, :2], MASK[:1, :2])])
    padded = input_grams(model, [(torch.tensor([[1, 2, 0, 0, 0]]), torch.tensor([[1, 1, 0, 0, 0]]))])
    torch.testing.assert_close(padded["fc1.weight"], short["fc1.weight"])


def test_layers_with_flattened_positions_are_masked_as_well():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(2, 2)

        def forward(self, x):
            return self.fc(x.reshape(-1, 2)).reshape(x.shape)

    inputs = torch.arange(12.0).reshape(2, 3, 2)
    mask = torch.tensor([[1, 0, 0], [0, 1, 1]])
    torch.testing.assert_close(input_grams(Flat(), [(inputs, mask)])["fc.weight"], gram(inputs[mask.bool()]))


def test_gpt2_has_grams_of_its_conv1d_layers_and_head():
    model = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2, n_positions=8))
    found = input_grams(model, [({"input_ids": torch.tensor([[1, 2, 3]])}, None)])
    assert {name: len(each) for name, each in found.items()} == {
        "transformer.h.0.attn.c_attn.weight": 8,
        "transformer.h.0.attn.c_proj.weight": 8,
        "transformer.h.0.mlp.c_fc.weight": 8,
        "transformer.h.0.mlp.c_proj.weight": 32,
        "lm_head.weight": 8,
    }


def test_a_constant_is_appended_to_the_inputs_of_layers_with_a_bias():
    found = input_grams(Tokens(), [(TOKENS, MASK)], constant=True)
    plain = input_grams(Tokens(), [(TOKENS, MASK)])
    assert found["fc1.weight"].shape == (5, 5)
    torch.testing.assert_close(found["fc1.weight"][:4, :4], plain["fc1.weight"])
    torch.testing.assert_close(found["fc1.weight"][4, :4], Tokens().embed(TOKENS)[MASK.bool()].mean(0).detach())
    assert float(found["fc1.weight"][4, 4]) == 1
    torch.testing.assert_close(found["pooled.weight"], plain["pooled.weight"])


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 3), nn.BatchNorm1d(3))
    model[0].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = input_grams(model, [(torch.ones(4, 3), None)])
    torch.testing.assert_close(found["1.weight"], torch.ones(3, 3))
    assert [module.training for module in model] == [False, True, True]
    assert not model[1]._forward_pre_hooks
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert model[1].weight.grad is None


def test_hooks_are_removed_after_an_error_too():
    model = nn.Linear(3, 3)
    with pytest.raises(InvalidInput, match="cannot be run on batch 0"):
        input_grams(model, [(torch.ones(4, 2), None)])
    assert not model._forward_pre_hooks
    assert model.training


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_a_gram_has_the_dtype_of_the_inputs_and_at_least_float32(dtype, expected):
    found = input_grams(nn.Linear(2, 2).to(dtype), [(torch.ones(1, 2, dtype=dtype), None)])
    assert found["weight"].dtype == expected


@pytest.mark.parametrize(
    ("model", "batches", "message"),
    [
        (nn.Linear(2, 2), [], "no batches"),
        (nn.LayerNorm(2), [(torch.ones(1, 2), None)], "no linear layers"),
        (Tokens(), [(TOKENS, MASK[:2])], "the mask of batch 0"),
        (Tokens(), [(TOKENS, torch.ones(4))], r"\[texts, positions\]"),
        (Tokens(), [(TOKENS, torch.zeros(4, 3))], "no position counts"),
        (nn.Linear(2, 2), [(torch.full((1, 2), float("inf")), None)], "not finite"),
        (nn.Linear(2, 2), [({"input": torch.ones(5, 2)}, torch.ones(2, 3))], "does not fit"),
    ],
)
def test_what_gives_no_gram_is_refused(model, batches, message):
    with pytest.raises(InvalidInput, match=message):
        input_grams(model, batches)


def test_a_batch_without_its_mask_is_refused():
    with pytest.raises(InvalidInput, match=r"batch 0 must be \(inputs, mask\), but is Tensor"):
        input_grams(nn.Linear(3, 2), [torch.ones(4, 3)])

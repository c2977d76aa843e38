"""Diagonal Fishers against their definition, written out with one backward pass per label."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from evomerge.errors import InvalidInput
from evomerge.statistics.fisher import exact_fisher, sampled_fisher


class Classifier(nn.Module):
    def __init__(self, dropout=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(4, 5)
        self.unused = nn.Linear(2, 2)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.dropout(torch.tanh(self.body(x))))


class Bigrams(nn.Module):
    """Logits of the next token from a table: its Fisher is known in closed form."""

    def __init__(self, vocabulary):
        super().__init__()
        self.table = nn.Parameter(torch.randn(vocabulary, vocabulary, generator=torch.Generator().manual_seed(1)))

    def forward(self, tokens):
        return self.table[tokens]


def examples(count=6):
    return list(torch.randn(count, 4, generator=torch.Generator().manual_seed(2)))


def by_definition(model, inputs):
    """1/N sum_x sum_y p(y|x) g_y^2 with `backward`, label by label."""
    total = {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in model.named_parameters()}
    for x in inputs:
        for label in range(3):
            model.zero_grad()
            scores = torch.log_softmax(model(x[None])[0], -1)
            scores[label].backward()
            for name, tensor in model.named_parameters():
                if tensor.grad is not None:
                    total[name] += scores[label].exp().item() * tensor.grad.double() ** 2
    model.zero_grad()
    return {name: (each / len(inputs)).float() for name, each in total.items()}


def test_an_exact_fisher_is_the_mean_over_examples_of_squares_weighted_by_the_labels_probabilities():
    model = Classifier()
    found, expected = exact_fisher(model, examples()), by_definition(model, examples())
    assert list(found) == [name for name, _ in model.named_parameters()]
    torch.testing.assert_close(found, expected)
    assert not found["unused.weight"].any()


def test_two_labels_give_the_fisher_of_logistic_regression():
    model = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.5], [0.0]]))
    x = 2.0
    p = 1 / (1 + torch.exp(torch.tensor(-0.5 * x))).item()
    fisher = exact_fisher(model, [torch.tensor([x])])["weight"]
    torch.testing.assert_close(fisher, torch.full((2, 1), p * (1 - p) * x**2))


def test_a_fisher_changes_neither_gradients_nor_modes_nor_what_takes_gradients():
    model = Classifier(dropout=0.5)
    model.train()
    model.body.eval()
    model.head.weight.requires_grad_(False)
    model.body.weight.grad = torch.ones(5, 4)
    before = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    found = exact_fisher(model, examples())
    assert [module.training for module in (model, model.body, model.dropout, model.head)] == [True, False, True, True]
    assert not model.head.weight.requires_grad
    assert torch.equal(model.body.weight.grad, torch.ones(5, 4))
    assert model.body.bias.grad is None
    assert all(torch.equal(before[name], tensor) for name, tensor in model.named_parameters())
    torch.testing.assert_close(found, exact_fisher(Classifier().eval(), examples()))
    assert found["head.weight"].any()


def test_a_fisher_is_measured_where_gradients_are_switched_off():
    with torch.no_grad():
        found = exact_fisher(Classifier(), examples())
    torch.testing.assert_close(found, exact_fisher(Classifier(), examples()))


def test_examples_may_come_one_by_one_and_be_token_ids():
    model = nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(6, 2))
    found = exact_fisher(model, iter([torch.tensor([1, 4])]))
    assert found["0.weight"].any(1).tolist() == [False, True, False, False, True]


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_a_fisher_has_the_dtype_of_its_parameter_and_at_least_float32(dtype, expected):
    found = exact_fisher(Classifier().to(dtype), [each.to(dtype) for each in examples()])
    assert {tensor.dtype for tensor in found.values()} == {expected}


def test_the_padding_token_has_its_fisher_where_it_stands_in_an_example():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Embedding(5, 3, padding_idx=2), torch.nn.Flatten(), torch.nn.Linear(6, 2))
    torch.nn.init.normal_(model[0].weight)
    found = exact_fisher(model, [torch.tensor([2, 4])])
    assert found["0.weight"].any(1).tolist() == [False, False, True, False, True]
    assert model[0].padding_idx == 2


def test_a_tied_parameter_is_measured_once_with_all_its_uses():
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=11,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=8,
            tie_word_embeddings=True,
        )
    )
    found = sampled_fisher(model, torch.tensor([[1, 2, 3]]), None, seed=0)
    assert list(found) == [name for name, _ in model.named_parameters()]
    assert found["model.embed_tokens.weight"].any(1).all()  # as a head it is used whole


@pytest.mark.parametrize(
    ("model", "given", "message"),
    [
        (Classifier(), [], "no examples|there are none"),
        (Classifier(), [[1.0, 2.0]], "give a tensor"),
        (Classifier(), [torch.ones(3)], "cannot be run on example 0"),
        (nn.Embedding(4, 3), [torch.tensor([9])], "cannot be run on example 0"),
        (Classifier(), [torch.ones(2, 4)], r"need \[1, labels\]"),
        (Classifier(), [torch.full((4,), float("nan"))], "not finite"),
        (nn.Identity(), [torch.ones(3)], "no floating-point parameters"),
    ],
)
def test_what_has_no_exact_fisher_is_refused(model, given, message):
    with pytest.raises(InvalidInput, match=message):
        exact_fisher(model, given)


def fisher_of_counts(model, counts):
    """Of a table of logits row by row: the count of a token times p (1 - p)."""
    p = torch.softmax(model.table.detach().double(), -1)
    return (counts[:, None] * p * (1 - p)).float()


def test_sampled_fishers_estimate_the_exact_sum_over_counted_positions():
    """The mean of 1000 draws is within 5 standard errors of the expectation, for each entry of the table."""
    model = Bigrams(4)
    texts, mask = torch.tensor([[0, 1, 2], [0, 3, 3]]), torch.tensor([[1, 0, 1], [1, 0, 0]])
    draws = torch.stack([sampled_fisher(model, texts, mask, seed)["table"] for seed in range(1000)])
    expected = fisher_of_counts(model, torch.tensor([2.0, 0, 1, 0]) / 2)
    error = draws.std(0) / len(draws) ** 0.5
    assert ((draws.mean(0) - expected).abs() <= 5 * error + 1e-12).all()


def test_a_sampled_fisher_is_a_function_of_its_seed():
    model, texts = Bigrams(50), torch.arange(20).reshape(2, 10)
    one, same, other = (sampled_fisher(model, texts, None, seed)["table"] for seed in (3, 3, 4))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_texts_may_have_different_lengths_and_padding_on_the_right_changes_nothing():
    model = Bigrams(6)
    texts = [torch.tensor([1, 2, 3]), torch.tensor([4, 5])]
    padded = torch.tensor([[1, 2, 3], [4, 5, 0]])
    plain = sampled_fisher(model, texts, None, 0)
    torch.testing.assert_close(sampled_fisher(model, padded, torch.tensor([[1, 1, 1], [1, 1, 0]]), 0), plain)


@pytest.mark.parametrize(
    ("texts", "mask", "message"),
    [
        ([], None, "at least one text"),
        ([torch.tensor([1])], [], "a mask for each"),
        ([torch.tensor([1, 2])], [torch.tensor([1])], "the mask of text 0"),
        ([torch.tensor([1, 2])], [torch.tensor([0, 0])], "nothing counts in text 0"),
        ([torch.tensor([[1, 2]])], None, "no vector of token ids"),
        ([torch.tensor([77])], None, "cannot be run on text 0"),
    ],
)
def test_texts_that_have_no_sampled_fisher_are_refused(texts, mask, message):
    with pytest.raises(InvalidInput, match=message):
        sampled_fisher(Bigrams(4), texts, mask, 0)


def test_a_model_without_logits_for_every_token_is_refused():
    with pytest.raises(InvalidInput, match=r"need \[1, 2, vocabulary\]"):
        sampled_fisher(nn.Sequential(nn.Embedding(4, 3), nn.Flatten(0, 1)), [torch.tensor([0, 1])], None, 0)

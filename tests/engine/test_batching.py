"""An item's score is that of its own sequence, whatever is scored beside it."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from models import LLAMA, build, dynamic, longrope
from tiny_pack import make_model

from evomerge.engine import tree_support
from evomerge.engine.batching import Scoring, Writing, depends_on_order, find_scoring, find_writing
from evomerge.engine.flat import FlatLoglikelihoods
from evomerge.engine.live_state import LiveState
from evomerge.engine.protocol import Pair
from evomerge.engine.tree_support import shares_prefixes

CPU = torch.device("cpu")
ALL = Scoring(company=True, padding=True, prefixes=True)

# Lengths on both sides of 32 tokens, where these models begin to compute otherwise.
SPLIT = {
    "LongRoPE in Llama": ("LlamaConfig", {**LLAMA, **longrope(32)}),
    "LongRoPE in Phi-3": ("Phi3Config", {**LLAMA, **longrope(32), "original_max_position_embeddings": 32}),
    "LongRoPE in Qwen2": ("Qwen2Config", {**LLAMA, **longrope(32)}),
    "dynamic NTK in Mistral": ("MistralConfig", {**LLAMA, **dynamic(32), "sliding_window": None}),
    "dynamic NTK in StableLM": ("StableLmConfig", {**LLAMA, **dynamic(32), "partial_rotary_factor": 1.0}),
}


def pairs_of(lengths: list[int]) -> list[Pair]:
    rng = random.Random(0)
    return [
        ([rng.randrange(4, 90) for _ in range(length)], [rng.randrange(4, 90) for _ in range(3)]) for length in lengths
    ]


def alone(model: Any, pairs: list[Pair]) -> list[float]:
    """Each request by a model that has never run another one."""
    state = LiveState(model)
    found = []
    for pair in pairs:
        state.restore()
        found += [value for value, _ in FlatLoglikelihoods([pair], 200, 1, CPU).run(model, state.restore)]
    return found


@pytest.mark.parametrize("name", SPLIT)
def test_sequences_on_both_sides_of_a_threshold_never_share_a_batch(name: str) -> None:
    model = build(*SPLIT[name])
    lengths = [5, 9, 9, 20, 29, 40, 40, 60]
    state = LiveState(model)
    way = find_scoring(model, lengths, state.reset)
    assert way == Scoring(company=True, padding=False, prefixes=False)
    pairs = pairs_of([length - 2 for length in lengths])
    expected = alone(model, pairs)
    pooled = FlatLoglikelihoods(pairs, 200, 8, CPU).run(model, state.reset)
    ours = FlatLoglikelihoods(pairs, 200, 8, CPU, padding=way.padding).run(model, state.reset)
    assert [value for value, _ in ours] == pytest.approx(expected, abs=1e-4)
    assert [value for value, _ in pooled] != pytest.approx(expected, abs=1e-2), "the comparison must not be empty"


@pytest.mark.parametrize("name", SPLIT)
def test_sequences_on_one_side_of_a_threshold_share_everything(name: str) -> None:
    model = build(*SPLIT[name])
    assert find_scoring(model, [5, 9, 32], LiveState(model).reset) == ALL


@pytest.mark.parametrize("name", SPLIT)
def test_the_threshold_is_found_without_the_name_of_its_embedding(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evomerge.engine.batching.changes_within", lambda *_: False)
    monkeypatch.setattr(tree_support, "obstacle", lambda *_: None)
    model = build(*SPLIT[name])
    assert find_scoring(model, [5, 60], LiveState(model).reset) == Scoring(company=True)


@pytest.mark.parametrize("name", SPLIT)
def test_the_order_counts_where_a_sequence_leaves_its_frequencies_to_the_next_one(name: str) -> None:
    """Dynamic NTK keeps those of the longest sequence so far; LongRoPE chooses its own for each sequence."""
    model = build(*SPLIT[name])
    reset = LiveState(model).restore
    keeps = name.startswith("dynamic")
    assert depends_on_order(model, [5, 40], 60, reset) == keeps
    assert not depends_on_order(model, [5, 20], 60, reset), "up to the original length the frequencies are put back"
    assert not depends_on_order(model, [5, 60], 60, reset), "nothing that is longer comes before"
    assert not depends_on_order(model, [], 1, reset)


def test_an_ordinary_model_shares_everything() -> None:
    model = make_model(0)
    reset = LiveState(model).reset
    assert find_scoring(model, [3, 50, 100], reset) == ALL
    assert find_writing(model, [(3, 11), (40, 48)], reset) == Writing(padding=True, prefixes=True)


def test_padding_that_changes_only_the_second_token_is_noticed() -> None:
    """MiniMax weighs the state that it has read by its own numbers, and decays it by padding when it goes on."""
    settings = {**LLAMA, "num_local_experts": 2, "num_experts_per_tok": 1, "block_size": 16}
    model = build("MiniMaxConfig", {**settings, "layer_types": ["linear_attention", "full_attention"]})
    assert not find_writing(model, [(3, 8), (20, 25)], LiveState(model).reset).padding


class Mixing(torch.nn.Module):
    """An output layer that adds something of the batch, or of its padding, to every sequence."""

    def __init__(self, head: torch.nn.Module, kind: str) -> None:
        super().__init__()
        self.head, self.kind = head, kind
        self.weight = head.weight

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        if self.kind == "batch":
            states = states + states.mean(0, keepdim=True)
        return self.head(states)


def test_sequences_that_see_each_other_are_scored_one_by_one() -> None:
    model = make_model(0)
    model.lm_head = Mixing(model.lm_head, "batch")
    assert find_scoring(model, [5, 30], LiveState(model).reset) == Scoring()


@pytest.mark.parametrize(
    ("config", "settings"),
    [
        ("MambaConfig", {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "initializer_range": 0.3}),
        ("LlamaConfig", {**LLAMA, **longrope(32)}),
    ],
    ids=["Mamba", "LongRoPE"],
)
def test_prompts_that_change_each_other_are_written_one_by_one(config: str, settings: dict[str, Any]) -> None:
    model = build(config, settings)
    assert not find_writing(model, [(3, 8), (45, 50)], LiveState(model).reset).prefixes
    assert find_writing(build("LlamaConfig", {**LLAMA, **longrope(32)}), [(3, 8), (20, 50)], lambda: None) == Writing()


WINDOWS = {
    "Doge": ("DogeConfig", {**LLAMA, "keep_window_size": 12}),
    "Mistral": ("MistralConfig", {**LLAMA, "sliding_window": 12}),
    "Gemma 3": ("Gemma3TextConfig", {**LLAMA, "head_dim": 8, "sliding_window": 12}),
    "GPT-Neo": (
        "GPTNeoConfig",
        {
            "vocab_size": 97,
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "initializer_range": 0.2,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 12,
        },
    ),
    "ModernBERT decoder": (
        "ModernBertDecoderConfig",
        {**LLAMA, "local_attention": 12, "global_attn_every_n_layers": 2},
    ),
}


@pytest.mark.parametrize("name", WINDOWS)
def test_a_window_under_whatever_name_is_found_at_the_lengths_of_the_requests(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tree_support, "obstacle", lambda *_: None)
    model = build(*WINDOWS[name])
    assert not shares_prefixes(model, 5, 60, lambda: None)


def test_a_choice_of_keys_that_counts_padding_is_found_in_sequences_just_below_the_longest() -> None:
    """Doge keeps so many keys of a row, padding among them; only the lengths between its window and the row tell."""
    model = build("DogeConfig", {**LLAMA, "keep_window_size": 40})
    reset = LiveState(model).reset
    assert not find_scoring(model, [5, 8, 12, 20, 30, 50, 60], reset).padding
    assert find_scoring(model, [5, 8, 12, 20, 30, 40], reset).padding


def test_doge_is_not_laid_out_as_a_tree_beyond_its_window() -> None:
    model = build(*WINDOWS["Doge"])
    assert not find_scoring(model, [5, 60], LiveState(model).reset).prefixes

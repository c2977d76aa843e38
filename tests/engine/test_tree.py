from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import GPT2, LLAMA, SMALL, build, dynamic
from tiny_pack import make_model

from evomerge.engine import tree_support
from evomerge.engine.flat import FlatLoglikelihoods
from evomerge.engine.protocol import Pair
from evomerge.engine.tree import TreeLoglikelihoods
from evomerge.engine.tree_support import obstacle, shares_prefixes
from evomerge.errors import MergeError

CPU = torch.device("cpu")
OPT = {**SMALL, "ffn_dim": 48, "word_embed_proj_dim": 32, "init_std": 0.2}

CAPABLE = {
    "Llama": ("LlamaConfig", LLAMA),
    "Mistral": ("MistralConfig", {**LLAMA, "sliding_window": 200}),
    "Gemma2": ("Gemma2Config", {**LLAMA, "head_dim": 8, "sliding_window": 200}),
    "Gemma3": ("Gemma3TextConfig", {**LLAMA, "head_dim": 8, "sliding_window": 200}),
    "GPT-2": ("GPT2Config", GPT2),
    "OPT": ("OPTConfig", OPT),
    "Cohere": ("CohereConfig", LLAMA),
}
INCAPABLE = {
    "a short window": ("MistralConfig", {**LLAMA, "sliding_window": 8}, "window"),
    "windows in some layers": ("Gemma3TextConfig", {**LLAMA, "head_dim": 8, "sliding_window": 8}, "window"),
    "ALiBi without position ids": ("BloomConfig", {"vocab_size": 97, "hidden_size": 32}, "position_ids"),
    "ALiBi": ("FalconConfig", {**SMALL, "alibi": True}, "ALiBi"),
    "a state space": ("MambaConfig", {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2}, "takes no"),
    "dynamic positions": (
        "LlamaConfig",
        {**LLAMA, **dynamic(60)},
        "position embeddings",
    ),
}


def nothing() -> None:
    """These models keep nothing between passes."""


def requests() -> list[Pair]:
    """Few-shot choices, texts that go on from one another, and some that share nothing."""
    rng = random.Random(0)

    def draw(count: int) -> list[int]:
        return [rng.randrange(4, 40) for _ in range(count)]

    pairs: list[Pair] = []
    for _ in range(2):
        examples = draw(40)
        for _ in range(8):
            question = examples + draw(rng.randint(5, 15))
            pairs += [(question, draw(rng.randint(1, 5))) for _ in range(4)]
    pairs += [(examples, draw(4)), (examples[:10], examples[10:] + draw(3)), (examples[:5], examples[5:30])]
    return pairs + [(draw(3), draw(20)) for _ in range(3)]


def assert_same(ours: list[tuple[float, bool]], theirs: list[tuple[float, bool]]) -> None:
    assert [value for value, _ in ours] == pytest.approx([value for value, _ in theirs], abs=1e-4, rel=1e-5)
    assert [hit for _, hit in ours] == [hit for _, hit in theirs]


@pytest.mark.parametrize("name", CAPABLE)
def test_a_tree_gives_the_log_likelihoods_of_its_sequences(name: str) -> None:
    model = build(*CAPABLE[name])
    assert shares_prefixes(model, 5, 100, nothing)
    flat = FlatLoglikelihoods(requests(), 100, 8, CPU)
    tree = TreeLoglikelihoods(requests(), 100, budget=2000, hidden=32, device=CPU)
    assert_same(tree.run(model, nothing), flat.run(model, nothing))
    assert tree.distinct == flat.distinct <= tree.tokens <= 1.1 * tree.distinct < flat.tokens


@pytest.mark.parametrize("cost", [0, 10**6], ids=["stems", "rows"])
@pytest.mark.parametrize("budget", [1, 300, 10**6])
@pytest.mark.parametrize("hidden", [0, 4096])
def test_the_shape_of_the_tree_does_not_matter(hidden: int, budget: int, cost: int) -> None:
    model = make_model(0)
    tree = TreeLoglikelihoods(requests(), 100, budget=budget, hidden=hidden, device=CPU, pass_cost=cost)
    assert_same(tree.run(model, nothing), FlatLoglikelihoods(requests(), 100, 8, CPU).run(model, nothing))


def test_n17_no_cached_prefix_survives_a_swap_of_weights() -> None:
    model, other = make_model(0), make_model(1)
    first = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tree = TreeLoglikelihoods(requests(), 100, budget=2000, hidden=32, device=CPU)
    before = tree.run(model, nothing)
    model.load_state_dict(other.state_dict())
    between = tree.run(model, nothing)
    model.load_state_dict(first)
    assert tree.run(model, nothing) == before
    assert (
        between == TreeLoglikelihoods(requests(), 100, budget=2000, hidden=32, device=CPU).run(other, nothing) != before
    )


def test_the_vocabulary_is_only_reached_from_places_that_are_scored() -> None:
    model = make_model(0)
    seen: list[int] = []
    model.lm_head.register_forward_hook(lambda _, __, output: seen.append(output.shape[1]))
    pairs = [([5, 6, 7, 8], [9, 10]), ([5, 6, 7, 8], [9, 11]), ([5, 6, 7, 8], [12])]
    TreeLoglikelihoods(pairs, 100, budget=2000, hidden=32, device=CPU).run(model, nothing)
    assert seen == [2]
    assert not model.lm_head._forward_pre_hooks


@pytest.mark.parametrize("name", INCAPABLE)
def test_models_that_measure_distances_otherwise_score_every_request_alone(name: str) -> None:
    config, settings, reason = INCAPABLE[name]
    model = build(config, settings)
    assert reason in str(obstacle(model, 5, 100))
    assert not shares_prefixes(model, 5, 100, nothing)


def test_a_window_longer_than_every_sequence_is_none() -> None:
    model = build("MistralConfig", {**LLAMA, "sliding_window": 64})
    assert obstacle(model, 5, 64) is None
    assert obstacle(model, 5, 65) is not None


@pytest.mark.parametrize(
    "change", [lambda options: options.pop("position_ids"), lambda options: options.pop("attention_mask")]
)
def test_a_model_that_ignores_what_it_takes_is_found_out(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[dict[str, Any]], Any]
) -> None:
    model = make_model(0)
    honest = type(model).forward

    def forward(
        self: Any,
        input_ids: Any,
        attention_mask: Any = None,
        position_ids: Any = None,
        past_key_values: Any = None,
        use_cache: Any = None,
    ) -> Any:
        options = {"attention_mask": attention_mask, "position_ids": position_ids}
        change(options)
        return honest(self, input_ids, past_key_values=past_key_values, use_cache=use_cache, **options)

    assert shares_prefixes(model, 5, 100, nothing)
    monkeypatch.setattr(type(model), "forward", forward)
    assert obstacle(model, 5, 100) is None
    assert not shares_prefixes(model, 5, 100, nothing)


def test_a_candidate_without_numbers_says_nothing_about_the_model() -> None:
    model = make_model(0)
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(MergeError, match="not numbers"):
        shares_prefixes(model, 5, 100, nothing)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_probe_allows_for_the_rounding_of_the_dtype(dtype: torch.dtype) -> None:
    assert tree_support._agrees(make_model(0).to(dtype), 5, 100, nothing)

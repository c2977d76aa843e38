"""Models that would score nonsense are refused before an item is scored; nothing outlives a forward pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import BERT, LLAMA, build, dynamic, longrope
from tiny_pack import make_model

from evomerge.engine.flat import FlatLoglikelihoods
from evomerge.engine.live_state import LiveState
from evomerge.engine.model_check import check_model
from evomerge.errors import InvalidInput, MergeError

CPU = torch.device("cpu")
SHORT, LONG = [3, 1, 4, 1, 5, 9], list(range(10, 70))

NOT_CAUSAL = ["BertConfig", "RobertaConfig", "ElectraConfig", "RoFormerConfig", "MegatronBertConfig"]


@pytest.mark.parametrize("config", NOT_CAUSAL)
def test_a_model_in_which_later_tokens_change_earlier_ones_is_refused(config: str) -> None:
    model = build(config, {**BERT, "is_decoder": False})
    with pytest.raises(InvalidInput, match="is no causal language model"):
        check_model(model, LiveState(model), 5, 40)


@pytest.mark.parametrize("config", NOT_CAUSAL)
def test_the_same_model_as_a_decoder_is_accepted(config: str) -> None:
    model = build(config, {**BERT, "is_decoder": True})
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    check_model(model, LiveState(model), 5, 40)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_model_that_changes_its_own_weights_is_refused() -> None:
    settings = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 4, "attention_hidden_size": 32}
    model = build("RwkvConfig", {**settings, "rescale_every": 2})
    with pytest.raises(InvalidInput, match="changes its own weights when it runs"):
        check_model(model, LiveState(model), 5, 20)


def test_a_model_that_remembers_what_it_has_run_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(0)
    seen: list[int] = []
    honest = type(model.lm_head).forward

    def forward(self: Any, states: torch.Tensor) -> torch.Tensor:
        seen.append(states.shape[1])
        return honest(self, states) * max(seen)

    monkeypatch.setattr(type(model.lm_head), "forward", forward)
    with pytest.raises(InvalidInput, match="keeps something between forward passes"):
        check_model(model, LiveState(model), 5, 6)


def test_sequences_beyond_what_the_model_holds_are_refused() -> None:
    model = build("GPT2Config", {"vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32})
    check_model(model, LiveState(model), 5, 32)
    with pytest.raises(InvalidInput, match=r"cannot run a sequence of 33 tokens: .*max_length"):
        check_model(model, LiveState(model), 5, 33)


def test_weights_that_compute_nothing_say_nothing_of_the_model() -> None:
    model = make_model(0)
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(MergeError, match="not numbers"):
        check_model(model, LiveState(model), 5, 6)


@pytest.mark.parametrize(
    ("config", "settings"),
    [
        ("LlamaConfig", dynamic(16)),
        ("Qwen2Config", dynamic(16)),
        ("GemmaConfig", {**dynamic(16), "head_dim": 8}),
        ("Phi3Config", {**longrope(16), "original_max_position_embeddings": 16}),
    ],
    ids=["Llama", "Qwen2", "Gemma", "Phi-3"],
)
def test_a_score_does_not_depend_on_what_was_scored_before(config: str, settings: dict[str, Any]) -> None:
    model = build(config, {**LLAMA, **settings})
    state = LiveState(model)
    a = FlatLoglikelihoods([(SHORT * 4, [7, 8, 9])], 200, 1, CPU)
    b = FlatLoglikelihoods([(LONG, [7, 8, 9])], 200, 1, CPU)
    before = a.run(model, state.reset)
    b.run(model, state.reset)
    state.restore()
    assert a.run(model, state.reset) == before
    b.run(model, state.reset)
    assert a.run(model, state.reset) == before, "a module that was seen to change is put back before every pass"


def test_rotary_state_that_is_not_put_back_changes_scores() -> None:
    model = build("LlamaConfig", {**LLAMA, **dynamic(16)})
    a = FlatLoglikelihoods([(SHORT * 4, [7, 8, 9])], 200, 1, CPU)
    before = a.run(model, lambda: None)
    FlatLoglikelihoods([(LONG, [7, 8, 9])], 200, 1, CPU).run(model, lambda: None)
    assert a.run(model, lambda: None) != before


def test_weights_are_no_state_that_is_put_back() -> None:
    model = make_model(0)
    state = LiveState(model)
    with torch.no_grad():
        model.lm_head.weight.fill_(0.5)
    state.restore()
    assert bool((model.lm_head.weight == 0.5).all())


def test_attributes_and_computed_buffers_are_put_back() -> None:
    model = make_model(0)
    rotary = model.model.rotary_emb
    frequencies, content = rotary.inv_freq, rotary.inv_freq.clone()
    state = LiveState(model)
    frequencies.mul_(2)
    rotary.added = 1
    rotary.attention_scaling = 3.0
    state.restore()
    assert torch.equal(frequencies, content)
    assert not hasattr(rotary, "added")
    assert rotary.attention_scaling == 1.0
    rotary.register_buffer("inv_freq", content * 5, persistent=False)
    state.reset()
    assert rotary.inv_freq is frequencies

"""Whether the layers of a model can be put into another order and number: told by its class, without weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from evomerge.checkpoints import Source
from evomerge.checkpoints.stacked_model import check_stackable
from evomerge.checkpoints.stacked_source import stacked_config, stacked_source
from evomerge.errors import InvalidInput


@pytest.mark.parametrize("kind", ["llama", "llama_tied", "gpt2", "qwen2", "neox", "opt"])
def test_layers_of_plain_models_can_be_exchanged(kind: str, open_model: Callable[..., Source]) -> None:
    check_stackable(open_model(kind))


def test_a_model_whose_layers_compute_by_their_place_is_refused(open_model: Callable[..., Source]) -> None:
    with pytest.raises(InvalidInput, match="attn has another scaling"):
        check_stackable(open_model("gpt2", scale_attn_by_inverse_layer_idx=True))


def test_the_number_of_layers_is_written_where_the_config_has_it(open_model: Callable[..., Source]) -> None:
    assert stacked_config(open_model("gpt2"), [1, 0, 1])["n_layer"] == 3
    assert "num_hidden_layers" not in stacked_config(open_model("gpt2"), [1, 0, 1])
    assert stacked_config(open_model("llama", "other"), [1])["num_hidden_layers"] == 1


def test_kinds_of_layers_that_the_base_has_by_default_are_written_out(open_model: Callable[..., Source]) -> None:
    source = open_model("qwen2", use_sliding_window=True, sliding_window=4, max_window_layers=1)
    config = stacked_config(source, [1, 0, 1])
    assert config["layer_types"] == ["sliding_attention", "full_attention", "sliding_attention"]


def test_stored_tensors_that_no_class_loads_stay_behind_with_their_layers(open_model: Callable[..., Source]) -> None:
    source = open_model("llama")
    unused = ("model.layers.0.self_attn.rotary_emb.inv_freq", "vision.layers.0.weight")
    object.__setattr__(source, "unused", unused)
    assert stacked_source(source, [0, 1, 1]).unused == ("vision.layers.0.weight",)

"""What is relied on of transformers' conversion machinery, which is not part of its documented surface (N36)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from transformers import AutoModelForCausalLM

from evomerge.checkpoints import Source


def _architecture_names(source: Source) -> tuple[dict[str, str], tuple[str, ...]]:
    assert source.architecture is not None
    return dict(source.architecture.live_names), tuple(source.architecture.places)


@pytest.mark.parametrize("kind", ["llama", "llama_tied", "gpt2", "qwen2", "opt"])
def test_n36_most_tensors_keep_their_names(kind: str, open_model: Callable[..., Source]) -> None:
    live_names, moved = _architecture_names(open_model(kind))
    assert all(name == live for name, live in live_names.items())
    assert not moved


def test_n36_a_renamed_tensor_is_found_under_its_live_name(open_model: Callable[..., Source]) -> None:
    live_names, moved = _architecture_names(open_model("neox"))
    assert {name: live for name, live in live_names.items() if name != live} == {"embed_out.weight": "lm_head.weight"}
    assert not moved


def test_n36_matrices_of_experts_have_places_in_the_stacks_of_the_live_model(
    open_model: Callable[..., Source],
) -> None:
    source = open_model("mixtral")
    live_names, moved = _architecture_names(source)
    assert set(moved) == {name for name in source.catalogue.names if ".experts." in name}
    assert live_names["model.layers.1.block_sparse_moe.gate.weight"] == "model.layers.1.mlp.gate.weight"


@pytest.mark.parametrize("kind", ["llama", "llama_tied", "gpt2", "qwen2", "neox", "opt"])
def test_n36_live_names_are_those_under_which_transformers_loads_the_tensors(
    kind: str, open_model: Callable[..., Source]
) -> None:
    source = open_model(kind)
    live = AutoModelForCausalLM.from_pretrained(source.directory).state_dict()
    for name, place in source.live_names.items():
        assert live[place].equal(source.tensors[name]), name


def test_settings_have_their_defaults_written_out(open_model: Callable[..., Source]) -> None:
    assert open_model("llama").settings["rope_parameters"]["rope_theta"] == 10000.0

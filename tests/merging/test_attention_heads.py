"""The size of a head by the config, and modules whose heads may not change places."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from evomerge.bank import WeightBank
from evomerge.catalogue.attention_heads import AttentionHeads, attention_heads
from evomerge.catalogue.unit_patterns import unit_groups
from evomerge.checkpoints import open_source
from evomerge.methods import resolve_options, resolve_parameters
from evomerge.recipe import ModelRef, Recipe, Rule

PAIR = Path(__file__).parent.parent.parent / "examples" / "methods" / "models"


@pytest.mark.parametrize(
    ("settings", "known"),
    [
        ({"num_attention_heads": 4, "hidden_size": 64}, (4, 16)),
        ({"num_attention_heads": 4, "hidden_size": 64, "head_dim": 32}, (4, 32)),
        ({"num_attention_heads": 4, "hidden_size": 64, "head_dim": None}, (4, 16)),
        ({"n_head": 2, "n_embd": 8}, (2, 4)),
        ({"text_config": {"num_attention_heads": 2, "hidden_size": 12}, "hidden_size": 99}, (2, 6)),
        ({"num_attention_heads": 4, "hidden_size": 64, "attention_head_dim": 32}, (4, 32)),
        ({"num_attention_heads": 4, "hidden_size": 64, "kv_channels": 32}, (4, 32)),
        ({"num_attention_heads": 3, "hidden_size": 64}, None),
        ({"num_attention_heads": [4, 8], "hidden_size": 64}, None),
        ({"num_attention_heads": 4, "hidden_size": 64, "alibi": True}, None),
        ({"num_attention_heads": 4, "hidden_size": 64, "num_kv_shared_layers": 2}, None),
        ({}, None),
    ],
)
def test_the_config_tells_number_and_size_of_heads_where_they_may_change_places(settings, known):
    assert attention_heads(settings) == (AttentionHeads(count=known[0], size=known[1]) if known else None)


HEADS = AttentionHeads(count=4, size=4)


def attention(**beside):
    shapes = {"q_proj": (16, 12), "k_proj": (8, 12), "v_proj": (8, 12), "o_proj": (12, 16)}
    tensors = {f"self_attn.{name}.weight": torch.zeros(shape) for name, shape in shapes.items()}
    return tensors | {f"self_attn.{name}": torch.zeros(shape) for name, shape in beside.items()}


def test_heads_move_as_groups_of_their_keys():
    (group,) = unit_groups(attention(), HEADS)
    assert group.units == 2
    assert {member.name.split(".")[1]: member.size for member in group.members} == {
        "q_proj": 8, "k_proj": 4, "v_proj": 4, "o_proj": 8,
    }  # fmt: skip
    assert unit_groups(attention(), None) == []


def test_heads_stay_in_a_layer_with_another_number_of_queries_than_the_config_says():
    for other in (AttentionHeads(count=4, size=2), AttentionHeads(count=8, size=4)):
        assert unit_groups(attention(), other) == []


def test_heads_stay_where_a_tensor_may_tell_them_apart():
    assert len(unit_groups(attention(**{"o_proj.bias": (12,), "rotary_emb.inv_freq": (2,)}), HEADS)) == 1
    for beside in ({"sinks": (4,)}, {"lambda_q1": (4,)}, {"relative_bias.weight": (9, 4)}):
        assert unit_groups(attention(**beside), HEADS) == []


def test_norms_of_single_queries_and_keys_know_the_size_better_than_the_config():
    one = attention(**{"q_norm.weight": (8,), "k_norm.weight": (8,)})
    assert unit_groups(one, HEADS) == []  # a single group of queries: there is nothing to move
    (group,) = unit_groups(attention(**{"q_norm.weight": (2,), "k_norm.weight": (2,)}), HEADS)
    assert group.units == 4
    assert unit_groups(attention(**{"q_norm.weight": (16,), "k_norm.weight": (8,)}), HEADS) == []


def test_the_aligned_first_source_computes_in_a_bank_what_the_first_source_computes():
    base = open_source(ModelRef("first", str(PAIR / "first")))
    second = open_source(ModelRef("second", str(PAIR / "second")), like=base)
    bank = WeightBank(base, [second], dtype=torch.float32, device=torch.device("cpu"))
    tokens = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
    with torch.no_grad():
        expected = bank.base_model()(tokens).logits.clone()
        rule = Rule(
            tensors=tuple(entry.name for entry in base.catalogue.mergeable),
            method="ot_fusion",
            sources=("first", "second"),
            parameters=resolve_parameters("ot_fusion", {"t": 0.0}, 2),
            options=resolve_options("ot_fusion", {}),
        )
        model = bank.materialize(Recipe(base=base.ref, sources=(base.ref, second.ref), rules=(rule,), dtype="float32"))
        moved = model.model.layers[0].self_attn.q_proj.weight.float()
        assert not torch.equal(moved, base.tensors["model.layers.0.self_attn.q_proj.weight"].float())
        torch.testing.assert_close(model(tokens).logits, expected, rtol=1e-4, atol=1e-4)

"""Units of transformers: the patterns that find them, and permuted copies that compute the same function."""

from __future__ import annotations

import pytest
import torch
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from evomerge.alignment.alignment import OtSettings
from evomerge.alignment.transport import Permutation
from evomerge.alignment.unit_alignment import align_units, by_unit
from evomerge.catalogue.attention_heads import AttentionHeads
from evomerge.catalogue.unit_patterns import UnitMember, unit_groups
from evomerge.errors import InvalidInput
from evomerge.merging import merge_state_dicts

HEADS = AttentionHeads(count=4, size=4)  # of llama


def llama(seed: int):
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=11,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=4,
            initializer_range=0.5,
            attention_bias=True,
        )
    ).eval()


def gpt2(seed: int):
    torch.manual_seed(seed)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=11, n_embd=8, n_layer=2, n_head=2, n_positions=16, initializer_range=0.5)
    ).eval()


def bert(seed: int):
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=11,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=12,
        max_position_embeddings=16,
        initializer_range=0.5,
    )
    return BertModel(config, add_pooling_layer=False).eval()


def outputs(model, state) -> torch.Tensor:
    model.load_state_dict(state)
    with torch.no_grad():
        return model(torch.arange(9)[None])[0]


def permuted(state, heads=None, seed=0):
    """The same function with the units of every group in another order, and the number of units that have moved."""
    generator, result = torch.Generator().manual_seed(seed), dict(state)
    for group in unit_groups(state, heads):
        order = torch.randperm(group.units, generator=generator).roll(1)
        for member in group.members:
            rows = Permutation(order).rows(by_unit(state[member.name], member, group.units))
            shape = state[member.name].movedim(member.axis, 0).shape
            back = rows.reshape(group.units, member.repeats, member.size, -1).transpose(0, 1).reshape(shape)
            result[member.name] = back.movedim(0, member.axis)
    return result


@pytest.mark.parametrize(
    ("build", "heads", "prefixes"),
    [
        (llama, None, ["model.layers.0.mlp.", "model.layers.1.mlp."]),
        (
            llama,
            HEADS,
            [f"model.layers.{layer}.{part}." for layer in (0, 1) for part in ("self_attn", "mlp")],
        ),
        (gpt2, None, ["transformer.h.0.mlp.", "transformer.h.1.mlp."]),
        (bert, None, ["encoder.layer.0."]),
    ],
)
def test_moving_the_units_of_a_model_changes_nothing_that_it_computes(build, heads, prefixes):
    model = build(0)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert [group.prefix for group in unit_groups(state, heads)] == prefixes
    expected, moved = outputs(model, state), permuted(state, heads)
    assert any(not torch.equal(moved[name], state[name]) for name in state)
    torch.testing.assert_close(outputs(model, moved), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("build", "heads"), [(llama, None), (llama, HEADS), (gpt2, None), (bert, None)])
def test_a_permuted_copy_is_recovered_exactly(build, heads):
    state = build(0).state_dict()
    alignment = align_units(permuted(state, heads), state, OtSettings(), heads=heads)
    assert all(torch.equal(alignment.tensors[name], state[name]) for name in state)
    assert all(alignment.moved.values())


def test_an_aligned_model_computes_what_it_computed_before():
    model = llama(0)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected, target = outputs(model, state), llama(1).state_dict()
    alignment = align_units(state, target, OtSettings(), heads=HEADS)
    assert alignment.moved["model.layers.0.mlp"] > 10
    torch.testing.assert_close(outputs(model, alignment.tensors), expected, rtol=1e-4, atol=1e-4)


def test_the_method_aligns_a_model_with_attention_by_its_patterns():
    state = llama(0).state_dict()
    copy = permuted(state)
    for t in (0.0, 0.5, 1.0):
        merged = merge_state_dicts("ot_fusion", [copy, state], parameters={"t": t})
        assert all(torch.equal(merged[name], state[name]) for name in state)


def test_fine_tunes_of_one_base_are_averaged():
    base, one, two = (llama(seed).state_dict() for seed in range(3))
    one, two = ({name: base[name] + 0.01 * each[name] for name in base} for each in (one, two))
    assert set(align_units(one, two, OtSettings(), heads=HEADS).moved.values()) == {0}
    merged, average = merge_state_dicts("ot_fusion", [one, two]), merge_state_dicts("linear", [one, two])
    for name in base:
        torch.testing.assert_close(merged[name], average[name])


def test_activations_align_hidden_units():
    state = llama(0).state_dict()
    copy = permuted(state)
    inputs = torch.randn(30, 16, generator=torch.Generator().manual_seed(0))
    names = [n for n in state if n.endswith(("gate_proj.weight", "up_proj.weight"))]
    given = [{name: inputs @ model[name].T for name in names} for model in (copy, state)]
    merged = merge_state_dicts("ot_fusion", [copy, state], None, {"t": 0.0}, {"mode": "acts"}, given)
    assert all(torch.equal(merged[name], state[name]) for name in state)
    del given[0][names[0]]
    with pytest.raises(InvalidInput, match="source 0 has none"):
        merge_state_dicts("ot_fusion", [copy, state], None, {"t": 0.0}, {"mode": "acts"}, given)


def test_the_norms_of_single_heads_tell_their_size():
    state = {
        "self_attn.q_proj.weight": torch.randn(12, 6),
        "self_attn.k_proj.weight": torch.randn(6, 6),
        "self_attn.v_proj.weight": torch.randn(6, 6),
        "self_attn.o_proj.weight": torch.randn(6, 12),
    }
    assert unit_groups(state) == []
    norms = {"self_attn.q_norm.weight": torch.ones(3), "self_attn.k_norm.weight": torch.ones(3)}
    (group,) = unit_groups({**state, **norms})
    assert group.units == 2
    assert {(member.name.split(".")[1], member.axis, member.size) for member in group.members} == {
        ("q_proj", 0, 6),
        ("k_proj", 0, 3),
        ("v_proj", 0, 3),
        ("o_proj", 1, 6),
    }


def test_fused_gate_and_up_move_in_two_blocks():
    state = {"mlp.gate_up_proj.weight": torch.randn(8, 3), "mlp.down_proj.weight": torch.randn(3, 4)}
    (group,) = unit_groups(state)
    assert group.incoming == (UnitMember(name="mlp.gate_up_proj.weight", axis=0, repeats=2),)
    weight = state["mlp.gate_up_proj.weight"]
    assert torch.equal(by_unit(weight, group.incoming[0], 4)[1], torch.cat([weight[1], weight[5]]))


def test_a_module_with_an_unknown_tensor_of_as_many_entries_stays():
    state = {
        "mlp.gate_proj.weight": torch.randn(8, 3),
        "mlp.up_proj.weight": torch.randn(8, 3),
        "mlp.down_proj.weight": torch.randn(3, 8),
        "mlp.down_proj.bias": torch.randn(3),
    }
    assert len(unit_groups(state)) == 1
    assert unit_groups({**state, "mlp.inner_norm.weight": torch.ones(8)}) == []
    assert len(unit_groups({**state, "mlp.gate.weight": torch.ones(2, 3)})) == 1


def test_transformers_that_cannot_be_aligned_are_refused():
    state = llama(0).state_dict()
    with pytest.raises(InvalidInput, match="different shapes"):
        align_units(state, {**state, "lm_head.weight": torch.zeros(3, 16)}, OtSettings())
    unknown = {"attn.query.weight": torch.randn(3, 3)}
    with pytest.raises(InvalidInput, match="knows no units"):
        merge_state_dicts("ot_fusion", [unknown, {"attn.query.weight": torch.randn(3, 3)}])

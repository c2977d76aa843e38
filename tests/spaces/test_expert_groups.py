"""Groups of the tensors of mixtures of experts, by the names that checkpoints have."""

import pytest

from evomerge.catalogue import build_catalogue
from evomerge.documents import validate
from evomerge.errors import InvalidInput
from evomerge.spaces.groups import divide
from evomerge.spaces.space import Groups

# Names inside of a layer -> the part that they belong to.
NAMES = {
    "self_attn.q_proj.weight": "rest",
    "self_attn.gate.weight": "rest",
    "input_layernorm.weight": "rest",
    "mlp.up_proj.weight": "rest",
    "block_sparse_moe.gate.weight": "router",
    "mlp.gate.weight": "router",
    "mlp.gate.e_score_correction_bias": "router",
    "mlp.shared_expert_gate.weight": "router",
    "mlp.moe_statics.e_score_correction_bias": "router",
    "block_sparse_moe.router.layer.weight": "router",
    "feed_forward.router.weight": "router",
    "feed_forward.expert_bias": "router",
    "mlp.shared_expert.gate_proj.weight": "shared_experts",
    "mlp.shared_experts.down_proj.weight": "shared_experts",
    "shared_mlp.input_linear.weight": "shared_experts",
    "block_sparse_moe.experts.11.w1.weight": "experts",
    "mlp.experts.2.gate_proj.weight": "experts",
    "feed_forward.experts.2.down_proj.weight": "experts",
    "mlp.experts.gate_up_proj": "experts",
    "mlp.experts.down_proj_bias": "experts",
    "block_sparse_moe.input_linear.weight": "experts",
}


def divided(names, **groups):
    """Label of a group -> the names inside of a layer that it holds."""
    entries = {f"model.layers.0.{name}": ((4, 4), "float32") for name in names}
    found = divide(build_catalogue(entries), validate(Groups, groups, "test"))
    return {group.label: {name.removeprefix("model.layers.0.") for name in group.tensors} for group in found}


def test_routers_shared_and_routed_experts_are_grouped_apart():
    groups = divided(NAMES, depth="global", parts=["router", "shared_experts", "experts"])
    assert groups == {part: {name for name in NAMES if NAMES[name] == part} for part in set(NAMES.values())}


def test_what_is_named_no_finer_stays_in_the_mlp():
    groups = divided(NAMES, depth="layers", parts=["mlp", "router"])
    assert groups["layer0.router"] == {name for name in NAMES if NAMES[name] == "router"}
    assert {"mlp.experts.gate_up_proj", "mlp.up_proj.weight"} <= groups["layer0.mlp"]


def test_each_expert_can_have_a_group_of_its_own():
    names = [name for name in NAMES if NAMES[name] != "experts" or ".2." in name or ".11." in name]
    groups = divided(names, depth="global", parts=["each_expert"])
    assert groups.keys() == {"expert2", "expert11", "rest"}
    assert groups["expert2"] == {"mlp.experts.2.gate_proj.weight", "feed_forward.experts.2.down_proj.weight"}


def test_experts_that_are_stored_in_one_tensor_have_no_group_each():
    with pytest.raises(InvalidInput, match=r"mlp\.experts\.down_proj_bias holds all experts of its layer"):
        divided(["mlp.experts.down_proj_bias"], depth="global", parts=["each_expert"])

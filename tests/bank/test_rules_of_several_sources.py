"""A recipe whose rules merge different sources in different orders, as layer-wise fusion makes them."""

from pathlib import Path

import pytest
import torch

from evomerge.bank import WeightBank
from evomerge.checkpoints import open_source
from evomerge.merging import merge_state_dicts
from evomerge.recipe import ModelRef
from evomerge.spaces import load_space
from evomerge.spaces.bound import bind

TOY = Path(__file__).parent.parent.parent / "examples" / "toy" / "models"
EXPERTS = ("reverse", "sort", "swap")
METHODS = ("ties", "slerp", "slerp")


def params_of(space, kind):
    """TIES in the first two layers, then two pairs: one in the sources' order, the other not."""
    scores = ({}, {"reverse": 0.9, "swap": 0.4, "sort": 0.1}, {"swap": 0.9, "sort": 0.6, "reverse": 0.2})
    params = dict(space.initial[0])
    for group, method in enumerate(METHODS):
        layers = f"layers{2 * group}-{2 * group + 1}"
        params[f"{layers}.method" if kind == "lfs" else f"layer_selection_method_{group}"] = method
        for source, score in scores[group].items():
            for part in ("attention", "mlp", "rest"):
                params[f"{layers}.{part}.slerp.{source}.score"] = score
            for part in ("self_attn", "mlp", "base"):
                params[f"model_{source}_layer_{group}_paramset_{part}_method_slerp_param_slerp_t"] = score
    for name in space.active(params):
        params.setdefault(name, 0.7)
    for group, part in ((0, each) for each in ("self_attn", "mlp", "base")):
        params[f"layer_{group}_paramset_{part}_method_ties_param_param_value_mask_rate"] = 0.3
        params[f"layer_{group}_paramset_{part}_method_ties_param_scaling_coefficient"] = 0.7
    return {name: params[name] for name in space.active(params)}


@pytest.mark.parametrize("kind", ["lfs", "lfs-flat"])
def test_every_rule_is_what_merge_state_dicts_defines_for_its_sources(kind):
    base = open_source(ModelRef("base", str(TOY / "base")))
    opened = {name: open_source(ModelRef(name, str(TOY / name)), like=base) for name in EXPERTS}
    refs = [source.ref for source in opened.values()]
    space = bind(load_space(kind), base.catalogue, base.ref, refs, dtype="float32", seed=1)
    recipe = space.decode(params_of(space, kind))
    assert {rule.sources for rule in recipe.rules} == {EXPERTS, ("reverse", "swap"), ("swap", "sort")}

    torch.set_num_threads(1)
    bank = WeightBank(base, list(opened.values()), dtype=torch.float32, device=torch.device("cpu"))
    merged = dict(bank.merged(recipe))
    for rule in recipe.rules:
        reference = merge_state_dicts(
            rule.method,
            [{name: opened[source].tensors[name].float() for name in rule.tensors} for source in rule.sources],
            {name: base.tensors[name].float() for name in rule.tensors},
            {name: list(value) if isinstance(value, tuple) else value for name, value in rule.parameters.items()},
            dict(rule.options),
        )
        for name in rule.tensors:
            assert torch.equal(merged[name], reference[name]), (rule.method, name)

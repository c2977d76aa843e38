"""A search over a choice of many methods: it runs, goes on where it was stopped, and exports what it scored."""

import itertools
from pathlib import Path

from safetensors.torch import load_file

from evomerge import load_spec
from evomerge.cli import run_command
from evomerge.merging import merge_state_dicts
from evomerge.opening.inputs import open_inputs
from evomerge.recipe import Recipe
from evomerge.search.run import run_search
from evomerge.spaces import load_space
from evomerge.spec import override

SPACE = "mixed-methods-wide"
METHODS = set(load_space(SPACE).methods)


def search(path, trials):
    return run_search(override(load_spec(path), trials=trials), ray="none")


def test_it_has_every_method_of_mixed_methods_with_the_same_parameters():
    narrow = load_space("mixed-methods")
    assert {name: load_space(SPACE).methods[name] for name in narrow.methods} == narrow.methods
    assert {"consensus", "tsv_m", "iso_c", "wudi", "della", "breadcrumbs"} <= METHODS


def test_a_search_that_is_stopped_goes_on_with_the_same_proposals(write_spec):
    whole = search(write_spec("whole.yaml", space=SPACE, sampler="tpe", name="whole", baselines=[]), trials=8)
    path = write_spec(space=SPACE, sampler="tpe", baselines=[])
    search(path, trials=3)
    pieces = search(path, trials=8)
    assert [trial.params for trial in pieces.trials] == [trial.params for trial in whole.trials]
    assert [trial.value for trial in pieces.trials] == [trial.value for trial in whole.trials]
    chosen = {value for trial in whole.trials for name, value in trial.params.items() if name.endswith(".method")}
    assert len(chosen) >= 6


def test_merges_that_have_all_methods_by_turns_are_exported_as_the_library_makes_them(write_spec, tmp_path):
    path = write_spec(space=SPACE, sampler="tpe", baselines=[], dtype="float32", budget={"trials": 1})
    space = open_inputs(load_spec(path)).space
    blocks = [name for name in space.distributions if name.endswith(".method")]
    search(path, trials=1)
    turns = [sorted(METHODS)[first : first + len(blocks)] for first in range(0, len(METHODS), len(blocks))]
    for turn in turns:
        params = dict(zip(blocks, itertools.islice(itertools.cycle(turn), len(blocks)), strict=True))
        params |= {name: middle(space, name) for name in space.active(params) if name not in params}
        given = ",".join(f"{name}={value}" for name, value in params.items())
        assert run_command(["try", str(path), "--params", given]) == 0
    search(path, trials=1 + len(turns))
    for trial, turn in enumerate(turns, start=1):
        out = tmp_path / f"merge-{trial}"
        assert run_command(["export", str(path), "--trial", str(trial), "--out", str(out)]) == 0
        recipe = Recipe.from_json((out / "recipe.json").read_text())
        assert {rule.method for rule in recipe.rules} == set(turn)
        exported = load_file(out / "model.safetensors")
        # Thresholds of TIES over more than 10^5 elements are from a table, and may keep an element of these otherwise.
        allowed = {"ties": 4}
        for method, tensors in reference(recipe).items():
            others = sum(int((exported[name] != tensor).sum()) for name, tensor in tensors.items())
            assert others <= allowed.get(method, 0), method


def reference(recipe):
    """Method -> its merged tensors."""
    models = {
        ref.name: {name: tensor.float() for name, tensor in load_file(Path(ref.location) / "model.safetensors").items()}
        for ref in (recipe.base, *recipe.sources)
    }
    merged = {}
    for rule in recipe.rules:
        base, *sources = (
            {name: models[model][name] for name in rule.tensors} for model in (recipe.base.name, *rule.sources)
        )
        # Elements are trimmed over the group, which here is all that there is.
        options = {**rule.options, **({"trim_scope": "global"} if "trim_scope" in rule.options else {})}
        made = merge_state_dicts(rule.method, sources, base, rule.parameters, options, seed=recipe.seed)
        merged.setdefault(rule.method, {}).update(made)
    return merged


def middle(space, name):
    distribution = space.distributions[name]
    return (distribution.low + distribution.high) / 2

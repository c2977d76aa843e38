"""Bad input for every method that a search or a baseline has: refused with exit code 2, before anything is written."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from evomerge.cli import run_command
from evomerge.methods import resolve_options, resolve_parameters
from evomerge.recipe import ModelRef, Recipe, Rule

MODELS = Path(__file__).parent.parent.parent / "examples" / "toy" / "models"
BASE, REVERSE, SORT, SHIFT = (
    {"name": name, "location": str(MODELS / name)} for name in ("base", "reverse", "sort", "shift")
)
THREE = [BASE, REVERSE, SORT, SHIFT]


def space(method, parameters, options=None, depth="global"):
    return {
        "name": "s",
        "groups": {"depth": depth},
        "methods": {method: {"parameters": parameters, "options": options or {}}},
    }


def genome(**settings):
    return {"name": "s", "genome": settings}


def upto(high, low=0.0, **more):
    return {"low": low, "high": high, **more}


LAYERS = "6 layers cannot be divided into groups of 4"

SPACES = {
    "pcb, a density above 1": (space("pcb", {"density": upto(2.0)}), "density = 2.0 is outside"),
    "pcb, a fixed density below 0": (space("pcb", {"density": -1.0, "weight": upto(1.0)}), "density = -1.0 is outside"),
    "pcb, no such variant": (space("pcb", {"weight": upto(1.0)}, {"variant": "mian"}), "did you mean 'main'"),
    "pcb, nothing to search": (space("pcb", {"weight": 1.0}), "nothing to search"),
    "pcb, a list": (space("pcb", {"weight": [1.0, 2.0]}), "methods.pcb.parameters.weight: give 'key: value' pairs"),
    "pcb, ends that are turned round": (space("pcb", {"weight": upto(0.5, low=1.0)}), "low < high must hold"),
    "emr": (space("emr", {}), "it makes a model for one task"),
    "emr, with its task": (space("emr", {}, {"task": 0}), "compare with it as the baseline emr"),
    "opcm, alpha up to 1": (
        space("opcm", {"alpha": upto(1.0)}),
        "alpha = 1.0 is outside of what the method allows (from 0, below 1)",
    ),
    "opcm, alpha 1": (space("opcm", {"alpha": 1.0}), "alpha = 1.0 is outside"),
    "opcm, alpha 1 of two": (space("opcm", {"alpha": {"choices": [0.5, 1.0]}}), "alpha = 1.0 is outside"),
    "opcm, alpha in words": (
        space("opcm", {"alpha": {"choices": [0.5, "much"]}}),
        "alpha is a number (from 0, below 1), but got",
    ),
    "opcm, alpha by source": (
        space("opcm", {"alpha": upto(0.5, shared="sources")}),
        "alpha is one number, not one per source",
    ),
    "opcm, no such option": (space("opcm", {"alpha": upto(0.5)}, {"split": "doc"}), "unknown option of 'opcm'"),
    "fisher, no text to measure on": (space("fisher", {"power": upto(1.0)}), "reverse, sort name no calibration"),
    "fisher, a power below 0": (space("fisher", {"power": upto(1.0, low=-1.0)}), "power = -1.0 is outside"),
    "fisher, no such floor": (space("fisher", {"power": upto(1.0)}, {"floor_on": "some"}), "known: all, target"),
    "fisher, weights that are ratios": (space("fisher", {"weight": upto(1.0)}), "write weight: {log_ratio: 3}"),
    "regmean, no text to measure on": (space("regmean", {"scaling": upto(1.0)}), "reverse, sort name no calibration"),
    "regmean, a scaling above 1": (space("regmean", {"scaling": upto(2.0)}), "scaling = 2.0 is outside"),
    "regmean, a ridge below 0": (space("regmean", {"ridge": upto(1.0, low=-1.0)}), "ridge = -1.0 is outside"),
    "ot_fusion, t above 1": (space("ot_fusion", {"t": upto(1.5)}), "t = 1.5 is outside"),
    "ot_fusion, activations": (
        space("ot_fusion", {"t": upto(1.0)}, {"mode": "acts"}),
        "under mode: acts it needs statistics",
    ),
    "ot_fusion, no entropy": (space("ot_fusion", {"reg": upto(1.0)}, {"solver": "sinkhorn"}), "reg = 0.0 is outside"),
    "slerp, t below 0": (space("slerp", {"t": upto(1.0, low=-0.5)}), "t = -0.5 is outside"),
    "lfs, layers that do not divide": (genome(lfs={"granularity": 4}), LAYERS),
    "lfs, a filter without tensors": (genome(lfs={"granularity": 2, "filters": ["experts"]}), "the filter 'experts'"),
    "lfs, options of no method": (genome(lfs={"granularity": 2, "options": {"dare": {}}}), "options are for linear"),
    "lfs, no granularity": (genome(lfs={}), "'space.genome.lfs.granularity' is missing"),
    "lfs, methods besides": (
        {**space("pcb", {"weight": upto(1.0)}), **genome(lfs={"granularity": 2})},
        "leave groups and methods out",
    ),
    "evolutionary, no such method": (genome(evolutionary={"method": "fisher"}), "method is one of linear"),
    "evolutionary, layers that do not divide": (
        genome(evolutionary={"method": "ties", "layer_granularity": 4}),
        LAYERS,
    ),
}


def assert_refused(spec, tmp_path, capsys, says):
    """Check and run both end with code 2 and one line that says so, and leave no file behind."""
    before = sorted(tmp_path.rglob("*"))
    for command in (["check", str(spec)], ["run", str(spec), "--ray", "none"]):
        assert run_command(command) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1
        assert says in lines[0]
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("place", ["a file", "the spec"])
@pytest.mark.parametrize("case", SPACES)
def test_a_space_that_a_method_does_not_allow_is_refused(write_spec, tmp_path, capsys, case, place):
    content, says = SPACES[case]
    if place == "a file":
        (tmp_path / "space.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        says = says.replace("space.genome", "genome")
    spec = write_spec(space=content if place == "the spec" else "space.yaml", sampler="catcma")
    assert_refused(spec, tmp_path, capsys, says)


@pytest.mark.parametrize(
    ("content", "sources", "says"),
    [
        (space("ot_fusion", {"t": upto(1.0)}), THREE, "ot_fusion merges exactly 2 sources"),
        (space("slerp", {"t": upto(1.0)}), THREE, "or search slerp's score"),
        (space("slerp", {"score": upto(1.0)}), [BASE, SORT], "slerp merges at least 2 sources"),
        (genome(lfs={"granularity": 2}), [BASE, SORT], "sources needs 2 or more names"),
        (genome(evolutionary={"method": "slerp"}), [BASE, SORT], "sources needs 2 or more names"),
        *(
            (space(method, {"weight": upto(1.0)}), [SORT], "the base and at least one fine-tune")
            for method in ("pcb", "ties")
        ),
        (space("opcm", {"alpha": upto(0.5)}), [SORT], "the base and at least one fine-tune"),
    ],
)
def test_a_number_of_sources_that_a_method_cannot_merge_is_refused(
    write_spec, tmp_path, capsys, content, sources, says
):
    assert_refused(write_spec(space=content, sources=sources, sampler="catcma"), tmp_path, capsys, says)


@pytest.mark.parametrize("method", ["pcb", "opcm", "ot_fusion"])
def test_sources_of_another_shape_are_refused(write_spec, tmp_path, capsys, method):
    narrow = tmp_path / "narrow"
    shutil.copytree(MODELS / "sort", narrow)
    tensors = load_file(narrow / "model.safetensors")
    name = "model.layers.3.mlp.down_proj.weight"
    tensors[name] = torch.zeros(tensors[name].shape[0], 7, dtype=tensors[name].dtype)
    save_file(tensors, narrow / "model.safetensors", metadata={"format": "pt"})
    parameter = {"pcb": "weight", "opcm": "alpha", "ot_fusion": "t"}[method]
    sources = [BASE, REVERSE, {"name": "narrow", "location": str(narrow)}]
    spec = write_spec(space=space(method, {parameter: upto(0.9)}), sources=sources)
    assert_refused(spec, tmp_path, capsys, name)


@pytest.mark.parametrize(
    ("baseline", "says"),
    [
        ({"name": "ties", "density": 1.5}, "density = 1.5 is outside"),
        ({"name": "dare-ties", "drop_rate": -0.1}, "drop_rate = -0.1 is outside"),
        ({"name": "emr", "rescaler": "flat"}, "flat"),
        ({"name": "emr", "density": 0.1}, "density"),
    ],
)
def test_a_baseline_that_its_method_does_not_allow_is_refused(write_spec, tmp_path, capsys, baseline, says):
    assert_refused(write_spec(baselines=[baseline]), tmp_path, capsys, says)


def recipe_file(tmp_path, rule, **changes):
    sources = tuple(ModelRef(each["name"], each["location"]) for each in (REVERSE, SORT))
    recipe = Recipe(base=ModelRef("base", BASE["location"]), sources=sources, rules=(rule,), dtype="float32")
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps({**json.loads(recipe.to_json()), **changes}), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("method", "options", "files"),
    [
        ("emr", {"task": 0}, {}),
        ("opcm", {}, {}),
        ("fisher", {}, {"fisher": "0" * 64}),
        ("regmean", {}, {"grams": "0" * 64}),
    ],
)
def test_a_warm_start_without_a_place_is_refused(write_spec, tmp_path, capsys, method, options, files):
    rule = Rule(
        tensors=("model.norm.weight",),
        method=method,
        sources=("reverse", "sort"),
        parameters=resolve_parameters(method, {}, 2),
        options=resolve_options(method, options),
    )
    spec = write_spec(warm_start={"recipes": [recipe_file(tmp_path, rule, files=files)]})
    assert_refused(spec, tmp_path, capsys, "has no place in search space")


@pytest.mark.parametrize("method", ["fisher", "regmean"])
@pytest.mark.parametrize(
    ("calibration", "says"),
    [
        ({"file": "nowhere.txt", "items": 4}, "nowhere.txt' does not exist"),
        ({"task": "task_0", "items": 0}, "calibration.items"),
        ({"items": 4}, "give either task or file"),
        ({"task": "task_0", "items": 4}, "this evaluator has no calibration texts"),
    ],
)
def test_statistics_without_text_to_measure_them_on_are_refused(
    write_spec, tmp_path, capsys, method, calibration, says
):
    content = space(method, {{"fisher": "power", "regmean": "scaling"}[method]: upto(1.0)})
    sources = [BASE, *({**expert, "calibration": calibration} for expert in (REVERSE, SORT))]
    assert_refused(write_spec(space=content, sources=sources), tmp_path, capsys, says)

"""The baseline `given`: the merge that a user has is a row like others, with the weights of `evomerge merge`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from evomerge.baselines.freshness import build_key
from evomerge.checkpoints import tensor_digests
from evomerge.cli import run_command
from evomerge.errors import InvalidInput
from evomerge.leaderboard import leaderboard
from evomerge.opening.capacity import memory_of
from evomerge.opening.inputs import Inputs, open_inputs
from evomerge.recipe import Recipe
from evomerge.search.run import run_search
from evomerge.spec import load_spec
from evomerge.study.snapshot import SearchSnapshot
from evomerge.study.stored_search import read_search
from evomerge.verdict.records import read_verdict

MODELS = Path(__file__).parents[2] / "examples" / "toy" / "models"
GIVEN = {"name": "given", "recipe": "merge.yml"}


def merge_file(folder: Path, method: str = "linear", weights: tuple[float, float] = (0.7, 0.3), **content: Any) -> Path:
    """A file of mergekit's that merges the two experts of the toy search."""
    models = [
        {"model": str(MODELS / name), "parameters": {"weight": weight}}
        for name, weight in zip(("reverse", "sort"), weights, strict=True)
    ]
    path = folder / "merge.yml"
    path.write_text(yaml.safe_dump({"merge_method": method, "models": models, "dtype": "float32", **content}))
    return path


def opened(path: Path) -> Inputs:
    return open_inputs(load_spec(path))


def own_recipe(path: Path) -> Recipe:
    own = opened(path).own_merge
    assert own is not None
    return own.recipe


def tensors_of(folder: Path) -> dict[str, str]:
    return tensor_digests(load_file(folder / "model.safetensors").items())


@pytest.mark.parametrize(
    ("method", "content"),
    [("linear", {}), ("task_arithmetic", {"base_model": str(MODELS / "base")})],
    ids=["without a base", "over the base"],
)
def test_a_merge_that_the_user_has_is_a_row_with_the_weights_that_evomerge_merge_writes(
    write_spec, tmp_path, method, content
):
    file = merge_file(tmp_path, method, **content)
    path = write_spec(baselines=[GIVEN], dtype="float32", budget={"trials": 2})
    study = run_search(load_spec(path), ray="none")
    row = next(line for line in leaderboard(read_search(load_spec(path))) if line.label == "given")
    assert row.kind == "baseline"
    assert "given" in {each.baseline for each in read_verdict(study).comparisons}
    assert run_command(["export", str(path), "--trial", "given", "--out", str(tmp_path / "exported")]) == 0
    assert run_command(["merge", str(file), "--out", str(tmp_path / "merged"), "--device", "cpu"]) == 0
    assert tensors_of(tmp_path / "exported") == tensors_of(tmp_path / "merged")


def test_a_study_that_gains_the_users_merge_goes_on_and_another_content_of_its_file_is_made_again(write_spec, tmp_path):
    run_search(load_spec(write_spec(budget={"trials": 2})), ray="none")
    found = []
    for weights in ((0.7, 0.3), (0.2, 0.8)):
        merge_file(tmp_path, weights=weights)
        path = write_spec(baselines=["uniform-soup", GIVEN], budget={"trials": 2})
        study = run_search(load_spec(path), ray="none")
        lines = {line.label: line for line in leaderboard(read_search(load_spec(path)))}
        found.append(lines["given"].recipe)
    assert len(study.get_trials()) == 2
    assert found[0] != found[1]


def test_the_key_of_the_users_merge_is_of_the_content_of_its_file_wherever_it_lies(write_spec, tmp_path):
    keys = []
    for folder, weights in (("one", (0.7, 0.3)), ("two", (0.7, 0.3)), ("two", (0.6, 0.4))):
        (tmp_path / folder).mkdir(exist_ok=True)
        merge_file(tmp_path / folder, weights=weights)
        spec = load_spec(write_spec(baselines=[{**GIVEN, "recipe": f"{folder}/merge.yml"}]))
        (baseline,) = spec.chosen_baselines
        assert baseline.settings["recipe"] == str(tmp_path / folder / "merge.yml")
        keys.append(build_key(baseline, spec, SearchSnapshot(None, 0)))
    assert keys[0] == keys[1] != keys[2]


def test_models_of_a_recipe_are_known_by_content_and_get_the_names_of_the_search(write_spec, tmp_path):
    merge_file(tmp_path)
    imported = tmp_path / "export" / "recipe.json"
    imported.parent.mkdir()
    assert run_command(["import", "mergekit", str(tmp_path / "merge.yml"), "--out", str(imported)]) == 0
    content = json.loads(imported.read_text())
    for ref in (content["base"], *content["sources"]):
        ref["location"] = f"/another/machine/{ref['name']}"
    imported.write_text(json.dumps(content))
    names = {"base": "zero", "reverse": "one", "sort": "two"}
    sources = [{"name": name, "location": str(MODELS / folder)} for folder, name in names.items()]
    recipe = own_recipe(write_spec(sources=sources, baselines=[{**GIVEN, "recipe": "export"}]))
    assert (recipe.base.name, [ref.name for ref in recipe.sources]) == ("zero", ["one", "two"])
    assert {source for rule in recipe.rules for source in rule.sources} == {"one", "two"}
    assert (recipe.dtype, recipe.base.location) == ("bfloat16", str(MODELS / "base"))


def test_a_model_that_is_not_here_is_known_by_its_name_alone_and_check_says_so(write_spec, tmp_path, capsys):
    path = merge_file(tmp_path)
    path.write_text(path.read_text().replace(str(MODELS), "elsewhere"))
    assert run_command(["check", str(write_spec(baselines=[GIVEN]))]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "elsewhere/sort is taken for the source sort, by its name" in said
    assert "merge.yml is in float32; it is scored in bfloat16" in said


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("models/reverse", "models/count", r"models/count, which is no source of this search; it has base \("),
        ("linear", "nothing", "the method 'nothing' has no counterpart here"),
        ("linear", f"ties\nbase_model: {MODELS / 'sort'}", "make sort the base of the search"),
    ],
    ids=["another model", "no method", "task vectors over an expert"],
)
def test_what_the_search_cannot_score_is_refused_before_anything_is_made(write_spec, tmp_path, old, new, message):
    file = merge_file(tmp_path)
    file.write_text(file.read_text().replace(old, new, 1))
    path = write_spec(baselines=[GIVEN])
    assert run_command(["check", str(path)]) == 2
    with pytest.raises(InvalidInput, match=message):
        run_search(load_spec(path), ray="none")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("baselines", "message"),
    [
        (["given"], "recipe"),
        ([{"name": "given", "recipe": "nothing.yml"}], "nothing.yml"),
        ([GIVEN, GIVEN], "give it the file of one merge"),
    ],
)
def test_the_users_merge_has_one_file_that_is_there(write_spec, tmp_path, capsys, baselines, message):
    merge_file(tmp_path)
    assert run_command(["check", str(write_spec(baselines=baselines))]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def stack(folder: Path) -> Path:
    """A file of mergekit's with the six layers of one expert and two of the other."""
    slices = [
        {"sources": [{"model": str(MODELS / name), "layer_range": layers}]}
        for name, layers in (("reverse", [0, 6]), ("sort", [4, 6]))
    ]
    path = folder / "merge.yml"
    path.write_text(yaml.safe_dump({"merge_method": "passthrough", "slices": slices, "dtype": "float32"}))
    return path


def test_a_path_of_layers_is_scored_and_its_memory_is_counted_where_the_space_has_none(write_spec, tmp_path):
    file = stack(tmp_path)
    path = write_spec(baselines=[GIVEN], dtype="float32", budget={"trials": 1})
    assert memory_of(opened(path)).layers > memory_of(opened(write_spec("other.yaml", baselines=[]))).layers == 0
    run_search(load_spec(path), ray="none")
    assert run_command(["export", str(path), "--trial", "given", "--out", str(tmp_path / "exported")]) == 0
    assert run_command(["merge", str(file), "--out", str(tmp_path / "merged"), "--device", "cpu"]) == 0
    assert tensors_of(tmp_path / "exported") == tensors_of(tmp_path / "merged")


def test_a_space_that_cannot_be_made_of_the_users_merge_is_refused_with_the_reason(write_spec, tmp_path):
    stack(tmp_path)
    with pytest.raises(InvalidInput, match="it is a path of layers, which search space 'baselines-global' cannot"):
        own_recipe(write_spec(space="baselines-global", baselines=["uniform-soup", GIVEN]))
    merge_file(tmp_path, "ties", base_model=str(MODELS / "base"))
    space = {"name": "near", "around": "given", "groups": {"depth": "global"}, "factor": {"low": 0.5, "high": 1.5}}
    with pytest.raises(InvalidInput, match="merged by ties, which is not linear in the weights"):
        own_recipe(write_spec(space=space, baselines=[GIVEN]))

"""The example of several generations: a winner is a source of the next search, and the script goes on."""

from __future__ import annotations

import json
import re
from pathlib import Path

import generations
import optuna
import pytest
from safetensors.torch import load_file

from evomerge.recipe import Recipe


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def study(folder, name):
    return optuna.load_study(study_name=name, storage=f"sqlite:///{folder}/runs/{name}/study.db")


def test_the_winner_of_a_generation_is_a_source_of_the_next_one(folder, capsys):
    generations.main(trials=2)
    first, second = (folder / "runs" / f"generation-{number}" / "best" for number in (1, 2))
    recipe = Recipe.from_json((second / "recipe.json").read_text())
    assert [source.name for source in recipe.sources] == ["generation-1", "swap"]
    assert Path(recipe.sources[0].location) == first
    merged, parent = (load_file(each / "model.safetensors") for each in (second, first))
    assert merged.keys() == parent.keys()
    assert any(not merged[name].equal(parent[name]) for name in merged)
    printed = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in printed[:2]] == ["generation-1", "generation-2"]
    assert printed[-1] == "the last winner is in runs/generation-2/best"

    before = {number: study(folder, f"generation-{number}").trials for number in (1, 2)}
    generations.main(trials=2)
    assert {number: study(folder, f"generation-{number}").trials for number in (1, 2)} == before


def test_an_item_that_is_held_out_in_one_generation_is_held_out_in_all(folder):
    from evomerge.evaluation.factory import build_evaluator
    from evomerge.recipe import ModelRef

    base = ModelRef("base", str(generations.MODELS / "base"))
    built = [build_evaluator(str(generations.EVALUATOR), base=base, seed=seed) for seed in (1, 2)]
    parts = [{part: set(ids["private_words"]) for part, ids in each.split.parts.items()} for each in built]
    assert parts[0] == parts[1]


def test_the_command_of_the_readme_is_that_of_the_script():
    text = (Path(generations.__file__).parent / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert block.splitlines()[-1] == "python generations.py --trials 16"
    assert json.dumps(generations.EXPERTS) == '["sort", "swap"]'

"""Policies of a spec: in its identity where it names some, and in the search, its export and its recipe."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from evomerge.cli import run_command
from evomerge.opening.inputs import open_inputs
from evomerge.recipe import ModelRef, Recipe
from evomerge.spec import SearchSpec, load_spec

MakeRef = Callable[..., ModelRef]


@pytest.fixture
def spec_file(tmp_path: Path, make_ref: MakeRef, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A spec with an expert that has its tokens in another order, one of its own, and one tensor for both ends."""
    monkeypatch.chdir(tmp_path)
    refs = make_ref("start", "abcd"), make_ref("other", "dcbx", tied=True)
    content = {
        "name": "fitted",
        "sources": [{"name": ref.name, "location": ref.location} for ref in refs],
        "space": "task-arithmetic-per-block",
        "evaluator": {"name": "synthetic", "items": 40},
        "tokenizer": "base",
        "missing": "base",
        "budget": {"trials": 1},
        "baselines": [],
        "dtype": "float32",
    }
    path = tmp_path / "search.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def _identity(spec: SearchSpec) -> dict[str, object]:
    names = [source.name for source in spec.sources]
    return spec.identity(dict.fromkeys(names, "content"), "evaluator", {})


def test_a_spec_without_policies_is_stored_and_compared_as_before(spec_file: Path) -> None:
    named = load_spec(spec_file)
    plain = named.model_copy(update={"tokenizer": None, "missing": "error"})
    assert {"tokenizer", "missing"} <= json.loads(named.to_json()).keys()
    assert not {"tokenizer", "missing"} & json.loads(plain.to_json()).keys()
    assert _identity(named) == {**_identity(plain), "tokenizer": "base", "missing": "base"}
    assert all(ref.content().keys() == {"name", "location", "revision", "fingerprint"} for ref in plain.expert_refs)


def test_a_search_over_another_vocabulary_is_checked_run_exported_and_made_again(
    spec_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["check", str(spec_file), "--json"]) == 0
    told = capsys.readouterr().out
    assert "1 tokens that the base lacks are left out: 'x'" in told
    assert "lm_head.weight is one tensor with model.embed_tokens.weight in it" in told
    assert run_command(["run", str(spec_file), "--ray", "none"]) == 0
    assert run_command(["export", str(spec_file), "--out", "best"]) == 0
    assert run_command(["merge", "best/recipe.json", "--out", "again"]) == 0
    made, again = load_file("best/model.safetensors"), load_file("again/model.safetensors")
    assert made.keys() == again.keys()
    assert all(torch.equal(made[name], again[name]) for name in made)
    recipe = Recipe.from_json(Path("best/recipe.json").read_text())
    assert (recipe.sources[0].tokenizer, recipe.sources[0].missing) == ("base", "base")
    base = open_inputs(load_spec(spec_file)).base.tensors["model.embed_tokens.weight"]
    kept = (made["model.embed_tokens.weight"] == base).all(dim=1)
    assert kept.tolist() == [True, False, False, False]  # a, which the expert lacks


def test_distances_between_its_sources_are_those_of_the_same_tokens(
    spec_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["distances", "start", "other", "--spec", str(spec_file), "--json"]) == 0
    parts = {row["part"]: row["l2"] for row in json.loads(capsys.readouterr().out)["distances"]}
    inputs = open_inputs(load_spec(spec_file))
    start, other = inputs.base.tensors, inputs.experts[0].weights.tensors["model.embed_tokens.weight"]
    same_tokens = start["model.embed_tokens.weight"][1:] - other[[2, 1, 0]]  # b, c, d
    assert parts["embedding"] == pytest.approx(float(same_tokens.norm()), rel=1e-5)


def test_a_union_is_made_beforehand_as_the_refusal_says(spec_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = yaml.safe_load(spec_file.read_text())
    spec_file.write_text(yaml.safe_dump({**content, "tokenizer": "union"}))
    assert run_command(["check", str(spec_file)]) == 2
    assert "`evomerge extend-vocabulary BASE EXPERT … --out FOLDER` writes a base" in capsys.readouterr().err


def test_without_its_policies_the_study_is_another_one(spec_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = yaml.safe_load(spec_file.read_text())
    del content["tokenizer"]
    spec_file.write_text(yaml.safe_dump(content))
    assert run_command(["run", str(spec_file), "--ray", "none"]) == 2
    assert "`tokenizer: base` in search.yaml aligns vocabularies by token" in capsys.readouterr().err


def test_an_expert_whose_tokens_have_changed_places_is_refused_though_its_weights_are_the_same(
    spec_file: Path, make_ref: MakeRef, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["run", str(spec_file), "--ray", "none"]) == 0
    make_ref("other", "cdbx", tied=True)
    assert run_command(["run", str(spec_file), "--ray", "none"]) == 4
    assert "beside the weights.tokens of other was" in capsys.readouterr().err

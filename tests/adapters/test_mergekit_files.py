"""Merges of adapters as mergekit's files, where an adapter is named with its base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lora_models import open_base, save_adapter, save_base
from safetensors.torch import load_file

from evomerge.adapters import open_expert
from evomerge.methods import resolve_options
from evomerge.recipe import ModelRef, Recipe, Rule
from evomerge.static_merges.static_merge import merge_file


def _recipe(folder: Path, method: str) -> Recipe:
    base = open_base(save_base(folder / "base"))
    experts = [
        open_expert(ModelRef(name, str(save_adapter(folder / "base", folder / name, seed=seed))), base=base)
        for seed, name in enumerate(("one", "two"))
    ]
    rule = Rule(
        tensors=tuple(entry.name for entry in base.catalogue.mergeable),
        method=method,
        sources=("one", "two"),
        parameters={"weight": (0.5, 0.25)},
        options=resolve_options(method, {}),
    )
    return Recipe(base=base.ref, sources=tuple(expert.ref for expert in experts), rules=(rule,), dtype="float32")


def _merge(file: Path, out: Path) -> dict[str, Any]:
    return merge_file(file, out, places={}, device="cpu", fingerprints=True)


@pytest.mark.parametrize("method", ["task_arithmetic", "linear"])
def test_a_merge_of_adapters_is_read_back_from_the_mergekit_file_beside_it(method: str, tmp_path: Path) -> None:
    recipe, out, again = _recipe(tmp_path, method), tmp_path / "out", tmp_path / "again"
    file = tmp_path / "recipe.json"
    file.write_text(recipe.to_json())
    _merge(file, out)
    models = [each["model"] for each in yaml.safe_load((out / "mergekit.yaml").read_text())["models"]]
    assert models == [f"{tmp_path}/base+{tmp_path}/{name}" for name in ("one", "two")]
    assert _merge(out / "mergekit.yaml", again)["recipe"] == recipe.digest
    first, second = (load_file(folder / "model.safetensors") for folder in (out, again))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_an_adapter_beside_the_file_is_found_and_can_be_named(tmp_path: Path) -> None:
    recipe = _recipe(tmp_path, "linear")
    models = [{"model": f"base+{name}", "parameters": {"weight": 0.5}} for name in ("one", "two")]
    file = tmp_path / "merge.yml"
    file.write_text(yaml.safe_dump({"merge_method": "linear", "models": models, "dtype": "float32"}))
    merged = merge_file(file, tmp_path / "out", places={"math": "one"}, device="cpu", fingerprints=True)
    assert merged["notes"] == []
    found = Recipe.from_json((tmp_path / "out" / "recipe.json").read_text())
    assert found.base.fingerprint == recipe.base.fingerprint
    assert {ref.name: ref.fingerprint for ref in found.sources} == {
        "math": recipe.sources[0].fingerprint,
        "two": recipe.sources[1].fingerprint,
    }

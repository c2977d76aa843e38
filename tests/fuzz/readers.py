"""Readers of files and studies of others, each as a function of a source of chance that reads one mutated input."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any

import torch
import yaml
from safetensors.torch import save

from evomerge.checkpoints.json_files import read_object
from evomerge.checkpoints.recipe_files import from_bytes
from evomerge.checkpoints.safetensors_files import INDEX, ONE_FILE, read_headers
from evomerge.checkpoints.weights import open_weights
from evomerge.errors import InvalidInput
from evomerge.interjection import deadline
from evomerge.packs.pack import check_allowed, load_pack
from evomerge.packs.split import split_from_json
from evomerge.recipe import ModelRef, PathLayer, Recipe, RecipeSet, Rule, check_ingredients
from evomerge.report.status_report import status_document, status_text
from evomerge.report.terminal import json_text
from evomerge.samplers.reference_points import read_reference_points
from evomerge.spaces.space_files import known_spaces, load_space
from evomerge.spec import load_spec
from evomerge.storage import attributes
from evomerge.study.identity import read_identity
from evomerge.study.stored_spec import stored_spec
from evomerge.study.study_ingredients import StudyIngredients, read_ingredients
from evomerge.study.study_statistics import StudyStatistics, read_statistics
from evomerge.verdict.records import read_digests, read_verdict, read_winner

sys.path.append(str(Path(__file__).parent))

from mutations import as_json, as_yaml, damaged, mutated

ROOT = Path(__file__).parent.parent.parent
TOY = ROOT / "examples" / "toy" / "models"
SECONDS = 30.0  # after which an input counts as a hang, on a machine with other work

SPECS = (
    {
        "name": "sim",
        "sources": [{"name": name, "location": str(TOY / name)} for name in ("base", "reverse", "sort")],
        "space": "task-arithmetic-per-block",
        "evaluator": {"name": "synthetic", "items": 40},
        "objective": {"aggregate": "weighted_mean", "weights": {"task_0": 1.0}, "normalise": "sources"},
        "sampler": {"name": "cma", "sigma0": 0.3},
        "fidelity": {"name": "race", "block": 16, "minimum": 16, "alpha": 0.05},
        "budget": {"trials": 6, "hours": 1.5, "patience": 3, "futility": 0.1},
        "workers": {"count": 1, "cpus": 1, "resources": {"slot": 1.0}, "timeout": 60},
        "baselines": ["uniform-soup", {"name": "ties", "density": 0.5}],
        "verdict": {"best": 2, "margin": 0.1},
        "storage": "sqlite:///runs/sim/study.db",
        "artifacts": "runs/sim/artifacts",
        "dtype": "float32",
        "seed": 1,
        "allow": ["task_code"],
    },
    {
        "name": "keyed",
        "sources": {"base": str(TOY / "base"), "sort": {"location": str(TOY / "sort"), "revision": "main"}},
        "space": yaml.safe_load((ROOT / "search_spaces" / "ties-per-block.yaml").read_text(encoding="utf-8")),
        "evaluator": "toy-skills",
        "objective": {"aggregate": "pareto", "constraints": [{"task": "all", "at_least": "base", "tolerance": 0.1}]},
        "sampler": "nsgaii",
        "warm_start": {"baselines": 1, "recipes": [], "studies": [{"name": "a", "storage": "sqlite:///a.db"}]},
        "baselines": ["uniform-soup"],
    },
)
REF = ModelRef("base", "/models/base", fingerprint="f" * 64)
RECIPE = Recipe(
    base=REF,
    sources=(ModelRef("sort", "/models/sort", revision="main", fingerprint="e" * 64),),
    rules=(
        Rule(
            tensors=("a.weight", "b.weight"),
            method="ties",
            sources=("sort",),
            parameters={"density": (0.5,), "lambda": 1.0, "weight": (1.0,)},
            options={"trim_scope": "tensor"},
        ),
    ),
    dtype="float32",
    seed=3,
    files={"coefficients": "d" * 64},
)
RECIPES = (
    RECIPE,
    Recipe(
        base=REF, sources=(), rules=(), dtype="bfloat16", layers=(PathLayer("base", 0, 1.0), PathLayer("base", 1, 0.5))
    ),
    Recipe(base=REF, sources=RECIPE.sources, rules=(), dtype="float32", ingredients={"soup": RECIPE}),
)
SET = RecipeSet(recipes={"one": RECIPE}, tasks={"task_0": "one"}, stated=("task_0",))

TASK = {
    "task": "toy",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "items/toy.jsonl"}},
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{prompt}}",
    "doc_to_target": "{{answer}}",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}
PACK = {
    "name": "mine",
    "description": "words",
    "tasks_folder": "tasks",
    "tasks": [{"task": "toy", "metric": "acc", "weight": 1.0, "num_fewshot": 0, "limit": 5}],
    "split": {"by": "hash", "shares": {"search": 0.5, "held_out": 0.5}},
    "max_length": 64,
}
INDEXED = {"metadata": {"total_size": 24}, "weight_map": {"a": "one.safetensors", "b": "one.safetensors"}}
TENSORS = save({"a": torch.zeros(2, 2), "b": torch.ones(2, dtype=torch.bfloat16)})


class Stored:
    """A study as its attributes alone."""

    study_name = "sim"

    def __init__(self, user_attrs: dict[str, Any]) -> None:
        self.user_attrs = user_attrs

    def set_user_attr(self, key: str, value: Any) -> None:
        self.user_attrs[key] = value


def read_spec(random: Random) -> None:
    Path("search.yaml").write_bytes(as_yaml(mutated(random.choice(SPECS), random), random))
    load_spec("search.yaml").to_json()


def read_space(random: Random) -> None:
    name = random.choice(known_spaces())
    content = yaml.safe_load((ROOT / "search_spaces" / f"{name}.yaml").read_text(encoding="utf-8"))
    Path("space.yaml").write_bytes(as_yaml(mutated(content, random), random))
    load_space("space.yaml")


def read_pack(random: Random) -> None:
    task, pack = (mutated(each, random) if random.random() < 0.6 else each for each in (TASK, PACK))
    Path("pack/tasks/toy.yaml").write_bytes(as_yaml(task, random))
    Path("pack/evaluator.yaml").write_bytes(as_yaml(pack, random))
    found = load_pack("pack")
    check_allowed(found, random.choice([(), ("task_code", "benchmark_test_sets")]))
    _ = found.fingerprint


def read_recipe(random: Random) -> None:
    content = json.loads(random.choice(RECIPES).to_json())
    found = Recipe.from_json(_text(as_json(mutated(content, random), random)))
    check_ingredients(found)
    found.to_json()
    _ = found.digest


def read_recipe_set(random: Random) -> None:
    found = RecipeSet.from_json(_text(as_json(mutated(json.loads(SET.to_json()), random), random)))
    found.to_json()
    _ = found.digest


def read_header(random: Random) -> None:
    length = int.from_bytes(TENSORS[:8], "little")
    header = as_json(mutated(json.loads(TENSORS[8 : 8 + length]), random), random)
    size = random.choice([len(header)] * 8 + [0, 2**63, 2**64 - 1, len(header) + 1])
    content = size.to_bytes(8, "little") + header + TENSORS[8 + length :]
    Path("model").mkdir(exist_ok=True)
    (Path("model") / ONE_FILE).write_bytes(damaged(content, random) if random.random() < 0.1 else content)
    weights = open_weights(Path("model"))
    weights.digests()
    for name in weights.tensors:
        _ = weights.tensors[name].sum()


def read_index(random: Random) -> None:
    Path("sharded").mkdir(exist_ok=True)
    (Path("sharded") / "one.safetensors").write_bytes(TENSORS)
    (Path("sharded") / INDEX).write_bytes(as_json(mutated(INDEXED, random), random))
    read_headers(Path("sharded"))


def read_config(random: Random) -> None:
    content = json.loads((TOY / "base" / "config.json").read_text(encoding="utf-8"))
    Path("config.json").write_bytes(as_json(mutated(content, random), random))
    read_object(Path("config.json"))


def read_recipe_file(random: Random) -> None:
    from_bytes(damaged(TENSORS, random))


def read_study(random: Random) -> None:
    """Attributes that stand in a study, one of them changed, with the digest that belongs to it."""
    study = Stored({})
    texts, values = _attributes()
    key = random.choice([*texts, *values])
    for name, content in texts.items():
        text = as_json(mutated(content, random), random) if name == key else json.dumps(content).encode()
        attributes.write_text(study, name, _text(text))
    for name, content in values.items():
        study.user_attrs[name] = mutated(content, random) if name == key else content
    if random.random() < 0.1:
        changed = mutated(study.user_attrs, random)
        study.user_attrs = changed if isinstance(changed, dict) else {}
    for read in _STUDY_READERS:
        with refused():
            read(study)


def _show_status(study: Any) -> None:
    class Search:
        pass

    search = Search()
    search.study = study
    document = status_document(search.study, None)
    status_text(document)
    json_text(document)


_STUDY_READERS: tuple[Callable[[Any], Any], ...] = (
    read_identity,
    lambda study: split_from_json(read_identity(study).split),
    lambda study: stored_spec(study, "sqlite:///x.db"),
    read_ingredients,
    read_statistics,
    read_verdict,
    lambda study: read_winner(study.user_attrs),
    lambda study: read_digests(study, 3),
    read_reference_points,
    _show_status,
)


def _attributes() -> tuple[dict[str, Any], dict[str, Any]]:
    """Texts and small values as a study holds them."""
    if not _CACHE:
        frozen = json.loads((Path(__file__).parent / "study.json").read_text(encoding="utf-8"))
        ingredients = StudyIngredients(recipes={"soup": RECIPE}, left_out={"dam": "no texts"})
        frozen["texts"][attributes.INGREDIENTS] = json.loads(ingredients.to_json())
        frozen["texts"][attributes.STATISTICS] = json.loads(StudyStatistics(files={"fishers": "d" * 64}).to_json())
        frozen["texts"][attributes.GOALS] = [{"values": [0.5, 0.5], "params": {"x": 0.5}}]
        _CACHE.update(frozen)
    return _CACHE["texts"], _CACHE["values"]


_CACHE: dict[str, Any] = {}

READERS: dict[str, tuple[Callable[[Random], None], int]] = {
    "spec": (read_spec, 6_000),
    "space": (read_space, 6_000),
    "pack": (read_pack, 6_000),
    "recipe": (read_recipe, 40_000),
    "recipe set": (read_recipe_set, 12_000),
    "safetensors header": (read_header, 16_000),
    "index of shards": (read_index, 8_000),
    "config": (read_config, 6_000),
    "file of a recipe": (read_recipe_file, 6_000),
    "study": (read_study, 16_000),
}


@contextmanager
def refused() -> Iterator[None]:
    """A part that is refused as it should be."""
    with suppress(InvalidInput):
        yield


def check(name: str, seed: int) -> None:
    """Read one input: it is read, or refused with an error of evomerge, soon, and nothing is done but reading."""
    reader, _ = READERS[name]
    with deadline(SECONDS), refused():
        reader(Random(f"{name} {seed}"))


def _text(content: bytes) -> str:
    return content.decode("utf-8", "replace")


def prepare(folder: Path) -> None:
    """The folder that inputs are written to, as working directory."""
    os.chdir(folder)
    Path("pack/tasks").mkdir(parents=True, exist_ok=True)
    Path("pack/items").mkdir(exist_ok=True)
    Path("pack/items/toy.jsonl").write_text('{"prompt": "a", "answer": 0}\n', encoding="utf-8")

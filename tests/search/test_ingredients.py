"""Searches whose candidates merge merges: exported as they were scored, rebuilt from the export, memory counted."""

import json
from dataclasses import replace
from pathlib import Path

import optuna
import torch
import yaml

from evomerge.artefacts.exported_files import take_files
from evomerge.bank import WeightBank
from evomerge.checkpoints import open_source, tensor_digest
from evomerge.cli import run_command
from evomerge.jobs import Score
from evomerge.methods import resolve_options, resolve_parameters
from evomerge.opening.capacity import memory_of
from evomerge.opening.inputs import open_inputs
from evomerge.packs.items import ItemBlock
from evomerge.recipe import ModelRef, Recipe, Rule
from evomerge.spec import load_spec
from evomerge.storage import attributes
from evomerge.worker import Worker

MERGES = ["uniform-soup", "task-arithmetic", "ties"]


def run(path, *more):
    return run_command(["run", str(path), "--ray", "none", *more])


def study():
    return optuna.load_study(study_name="sim", storage="sqlite:///runs/sim/study.db")


def exported(path, capsys, *more):
    capsys.readouterr()
    assert run_command(["export", str(path), "--out", "out", "--json", *more]) == 0
    return json.loads(capsys.readouterr().out)


def rebuilt():
    """Digests of the tensors that a bank makes of an export's recipe and the files beside it, and of the export's."""
    recipe = Recipe.from_json(Path("out/recipe.json").read_text())
    take_files(recipe, Path("out"), Path("taken"))
    base = open_source(recipe.base)
    experts = [open_source(ref, like=base) for ref in recipe.sources]
    bank = WeightBank(base, experts, dtype=torch.float32, device=torch.device("cpu"), files=Path("taken"))
    written = open_source(ModelRef("out", "out"))
    return (
        recipe,
        bank.live_digests(recipe),
        {name: tensor_digest(written.tensors[name]) for name in written.catalogue.names},
    )


def test_a_winner_that_is_a_merge_of_merges_is_exported_as_it_was_scored_and_rebuilt_from_the_export(
    write_spec, capsys
):
    path = write_spec(space="baselines-per-block", baselines=MERGES, dtype="float32", budget={"trials": 12})
    assert run(path) == 0
    document = exported(path, capsys)
    assert document["verified"]
    recipe, again, written = rebuilt()
    assert recipe.digest == document["recipe"]
    assert recipe.ingredients
    assert set(recipe.ingredients) <= set(MERGES)
    assert again == written


def test_a_merge_of_a_trained_merge_is_exported_with_its_coefficients(write_spec, pack, capsys):
    dam = {"name": "dam", "steps": 2, "batch_size": 2, "learning_rate": 0.01}
    path = write_spec(
        evaluator=str(pack),
        dtype="float32",
        space="baselines-global",
        baselines=[dam, "uniform-soup"],
        budget={"trials": 3},
    )
    content = yaml.safe_load(path.read_text())
    for source in content["sources"][1:]:
        source["calibration"] = {"task": f"toy_{source['name']}", "items": 16}
    path.write_text(yaml.safe_dump(content))
    assert run(path) == 0
    document = exported(path, capsys, "--trial", "2")
    recipe, again, written = rebuilt()
    assert recipe.digest == document["recipe"] == study().trials[2].user_attrs[attributes.RECIPE]
    digest = recipe.ingredients["dam"].files["coefficients"]
    assert [file.name for file in Path("out/recipe-files").iterdir()] == [f"{digest}.safetensors"]
    assert again == written
    assert document["mergekit"] == "its ingredient 'dam': mergekit has no counterpart of the method column_linear"
    assert "### dam" in Path("out/README.md").read_text()


def test_a_worker_that_takes_the_place_of_another_builds_the_same_merges_and_neighbours_share_them(
    write_spec, tmp_path, monkeypatch
):
    inputs = open_inputs(load_spec(write_spec(space="baselines-global", baselines=MERGES, dtype="float32")))
    names = tuple(entry.name for entry in inputs.catalogue.mergeable)
    experts = tuple(source.ref for source in inputs.experts)

    def rule(method, sources, **parameters):
        options = resolve_options(method, {})
        given = resolve_parameters(method, parameters, len(sources))
        return Rule(tensors=names, method=method, sources=sources, parameters=given, options=options)

    plain = Recipe(base=inputs.base.ref, sources=experts, rules=(), dtype="float32")
    made = {
        method: replace(plain, rules=(rule(method, tuple(ref.name for ref in experts)),))
        for method in ("linear", "ties", "dare_ties")
    }
    jobs = [
        Score(
            key=f"sim/{number}",
            recipe=replace(plain, rules=(rule("task_arithmetic", tuple(made), weight=weights),), ingredients=made),
            items=ItemBlock("search"),
            digests=True,
        )
        for number, weights in enumerate(([0.5, 0.25, 0.25], [1.25, -0.25, 0.0]))
    ]
    both = Worker(inputs.setup())
    first, second = (both.run(job).result.digests for job in jobs)
    assert first != second
    assert Worker(inputs.setup()).run(jobs[1]).result.digests == second

    monkeypatch.setattr("evomerge.bank.shared_tensors.temporary_folder", lambda: tmp_path / "temporary")
    neighbours = [Worker(replace(inputs.setup(), shared="run", neighbours=2)) for _ in range(2)]
    assert [worker.run(job).result.digests for worker in neighbours for job in jobs] == [first, second] * 2
    (folder,) = (tmp_path / "temporary").iterdir()
    assert sum(path.suffix != ".lock" for path in folder.iterdir()) == inputs.setup().ingredients == len(made)
    for worker in neighbours:
        worker.close()
    assert list((tmp_path / "temporary").iterdir()) == []


def test_check_counts_the_merges_that_a_space_is_made_of(write_spec, capsys):
    needs = {}
    for count in (1, 3):
        path = write_spec(space="baselines-global", baselines=MERGES[:count], dtype="float32")
        needs[count] = memory_of(inputs := open_inputs(load_spec(path)))
        assert inputs.setup().ingredients == count
    assert needs[3].ingredients == 3 * needs[1].ingredients == 3 * 4 * inputs.catalogue.parameters
    held = {}
    for space, baselines in (("baselines-global", MERGES), ("task-arithmetic-per-block", MERGES)):
        capsys.readouterr()
        assert run_command(["check", str(write_spec(space=space, baselines=baselines, dtype="float32")), "--json"]) == 0
        held[space] = json.loads(capsys.readouterr().out)
    more = [held[space]["placement"]["worker"] for space in ("baselines-global", "task-arithmetic-per-block")]
    assert more[0] - more[1] == needs[3].ingredients
    cost = [held[space]["cost"]["worker_bytes"] for space in ("baselines-global", "task-arithmetic-per-block")]
    assert cost[0] - cost[1] == needs[3].ingredients

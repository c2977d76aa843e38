"""Exporting a merge: the weights that were scored, as a model directory with recipe, model card and mergekit YAML."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import torch
from rich.text import Text

from evomerge.adapters import adapter_names, open_expert
from evomerge.artefacts import write_model
from evomerge.artefacts.adapter_writer import check_adapter_folder, largest_difference, write_adapter
from evomerge.artefacts.emr_artefact import check_emr_folder, position_of, write_emr
from evomerge.artefacts.exported_files import exported_names
from evomerge.artefacts.model_writer import check_model_folder
from evomerge.bank import WeightBank
from evomerge.bank.device_kind import chosen_device
from evomerge.baselines.freshness import current_baselines
from evomerge.baselines.named_recipes import source_rows
from evomerge.checkpoints import differing, tensor_digest, tensor_digests, verify_digests
from evomerge.errors import InvalidInput, unknown_name
from evomerge.export_probe import probe_export
from evomerge.mergekit.export_yaml import to_mergekit
from evomerge.merging.emr import rescaler_of
from evomerge.object_store.artifact_folder import ArtifactFolder
from evomerge.opening.inputs import Inputs, open_inputs
from evomerge.opening.open_study import stored_space
from evomerge.passes.kernels import DTYPES
from evomerge.recipe import ModelRef, Recipe, RecipeSet, all_files
from evomerge.search.stages import MEAN
from evomerge.search_card import SearchCard
from evomerge.study.command_line import command_line
from evomerge.study.rows import read_records
from evomerge.study.search_study import SearchStudy
from evomerge.study.snapshot import snapshot_of
from evomerge.study.stored_search import StoredSearch
from evomerge.verdict import read_digests, read_winner

__all__ = ["export_adapter", "export_merge"]

SCHEMA = 1
_ADAPTER = "These files are a LoRA adapter of the base; `PeftModel.from_pretrained(base, FOLDER)` loads it."
_HOW_TO_READ = (
    "`emr.json` has the formula, the base, the rescalers and the order of the bits in the masks; "
    "`evomerge.artefacts.emr_artefact.read_emr` reads the folder and rebuilds each model bit for bit."
)


@dataclass(frozen=True)
class _Chosen:
    """The merge to export: a trial, or a baseline by its label."""

    label: str
    recipe: Recipe
    trial: int | None


def export_merge(
    stored: StoredSearch,
    which: str,
    out: Path,
    file: Path | None = None,
    *,
    task: str | None = None,
    device: str | None = None,
) -> dict[str, Any]:
    """Write one merge of a search as a Hugging Face model directory.

    Args:
        which: "best", a trial's number, the name of a baseline, or that of the sampler's mean.
        file: the search.yaml that names the storage, see `command_line`.
        task: of a row that is several models: the model of this task. Without it they are written as one artefact, see
            `evomerge.artefacts.emr_artefact`.
        device: "cpu" or "cuda"; None: the accelerator where there is one.

    Raises:
        InvalidInput: no such trial, baseline, task or device, no winner yet, or `out` holds something that is not ours.
        WeightsDiffer: the weights are not those that were scored on this kind of device; names the tensors. On another
            kind of device they may differ in the last bit; then the result names them.
    """
    at, inputs = chosen_device(device), open_inputs(stored.spec)
    chosen = _choose(stored, inputs, which)
    reproduce = export_command(stored, which, out, file, task=task, device=device)
    if isinstance(chosen, RecipeSet) and task is None:
        return _export_set(stored, inputs, chosen, which, out=out, device=at, reproduce=reproduce)
    chosen = _of_task(chosen, which, task)
    yaml, reason = to_mergekit(chosen.recipe, inputs.catalogue, adapter_names(inputs.experts))
    named = ("README.md", *["mergekit.yaml"] * (yaml is not None))
    check_model_folder(out, base=inputs.base, recipe=chosen.recipe, files=named)
    files = _files_of(stored, [chosen.recipe])
    bank = _bank(inputs, files, at)
    expected = read_digests(stored.study, chosen.trial) if chosen.trial is not None else None
    actual: dict[str, str] = {}

    def verified() -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in bank.merged(chosen.recipe):
            actual[name] = tensor_digest(tensor)
            yield name, tensor
        if expected is not None and expected.device == bank.device_kind:
            verify_digests(expected.tensors, actual)

    card = SearchCard(stored, inputs, label=chosen.label, mergekit=yaml is not None)
    probe = probe_export(stored, inputs, bank, {chosen.label: chosen.recipe})
    texts = {"README.md": card.of_model(chosen.recipe, reproduce, sanity=probe.note)}
    if yaml is not None:
        texts["mergekit.yaml"] = yaml
    write_model(
        out,
        base=inputs.base,
        tensors=verified(),
        dtype=DTYPES[inputs.spec.dtype],
        recipe=chosen.recipe,
        files=texts,
        recipe_files={name: files / f"{digest}.safetensors" for name, digest in exported_names(chosen.recipe).items()},
    )
    return {
        "schema": SCHEMA,
        "model": chosen.label,
        "out": str(out.resolve()),
        "recipe": chosen.recipe.digest,
        "tensors": len(actual),
        "verified": expected is not None and dict(expected.tensors) == actual,
        "differs": [] if expected is None else differing(expected.tensors, actual),
        "devices": {"scored": None if expected is None else expected.device, "exported": bank.device_kind},
        "mergekit": None if yaml is not None else reason,
        "licenses": card.judgement.to_data(),
        "sanity": probe.to_document(),
    }


def export_adapter(
    stored: StoredSearch, which: str, out: Path, file: Path | None = None, *, device: str | None = None
) -> dict[str, Any]:
    """Write one merge of a search as a LoRA adapter of the base, where it is one: see `CoreMerges.products`.

    Base and adapter are added when they are loaded, and rounded otherwise than the merge: what `largest_difference` is,
    between two numbers of the search's dtype.

    Args:
        which, file, device: as `export_merge`.

    Raises:
        InvalidInput: as `export_merge`; the merge is no adapter.
    """
    at, inputs = chosen_device(device), open_inputs(stored.spec)
    chosen = _of_task(_choose(stored, inputs, which), which, None)
    check_adapter_folder(out, base=inputs.base, recipe=chosen.recipe)
    bank = _bank(inputs, _files_of(stored, [chosen.recipe]), at)
    products = bank.core_merges.products(chosen.recipe, bank.rule_tensors)
    reproduce = f"{export_command(stored, which, out, file, device=device)} --adapter"
    card = SearchCard(stored, inputs, label=chosen.label, adapter=True)
    probe = probe_export(stored, inputs, bank, {chosen.label: chosen.recipe})
    write_adapter(
        out,
        base=inputs.base,
        products=products,
        recipe=chosen.recipe,
        card=card.of_model(chosen.recipe, reproduce, _ADAPTER, sanity=probe.note),
    )
    written = open_expert(ModelRef("adapter", str(out.absolute())), base=inputs.base, fingerprinted=False).tensors
    return {
        "schema": SCHEMA,
        "model": chosen.label,
        "out": str(out.resolve()),
        "recipe": chosen.recipe.digest,
        "tensors": len(products),
        "largest_rank": max(product.rank for product in products.values()),
        "largest_difference": largest_difference(written, bank.merged(chosen.recipe)),
        "licenses": card.judgement.to_data(),
        "sanity": probe.to_document(),
    }


def adapter_text(document: dict[str, Any]) -> Text:
    """One line per fact."""
    text = Text(
        f"exported {document['model']} as an adapter to {document['out']}\n"
        f"recipe {document['recipe'][:12]}, {document['tensors']} tensors of the base changed, by rank "
        f"{document['largest_rank']} at most; added to it they are within {document['largest_difference']:.2g} of "
        "what was scored"
    )
    return _with_sanity(text, document)


def _with_sanity(text: Text, document: dict[str, Any]) -> Text:
    """The text with the sentences of the sanity probe; in yellow where there is a fault."""
    sanity = document["sanity"]
    failed = any(model["faults"] for model in sanity["models"].values())
    return text.append(f"\n{sanity['says']}", style="yellow" if failed else "") if sanity["says"] else text


def _files_of(stored: StoredSearch, recipes: Iterable[Recipe]) -> Path:
    """The folder that has the files of recipes, fetched where the artifacts are on an object store."""
    artifacts = ArtifactFolder(stored.artifacts)
    for recipe in recipes:
        artifacts.fetch_files(all_files(recipe))
    return artifacts.files


def export_text(document: dict[str, Any]) -> Text:
    """One line per fact."""
    if document["verified"]:
        checked = "bit-identical to those that were scored"
    elif document["differs"]:
        names = ", ".join(document["differs"][:3])
        devices = document["devices"]
        checked = (
            f"{len(document['differs'])} of them rounded differently, such as {names}: scored on {devices['scored']}, "
            f"merged here on {devices['exported']}"
        )
    else:
        checked = "not the latest winner, so there is nothing to verify them against"
    several = document.get("models")
    if several:
        checked = f"from which {len(several['recipes'])} models are rebuilt, bit-identical to those that were scored"
    lines = [
        f"exported {document['model']} to {document['out']}",
        f"recipe {document['recipe'][:12]}, {document['tensors']} tensors, {checked}",
    ]
    if document["mergekit"]:
        lines.append(f"no mergekit.yaml: {document['mergekit']}")
    return _with_sanity(Text("\n".join(lines)), document)


def _export_set(
    stored: StoredSearch,
    inputs: Inputs,
    recipes: RecipeSet,
    which: str,
    *,
    out: Path,
    device: torch.device,
    reproduce: str,
) -> dict[str, Any]:
    """Write several models as one artefact."""
    read = [source.directory for source in (inputs.base, *inputs.experts)]
    check_emr_folder(out, read)
    bank = _bank(inputs, _files_of(stored, recipes.recipes.values()), device)
    first = next(iter(recipes.recipes.values()))
    scored = {model: tensor_digests(bank.merged(recipe)) for model, recipe in recipes.recipes.items()}
    tensors = bank.rule_tensors(first.rules[0], first)
    rows = [
        (model, ", ".join(_tasks_of(recipes, model)), f"{rescaler_of(tensors, position_of(recipes, model))!r}", digest)
        for model, digest in recipes.summary()["recipes"].items()
    ]
    card = SearchCard(stored, inputs, label=which)
    probe = probe_export(stored, inputs, bank, {f"{which}/{name}": each for name, each in recipes.recipes.items()})
    write_emr(
        out,
        recipes,
        tensors,
        base=bank.weights[inputs.base.ref.name],
        scored=scored,
        card=card.of_models(recipes, rows, reproduce, _HOW_TO_READ, sanity=probe.note),
        read=read,
    )
    return {
        "schema": SCHEMA,
        "model": which,
        "out": str(out.resolve()),
        "recipe": recipes.digest,
        "tensors": len(tensors.names),
        "models": recipes.summary(),
        "verified": True,
        "differs": [],
        "devices": dict.fromkeys(("scored", "exported"), bank.device_kind),
        "mergekit": "it is several models",
        "licenses": card.judgement.to_data(),
        "sanity": probe.to_document(),
    }


def _tasks_of(recipes: RecipeSet, model: str) -> list[str]:
    return [task for task, name in recipes.tasks.items() if name == model]


def _of_task(chosen: _Chosen | RecipeSet, which: str, task: str | None) -> _Chosen:
    """The one model that is exported.

    Raises:
        InvalidInput: a task that the row does not have, or one of a row that is one model.
    """
    if isinstance(chosen, _Chosen):
        if task is not None:
            raise InvalidInput(f"--task {task} chooses among several models, but {which!r} is one; leave it out")
        return chosen
    if task is None or task not in chosen.tasks:
        raise unknown_name(f"task of {which!r}:", str(task), chosen.tasks)
    model = chosen.tasks[task]
    return _Chosen(f"{which}/{model}", chosen.recipes[model], None)


def _choose(stored: StoredSearch, inputs: Inputs, which: str) -> _Chosen | RecipeSet:
    if which == "best" or which.isdecimal():
        space = stored_space(inputs, stored.study)
        search = SearchStudy(stored.study, stored.storage, space, artifacts=stored.artifacts)
        trial = _trial(stored, which)
        return _Chosen(f"trial {trial.number}", search.recipe_of(trial), trial.number)
    sources = source_rows(
        inputs.base.ref, [expert.ref for expert in inputs.experts], inputs.catalogue, inputs.spec.dtype
    )
    recipes: dict[str, Recipe | RecipeSet] = {row.label: row.recipe for row in sources}
    if stored.baselines is not None:
        standing = snapshot_of(stored.study)
        rows = current_baselines(read_records(stored.baselines), stored.spec, standing)
        recipes |= {record.label: record.stored_recipe for record in rows}
    if which == MEAN and stored.held_out is not None:  # the latest one: it moves during the search
        recipes |= {record.label: record.recipe for record in read_records(stored.held_out) if record.label == MEAN}
    if which not in recipes:
        raise unknown_name("trial or baseline", which, ["best", *recipes])
    recipe = recipes[which]
    return recipe if isinstance(recipe, RecipeSet) else _Chosen(which, recipe, None)


def _trial(stored: StoredSearch, which: str) -> optuna.trial.FrozenTrial:
    study = stored.study
    trials = study.get_trials(deepcopy=False)
    if which == "best":
        winner = read_winner(study.user_attrs)
        if winner is None:
            raise InvalidInput(
                f"study {study.study_name!r} has not named a best trial yet; "
                f"let `{command_line(stored.spec, 'run')}` finish, or give --trial N"
            )
        return trials[winner.trial]
    number = int(which)
    if number >= len(trials) or trials[number].state is not optuna.trial.TrialState.COMPLETE:
        raise InvalidInput(
            f"trial {number} of study {study.study_name!r} is not a scored one; see "
            f"`{command_line(stored.spec, 'leaderboard')}`"
        )
    return trials[number]


def _bank(inputs: Inputs, files: Path, device: torch.device) -> WeightBank:
    return WeightBank(inputs.base, inputs.experts, dtype=DTYPES[inputs.spec.dtype], device=device, files=files)


def export_command(
    stored: StoredSearch,
    which: str,
    out: Path,
    file: Path | None,
    *,
    task: str | None = None,
    device: str | None = None,
) -> str:
    """The command line of an export."""
    given = {"--trial": which, "--task": task, "--device": device, "--out": str(out.resolve())}
    arguments = [word for option, value in given.items() if value is not None for word in (option, value)]
    return command_line(stored.spec, "export", *arguments, file=file)

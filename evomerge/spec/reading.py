"""A search.yaml as it is read: with the places that it names, and what the command line says otherwise."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evomerge.baselines.info import BASELINES
from evomerge.documents import read_document, validate
from evomerge.errors import InvalidInput, unknown_name
from evomerge.forms import expanded, is_file, is_folder, parse_json, reading
from evomerge.observers import located
from evomerge.recipe_spaces.checks import check_recipe_space, is_recipe_file
from evomerge.recipe_spaces.scaled_rules import LINEAR_IN_WEIGHT
from evomerge.spaces.space import SearchSpace
from evomerge.spaces.space_checks import check_space
from evomerge.spaces.space_files import load_space
from evomerge.spec.search_spec import SearchSpec
from evomerge.spec.sections import BaselineSpec, SourceSpec
from evomerge.storage.url import placed_folder, placed_url


def load_spec(path: str | Path) -> SearchSpec:
    """Read a search.yaml. All its relative paths begin at its folder, those of the storage and the artifacts too.

    Raises:
        InvalidInput: missing or malformed file, a key that does not exist, or an unknown name (nearest names offered).
    """
    path = Path(path)
    return resolve(_as_written(path), path.resolve().parent)


def build_spec(**content: Any) -> SearchSpec:
    """The spec of a search from the keys of a search.yaml; relative paths begin in the working directory.

    Paths may be `Path` objects, at any depth.

    Raises:
        InvalidInput: a key that does not exist or is missing, or an unknown name (nearest names offered).
    """
    return resolve(validate(SearchSpec, _with_texts(content), "search spec"), Path.cwd())


def _with_texts(content: Any) -> Any:
    """The content with its paths as texts, as in a file."""
    if isinstance(content, os.PathLike):
        return os.fsdecode(content)
    if isinstance(content, Mapping):
        return {key: _with_texts(value) for key, value in content.items()}
    return [_with_texts(each) for each in content] if isinstance(content, list | tuple) else content


def read_spec(path: Path) -> SearchSpec:
    """A search.yaml with its space a name and relative locations of what goes in: enough to find its study.

    Raises:
        InvalidInput: missing or malformed file, or a key that does not exist.
    """
    return _placed(_as_written(path), path.resolve().parent)


def written_storage(path: Path) -> str:
    """The storage URL of a search.yaml as it is written there, or the default one: relative paths are left as they are.

    Raises:
        InvalidInput: see `read_spec`.
    """
    return _as_written(path).storage_url


def _as_written(path: Path) -> SearchSpec:
    return validate(SearchSpec, read_document(path, "search spec"), f"search spec {str(path)!r}")


def spec_from_json(text: str) -> SearchSpec:
    """The spec that a study stores."""
    with reading("the spec in the study"):
        content = parse_json(text)
    return validate(SearchSpec, content, "stored spec")


def resolve(spec: SearchSpec, directory: Path) -> SearchSpec:
    """The spec with its space loaded and its relative paths made absolute, so that it holds from anywhere.

    Args:
        directory: where relative paths begin.
    """
    spec = _placed(spec, directory)
    names = [baseline.name for baseline in spec.chosen_baselines]
    for name in names:
        if name not in BASELINES:
            raise unknown_name("baseline", name, BASELINES)
        if names.count(name) > 1:
            raise InvalidInput(
                f"baseline {name!r} is named {names.count(name)} times; "
                + ("give it the file of one merge" if BASELINES[name].from_file else "once is enough")
            )
    sources = tuple(_resolved(source, directory) for source in spec.sources)
    if isinstance(spec.space, str):
        space = load_space(spec.space, directory)
    else:
        space = spec.space
        check_space(space)
    space = _with_merges(space, names, directory)
    evaluator = spec.evaluator
    if is_file(directory / evaluator.name / "evaluator.yaml"):
        evaluator = evaluator.model_copy(update={"name": str((directory / evaluator.name).resolve())})
    recipes = tuple(str((directory / expanded(name)).resolve()) for name in spec.warm_start.recipes)
    warm_start = spec.warm_start.model_copy(update={"recipes": recipes})
    baselines = spec.baselines and tuple(_with_file(each, directory) for each in spec.baselines)
    update = {
        "sources": sources,
        "space": space,
        "evaluator": evaluator,
        "warm_start": warm_start,
        "baselines": baselines,
    }
    observers = {name: located(getattr(spec, name), directory) for name in ("notify", "metrics", "track")}
    return spec.model_copy(update={**update, **observers})


def _with_file(baseline: BaselineSpec, directory: Path) -> BaselineSpec:
    """The baseline with the absolute path of its file; of the folder of an export that of the recipe in it."""
    recipe = baseline.settings.get("recipe")
    if not BASELINES[baseline.name].from_file or not isinstance(recipe, str):
        return baseline
    path = (directory / expanded(recipe)).resolve()
    file = path / "recipe.json" if is_folder(path) else path
    return BaselineSpec(**{**baseline.settings, "name": baseline.name, "recipe": str(file)})


def _placed(spec: SearchSpec, directory: Path) -> SearchSpec:
    """The spec with absolute places of its studies and artifacts."""
    studies = tuple(
        study if study.storage is None else study.model_copy(update={"storage": placed_url(study.storage, directory)})
        for study in spec.warm_start.studies
    )
    return spec.model_copy(
        update={
            "storage": placed_url(spec.storage_url, directory),
            "artifacts": None if spec.artifacts is None else placed_folder(spec.artifacts, directory),
            "warm_start": spec.warm_start.model_copy(update={"studies": studies}),
        }
    )


def _with_merges(space: SearchSpace, baselines: Sequence[str], directory: Path) -> SearchSpace:
    """The space with the recipe that it is around found: a baseline of the spec, or a file."""
    check_recipe_space(space)
    around, where = space.around, f"search space {space.name!r}"
    if around is None:
        return space
    if is_recipe_file(around):
        return space.model_copy(update={"around": str((directory / expanded(around)).resolve())})
    if around not in BASELINES:
        raise unknown_name(f"baseline that {where} is around:", around, BASELINES)
    info = BASELINES[around]
    if not info.one_model_before or (info.method is not None and info.method not in LINEAR_IN_WEIGHT):
        raise InvalidInput(
            f"{where} is around {around!r}, which is no weighted sum of the sources that is there before the search; "
            "name another baseline, or a recipe.json"
        )
    if around not in baselines:
        raise InvalidInput(f"{where} is around {around!r}; name it among the baselines of the search")
    return space


def override(
    spec: SearchSpec,
    *,
    trials: int | None = None,
    hours: float | None = None,
    workers: int | None = None,
    seed: int | None = None,
) -> SearchSpec:
    """The spec with the values of the command line in place of its own.

    Raises:
        InvalidInput: a value that the spec would not take either.
    """
    content = spec.model_dump(mode="json", by_alias=True)
    for path, value in ((("budget", "trials"), trials), (("budget", "hours"), hours), (("workers", "count"), workers)):
        if value is not None:
            content[path[0]][path[1]] = value
    if seed is not None:
        content["seed"] = seed
    return validate(SearchSpec, content, "command line")


def _resolved(source: SourceSpec, directory: Path) -> SourceSpec:
    calibration = source.calibration
    if calibration is not None and calibration.file is not None:
        path = directory / expanded(calibration.file)
        if not is_file(path):
            raise InvalidInput(f"source {source.name!r}: calibration file {str(path)!r} does not exist")
        calibration = calibration.model_copy(update={"file": str(path.resolve())})
    return source.model_copy(update={"location": _absolute(source, directory), "calibration": calibration})


def _absolute(source: SourceSpec, directory: Path) -> str:
    """A directory as an absolute path; anything that can only be a hub id, unchanged."""
    location = expanded(source.location)
    if is_folder(directory / location):
        return str((directory / location).resolve())
    parent_exists = len(location.parts) > 1 and is_folder(directory / location.parts[0])
    if parent_exists or source.location.startswith((".", "~", "/")) or len(location.parts) != 2:
        raise InvalidInput(
            f"source {source.name!r}: directory {str(directory / location)!r} does not exist; "
            "give a model directory (relative to the spec) or a hub id such as 'org/model'"
        )
    return source.location

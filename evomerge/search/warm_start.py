"""Known merges at the start of a search: as points of its space, and as reference points of its objectives."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import optuna
from optuna.trial import FrozenTrial

from evomerge.artefacts.exported_files import take_files
from evomerge.bank.given_recipe import check_rules
from evomerge.baselines.freshness import current_baselines
from evomerge.baselines.info import BASELINES
from evomerge.documents import read_text
from evomerge.errors import InvalidInput, first_reason
from evomerge.methods import METHODS
from evomerge.objective import Objective
from evomerge.opening.inputs import Inputs
from evomerge.opening.open_study import OpenSearch
from evomerge.opening.own_merge import read_own_merge
from evomerge.optimisation.coefficients import mean_weights
from evomerge.optimisation.flattening import flattened
from evomerge.recipe import Recipe, all_files, all_ingredients
from evomerge.recipe_spaces.recipe_space import RecipeSpace
from evomerge.samplers.reference_points import ReferencePoint
from evomerge.spaces.bound import BoundSpace
from evomerge.spaces.nearest import nearest_params
from evomerge.spec import OtherStudy, SearchSpec
from evomerge.storage import attributes
from evomerge.storage.url import redact, resolve_url, sibling_url
from evomerge.study.beginning import Beginning
from evomerge.study.rows import Record, read_scores
from evomerge.study.snapshot import snapshot_of
from evomerge.study.stored_search import NoStudy, looking_at
from evomerge.study.study_ingredients import read_ingredients
from evomerge.study.trials import best_trials

Params = dict[str, object]
_Seen = TypeVar("_Seen")


def warm_points(opened: OpenSearch) -> list[Params]:
    """The points that the spec's warm start names, in its order, each once.

    Raises:
        InvalidInput: a recipe or a study has no point in the search space.
    """
    wanted = opened.inputs.spec.warm_start
    points = [*_of_baselines(opened, wanted.baselines), *recipe_points(opened.inputs, opened.space)]
    for study in wanted.studies:
        points += _of_study(opened.inputs.spec, opened.space, study)
    initial = opened.space.initial
    return [point for number, point in enumerate(points) if point not in initial and point not in points[:number]]


def reference_points(opened: OpenSearch, objective: Objective) -> list[ReferencePoint]:
    """The baselines, the best first, as reference points of a search with several objectives.

    A trained merge has no params: it is no point of the space, only near one. In a space that is made of it, it is a
    corner.

    Raises:
        InvalidInput: none of the baselines could be made.
    """
    found = []
    for row in _best_first(opened):
        scores = read_scores(opened.artifacts, opened.storage, row.trial, opened.patience)
        if scores is not None:
            trained = bool(row.recipe.files) or BASELINES[row.label].trained
            is_near = trained and not isinstance(opened.space, RecipeSpace)
            found.append(ReferencePoint(tuple(objective.points(scores)), None if is_near else _place(opened, row)))
    if not found:
        raise InvalidInput(
            "the sampler cma with several objectives searches for what is better than the baselines, but none could be "
            "made; see the reasons above, or use nsgaii, nsgaiii, tpe or gp"
        )
    return found


def beginning_of(opened: OpenSearch) -> Beginning | None:
    """The point of the baseline that the warm start begins at; None where it names none.

    Raises:
        InvalidInput: it could not be made, or has no point in the search space.
    """
    label = opened.inputs.spec.warm_start.begin
    if label is None:
        return None
    row = next((row for row in _best_first(opened) if row.label == label), None)
    if row is None:
        raise InvalidInput(f"warm_start: begin: {label} could not be made; see the reason above, or begin elsewhere")
    params = _place(opened, row)
    if params is None:
        methods = ", ".join(sorted({rule.method for rule in row.recipe.rules}))
        raise InvalidInput(
            f"warm_start: begin: {label} ({methods}) has no place in search space {opened.space.space.name!r}; "
            + _kind_of(opened.space)
        )
    return Beginning(label=label, params=params)


def _best_first(opened: OpenSearch) -> list[Record]:
    """The baselines that are one model, and no control: several are no point of the space, and no measure of one."""
    rows = current_baselines(opened.baselines, opened.inputs.spec, snapshot_of(opened.search.study))
    return sorted(
        (row for row in rows if not row.models and not BASELINES[row.label].control), key=lambda row: -row.value
    )


def _place(opened: OpenSearch, row: Record) -> Params | None:
    if not row.params:
        opened.artifact_folder.fetch_files(all_files(row.recipe))
    return dict(row.params) or _nearest(opened.space, row.recipe, opened.artifact_folder.files)


def _of_baselines(opened: OpenSearch, count: int) -> list[Params]:
    """Points of the best baselines. Baselines without a point in the space are skipped."""
    if not count:
        return []
    places = (_place(opened, row) for row in _best_first(opened))
    return [place for place in places if place][:count]


def check_warm_start(inputs: Inputs) -> None:
    """Refuse recipes and studies of the warm start that have no place. A study that has begun reads them no more.

    Raises:
        InvalidInput: as `warm_points`.
    """
    wanted = inputs.spec.warm_start
    if not (wanted.recipes or wanted.studies) or has_begun(inputs.spec):
        return
    recipe_points(inputs, inputs.space)
    for study in wanted.studies:
        _of_study(inputs.spec, inputs.space, study)


def has_begun(spec: SearchSpec) -> bool:
    """Whether the first points of the spec's study have been enqueued."""
    try:
        with looking_at(spec) as study:
            return bool(study.user_attrs.get(attributes.WARM))
    except NoStudy:
        return False


def recipe_points(inputs: Inputs, space: BoundSpace) -> list[Params]:
    """Points of the recipes that the warm start names.

    Args:
        space: that of the inputs, or of the study.

    Raises:
        InvalidInput: a file is no merge of these sources, or has no point in the search space.
    """
    found = []
    for name in inputs.spec.warm_start.recipes:
        path = Path(name)
        recipe = _read_recipe(path, inputs)
        params = _exported(space, recipe, path.parent)
        if params is None:
            methods = "a path of layers" if recipe.layers else ", ".join(sorted({r.method for r in recipe.rules}))
            raise InvalidInput(
                f"warm_start: the recipe {name} ({methods}) has no place in search space {space.space.name!r}; "
                + _kind_of(space)
            )
        found.append(params)
    return found


def _read_recipe(path: Path, inputs: Inputs) -> Recipe:
    if path.suffix != ".json":
        try:
            return read_own_merge(path, (inputs.base, *inputs.experts), inputs.spec.dtype).recipe
        except InvalidInput as error:
            raise InvalidInput(f"warm_start: {error}") from error
    text = read_text(path, "warm_start: recipe")
    try:
        recipe = Recipe.from_json(text)
        check_rules(recipe)
    except InvalidInput as error:
        raise InvalidInput(f"warm_start: {path} is no recipe.json as `evomerge export` writes it: {error}") from error
    return recipe


def _kind_of(space: BoundSpace) -> str:
    """The merges of a space, in words."""
    if isinstance(space, RecipeSpace):
        return f"it is made of {', '.join(space.labels)}, which are its first points anyway"
    known = ", ".join(space.space.method_names)
    return f"its methods are {known}" if known else "it has paths of layers"


def _exported(space: BoundSpace, recipe: Recipe, export: Path) -> Params | None:
    wanted = {digest for each in (recipe, *dict(all_ingredients(recipe)).values()) for digest in _coefficients(each)}
    with first_reason(tempfile.TemporaryDirectory(), "while a temporary folder was removed") as folder:
        take_files(recipe, export, Path(folder), wanted)
        return _nearest(space, recipe, Path(folder))


def _coefficients(recipe: Recipe) -> list[str]:
    """Digests of the files with trained coefficients."""
    roles = {each.name for rule in recipe.rules if rule.method in METHODS for each in METHODS[rule.method].tensors}
    return [digest for role, digest in recipe.files.items() if role in roles]


def _nearest(space: BoundSpace, recipe: Recipe, files: Path) -> Params | None:
    """The point of a merge; in a space of models that of the sum which a merge of merges is, if it is one."""
    if isinstance(space, RecipeSpace):
        return space.params_of(recipe)
    if recipe.ingredients:
        with suppress(InvalidInput):  # it is no weighted sum
            return nearest_params(space, flattened(recipe, files))
        return None
    return nearest_params(space, recipe, mean_weights(recipe, files))


def _of_study(spec: SearchSpec, space: BoundSpace, other: OtherStudy) -> list[Params]:
    def look(study: optuna.Study) -> tuple[list[FrozenTrial], bool]:
        is_other = isinstance(space, RecipeSpace) and bool(space.made) and not _same_merges(space, study)
        return best_trials(study, other.trials), is_other

    trials, is_other = _look_at(spec, other, look)
    if is_other:
        raise InvalidInput(
            f"warm_start: the merges of study {other.name!r} are not those of this search, though both spaces are made "
            "of merges; leave it out"
        )
    for trial in trials:
        strange = [name for name in trial.params if trial.distributions[name] != space.distributions.get(name)]
        if strange or not space.is_complete(trial.params):
            raise InvalidInput(
                f"warm_start: study {other.name!r} searches another space: "
                f"{strange[0] if strange else 'some params'} is not the same there; give its exported recipe instead"
            )
    return [dict(trial.params) for trial in trials]


def _look_at(spec: SearchSpec, other: OtherStudy, look: Callable[[optuna.Study], _Seen]) -> _Seen:
    """A short look at another study.

    Raises:
        InvalidInput: it is nowhere.
    """
    places = _places(spec, other)
    for place in places:
        named = spec.model_copy(update={"name": other.name, "storage": place})
        with suppress(NoStudy), looking_at(named) as study:
            return look(study)
    looked_in = " or ".join(redact(resolve_url(place)) for place in places)
    raise InvalidInput(
        f"warm_start: there is no study {other.name!r} in {looked_in}; "
        f"give its storage: {{name: {other.name}, storage: URL}}, or leave it out"
    )


def _places(spec: SearchSpec, other: OtherStudy) -> list[str]:
    """URLs of the storages in which another study is looked for."""
    if other.storage is not None:
        return [other.storage]
    beside = sibling_url(spec.storage_url, spec.name, other.name)
    return [spec.storage_url, *([] if beside is None else [beside])]


def _same_merges(space: RecipeSpace, study: optuna.Study) -> bool:
    stored = read_ingredients(study)
    recipes = {} if stored is None else stored.recipes
    return {label: each.digest for label, each in recipes.items()} == {
        label: each.digest for label, each in space.made.items()
    }

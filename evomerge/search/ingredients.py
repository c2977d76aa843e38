"""The merges that a search space is made of: taken from the baselines once, before the first trial, and kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from evomerge.artefacts.exported_files import take_files
from evomerge.bank.given_recipe import check_rules, check_tensors
from evomerge.baselines.freshness import current_baselines, left_out
from evomerge.documents import read_text
from evomerge.errors import InvalidInput, StoppedByFailures
from evomerge.evaluation.evaluator import ModelEvaluator
from evomerge.evaluation.scores import Scores
from evomerge.messages import some
from evomerge.opening.inputs import Inputs
from evomerge.opening.open_study import OpenSearch
from evomerge.recipe import Recipe, all_files
from evomerge.recipe_spaces.checks import is_recipe_file
from evomerge.recipe_spaces.recipe_space import RecipeSpace
from evomerge.recipe_spaces.scaled_rules import check_scalable
from evomerge.study.row_failures import read_failures
from evomerge.study.rows import Record
from evomerge.study.snapshot import snapshot_of
from evomerge.study.study_ingredients import StudyIngredients, read_ingredients


def take_ingredients(opened: OpenSearch, on_phase: Callable[[str], None]) -> OpenSearch:
    """Give the space the merges that it is made of, where it is made of merges; the same ones in every run.

    Args:
        on_phase: receives warnings.

    Raises:
        InvalidInput: none of them could be made, or they are not those that the study began with.
        StoppedByFailures: one of them could not be made since the machine failed.
    """
    if not isinstance(opened.space, RecipeSpace):
        return opened
    stored = read_ingredients(opened.search.study)
    if stored is not None:
        _refuse_others(opened, stored)
        return opened
    made = _found(opened)
    if not made.recipes:
        reasons = "; ".join(f"{label}: {reason}" for label, reason in made.left_out.items())
        raise InvalidInput(
            f"search space {opened.space.space.name!r} is made of {', '.join(opened.space.labels)}, and none of them "
            f"could be made ({reasons}); name others, under another name of the search"
        )
    for label, reason in made.left_out.items():
        on_phase(f"warning: the space has no {label}, whose weights stay 0: {reason}")
    return opened.with_ingredients(made)


def stored_scores(opened: OpenSearch) -> Callable[[Recipe], Scores | None]:
    """A function that finds the scores of a merge of the space on the search items, as its baseline has them.

    None for other recipes, for scores whose items are lost, and for evaluators that score params and not models.
    """
    rows = {}
    if isinstance(opened.space, RecipeSpace) and isinstance(opened.inputs.evaluator, ModelEvaluator):
        corners = {recipe.digest for recipe in opened.space.made.values()}
        rows = {row.digest: row for row in _rows(opened).values() if row.digest in corners}

    def find(recipe: Recipe) -> Scores | None:
        row = rows.get(recipe.digest) if rows else None
        return None if row is None else opened.baselines.scores(row)

    return find


def check_recipe_file(inputs: Inputs) -> None:
    """Refuse a space around the recipe of a file that it cannot be made of, before anything is written.

    Raises:
        InvalidInput: the file is no recipe, or its recipe is none of these sources or no weighted sum.
    """
    around = inputs.spec.search_space.around
    if around is not None and is_recipe_file(around):
        _read_recipe(inputs, Path(around))


def _rows(opened: OpenSearch) -> dict[str, Record]:
    """Label -> the row of each merge of the space that is a baseline."""
    spec = opened.inputs.spec
    rows = current_baselines(opened.baselines, spec, snapshot_of(opened.search.study))
    labels = {each.name for each in spec.space_baselines}
    return {row.label: row for row in rows if row.label in labels and not row.models}


def _found(opened: OpenSearch) -> StudyIngredients:
    """The merges as they are now, the best first; of equal ones in the order of the spec.

    Raises:
        StoppedByFailures: one of them is missing since the machine failed: the space would lack it for ever.
    """
    spec = opened.inputs.spec
    around = spec.search_space.around
    if around is not None and is_recipe_file(around):
        recipe = _read_recipe(opened.inputs, Path(around))
        take_files(recipe, Path(around).parent, opened.artifact_folder.files)
        opened.artifact_folder.keep_files(all_files(recipe))
        return StudyIngredients(recipes={spec.space_labels[0]: recipe})
    rows, study, standing = _rows(opened), opened.baselines.study, snapshot_of(opened.search.study)
    reasons = left_out(read_failures(study), spec, standing)
    own = left_out(read_failures(study, by_machine=False), spec, standing)
    if lost := [label for label in spec.space_labels if label not in rows and label in reasons and label not in own]:
        raise StoppedByFailures(
            f"{lost[0]}, which the space is made of, was not made, since the machine failed: {reasons[lost[0]]}; run "
            "the same command again, or leave it out"
        )
    ordered = sorted((label for label in spec.space_labels if label in rows), key=lambda label: -rows[label].value)
    return StudyIngredients(
        recipes={label: rows[label].recipe for label in ordered},
        left_out={label: reasons.get(label, "it was not made") for label in spec.space_labels if label not in rows},
    )


def _refuse_others(opened: OpenSearch, stored: StudyIngredients) -> None:
    """Refuse to go on where the merges are not those that the study began with, or their files are lost.

    Raises:
        InvalidInput: see above.
    """
    rows, search = _rows(opened), "restore it, or give the search a new name"
    for label, recipe in stored.recipes.items():
        now = rows.get(label)
        if now is not None and now.digest != recipe.digest:
            raise InvalidInput(
                f"the trials of the study are made of {label} with recipe {recipe.digest[:12]}, but it is "
                f"{now.digest[:12]} now, since its file or its row was lost and it was made again; {search}"
            )
        folder = opened.artifact_folder
        lost = [digest for digest in all_files(recipe) if not folder.has_files([digest])]
        if lost:
            raise InvalidInput(
                f"{some(lost)}.safetensors, which {label} needs and trials are made of, is lost in "
                f"{folder}/files; {search}"
            )


def _read_recipe(inputs: Inputs, path: Path) -> Recipe:
    where = f"search space {inputs.spec.search_space.name!r}: the recipe {path.name}"
    text = read_text(path, "search space: recipe")
    try:
        recipe = Recipe.from_json(text)
        check_rules(recipe)
        check_tensors(recipe, inputs.base.catalogue)
    except InvalidInput as error:
        raise InvalidInput(f"{where} is no recipe.json as `evomerge export` writes it: {error}") from error
    check_scalable(recipe, where)
    own = {ref.name: ref.fingerprint for ref in inputs.refs}
    others = [ref.name for ref in (recipe.base, *recipe.sources) if own.get(ref.name) != ref.fingerprint]
    if others or recipe.base.name != inputs.base.ref.name:
        raise InvalidInput(
            f"{where} merges {', '.join(others or [recipe.base.name])}, which is not a source of this search by that "
            "name and content; name the same sources, the base first"
        )
    if recipe.dtype != inputs.spec.dtype:
        raise InvalidInput(f"{where} is of dtype {recipe.dtype}, the search of {inputs.spec.dtype}; give it that dtype")
    return recipe

"""A merge as a file describes it: a recipe of ours as JSON or YAML, or a file of mergekit's."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evomerge.bank.given_recipe import check_rules, check_tensors
from evomerge.checkpoints import Source
from evomerge.checkpoints.vocabulary import spare_rows
from evomerge.documents import read_document, read_documents, read_text
from evomerge.errors import InvalidInput, unknown_name
from evomerge.forms import is_file, is_folder, parse_json, reading
from evomerge.mergekit.import_yaml import import_merge, real_models
from evomerge.mergekit.merge_file import read_merge_file
from evomerge.mergekit.model_names import free_name, last_part, own_place
from evomerge.messages import listed
from evomerge.methods import method_info
from evomerge.recipe import ModelRef, Recipe, all_ingredients

KIND = "merge file"
RECIPE_IN_EXPORT = "recipe.json"


@dataclass(frozen=True, kw_only=True)
class GivenMerge:
    """A merge whose models are known, and whose recipe is known once the tensors of its base are.

    Attributes:
        models: the base first.
        finish: the recipe and notes on it, of the models as they were opened, and the base itself.
        of_mergekit: whether the file is mergekit's.
    """

    models: tuple[ModelRef, ...]
    finish: Callable[[Sequence[ModelRef], Source], tuple[Recipe, tuple[str, ...]]]
    of_mergekit: bool


def read_merge(path: Path, places: Mapping[str, str], *, seed: int | None = None) -> GivenMerge:
    """The merge that a file describes.

    Args:
        path: recipe.json, a recipe as YAML, a file of mergekit's, or the directory of an export.
        places: name of a model -> its directory or hub id, in the place of what the file says. In a file of mergekit's,
            which has no names, it names the model at a place, or gives the place of a model that is named by its path.
        seed: key of the random masks, for files that state none.

    Raises:
        InvalidInput: the file is none of these, or cannot be merged without a search; names the line or the model.
    """
    if is_folder(path):
        path = path / RECIPE_IN_EXPORT
    if path.suffix == ".json" and is_file(path):
        return _of_recipe(path, read_text(path, KIND), places, seed)
    documents = read_documents(path, KIND)
    content = documents[-1].content
    if "rules" in content and len(documents) == 1:
        return _of_recipe(path, json.dumps(read_document(path, KIND)), places, seed)
    if "merge_method" in content:
        return _of_mergekit(path, places, seed or 0)
    known = "a recipe has `base`, `sources` and `rules`, a mergekit file has `merge_method`"
    raise InvalidInput(f"{path} describes no merge: {known}")


def _of_recipe(path: Path, text: str, places: Mapping[str, str], seed: int | None) -> GivenMerge:
    with reading(str(path)):
        content = parse_json(text)
    if "recipes" in content:
        raise InvalidInput(f"{path} is a set of several models; give the recipe of one")
    recipe = Recipe.from_json(text)
    if seed is not None and seed != recipe.seed:
        raise InvalidInput(f"{path} states the seed {recipe.seed}, which decides its weights; leave --seed out")
    stated = content.get("digest")
    if stated not in (None, recipe.digest):
        raise InvalidInput(
            f"{path} states the digest {stated}, but its content has {recipe.digest}; remove the line `digest` if you "
            "have changed the recipe"
        )
    _refuse_files(recipe)
    check_rules(recipe)
    models = tuple({ref.name: ref for ref in (recipe.base, *recipe.sources)}.values())
    for name in places:
        if name not in {ref.name for ref in models}:
            raise unknown_name("source of the recipe", name, [ref.name for ref in models])
    moved = tuple(
        replace(ref, location=places[ref.name], revision=None)
        if ref.name in places
        else replace(ref, location=_beside(path, ref.location))
        for ref in models
    )

    def finish(opened: Sequence[ModelRef], base: Source) -> tuple[Recipe, tuple[str, ...]]:
        check_tensors(recipe, base.catalogue)
        return _with_models(recipe, opened), ()

    return GivenMerge(models=moved, finish=finish, of_mergekit=False)


def _of_mergekit(path: Path, places: Mapping[str, str], seed: int) -> GivenMerge:
    documents = read_merge_file(path)
    keys = real_models(documents)
    refs = _named_models(path, keys, places)
    order = [*(key for place in places.values() for key in keys if _is_at(path, key, place)), *keys]
    ordered = dict.fromkeys(order)

    def finish(opened: Sequence[ModelRef], base: Source) -> tuple[Recipe, tuple[str, ...]]:
        by_name = {ref.name: ref for ref in opened}
        known = {key: by_name[refs[key].name] for key in ordered}
        spare = spare_rows(base) if any(each.tokenizer is not None for each in documents) else 0
        imported = import_merge(documents, known, base.catalogue, seed=seed, spare_rows=spare)
        _refuse_files(imported.recipe)
        return imported.recipe, imported.notes

    return GivenMerge(models=tuple(refs[key] for key in keys), finish=finish, of_mergekit=True)


def _named_models(path: Path, keys: Sequence[str], places: Mapping[str, str]) -> dict[str, ModelRef]:
    """Model as the file names it -> the model, with a name of its own."""
    refs: dict[str, ModelRef] = {}
    for name, place in places.items():
        key = next((key for key in keys if _is_at(path, key, place)), name)
        if key not in keys:
            raise InvalidInput(
                f"--source {name}={place}: {path} names neither {name} nor a model at {place}; it has {listed(keys)}"
            )
        own = last_part(name) if key == name else name
        refs[key] = _ref(own, place if key == name else _beside(path, own_place(key)))
    for key in keys:
        if key not in refs:
            taken = {ref.name for ref in refs.values()}
            refs[key] = _ref(free_name(last_part(key), taken), _beside(path, own_place(key)))
    return refs


def _is_at(path: Path, key: str, place: str) -> bool:
    own = own_place(key)
    return place in (key, own, _beside(path, own))


def _ref(name: str, location: str) -> ModelRef:
    place, _, revision = location.rpartition("@")
    if place and not is_folder(Path(location)):
        return ModelRef(name, place, revision=revision)
    return ModelRef(name, location)


def _beside(path: Path, location: str) -> str:
    """A directory, found from the working directory or else from that of the file; hub ids as they are."""
    found = path.parent / location
    return str(found) if not is_folder(Path(location)) and is_folder(found) else location


def _with_models(recipe: Recipe, opened: Sequence[ModelRef]) -> Recipe:
    """The recipe with its models at other places; what it merges stays."""
    refs = {ref.name: ref for ref in opened}
    return replace(
        recipe,
        base=refs[recipe.base.name],
        sources=tuple(refs[source.name] for source in recipe.sources),
        ingredients={name: _with_models(each, opened) for name, each in recipe.ingredients.items()},
    )


def _refuse_files(recipe: Recipe) -> None:
    """Refuse merges that need what was measured or trained in a search."""
    for label, each in (("", recipe), *all_ingredients(recipe)):
        for rule in each.rules:
            info = method_info(rule.method)
            needed = [
                *each.files,
                *info.needs & {"statistics", "gradients"},
                *(tensors.name for tensors in info.tensors),
            ]
            if needed:
                raise InvalidInput(
                    f"{f'its ingredient {label!r}' if label else 'the recipe'} merges by {rule.method}, with "
                    f"{needed[0]} that a search has measured or trained; a merge without a search has none: export it "
                    "with `evomerge export` of that search"
                )


def as_yaml_content(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain data, as `read_merge` reads it from YAML."""
    content: dict[str, Any] = json.loads(recipe.to_json())
    return content

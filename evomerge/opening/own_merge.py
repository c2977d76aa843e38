"""A merge that the user has already, as a recipe over the sources of a search: with it the search can be compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from evomerge.adapters.core_space import no_adapter
from evomerge.bank.recipe_check import check_recipe
from evomerge.checkpoints import Source
from evomerge.errors import InvalidInput
from evomerge.forms import expanded, is_folder
from evomerge.messages import listed
from evomerge.methods import method_info
from evomerge.passes.kernels import DTYPES
from evomerge.recipe import ModelRef, Recipe, Rule, copying_rule
from evomerge.static_merges.given_merge import read_merge


@dataclass(frozen=True, kw_only=True)
class OwnMerge:
    """The recipe of a user's merge, and sentences on what is made otherwise than the file says."""

    recipe: Recipe
    notes: tuple[str, ...]


def read_own_merge(path: Path, sources: Sequence[Source], dtype: str) -> OwnMerge:
    """The merge that a file describes, of the sources of a search, in its dtype, so that a worker can score it.

    Args:
        path: a recipe as JSON or YAML, a file of mergekit's, or the directory of an export.
        sources: of the search, the base first.
        dtype: of the candidates, whatever that of the file is.

    Raises:
        InvalidInput: the file is none of these, needs what a search has measured or trained, names a model that is no
            source of the search, or takes task vectors from another model than the base.
    """
    given = read_merge(path, {})
    found = [(ref, _source_of(ref, sources, path)) for ref in given.models]
    names = [source.name for _, source in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InvalidInput(f"{path} names the source {twice!r} of this search as two models; name it once")
    written, notes = given.finish([replace(source.ref, name=ref.name) for ref, source in found], sources[0])
    renamed = _renamed(written, {ref.name: source.ref for ref, source in found})
    recipe = replace(_on_base(renamed, sources[0], path), dtype=dtype)
    fingerprints = {source.name: source.ref.fingerprint for source in sources}
    check_recipe(recipe, fingerprints=fingerprints, dtype=DTYPES[dtype], catalogue=sources[0].catalogue)
    if recipe.space == "core" and (whole := next((source for _, source in found[1:] if source.adapted is None), None)):
        raise no_adapter(whole.name)
    return OwnMerge(recipe=recipe, notes=(*notes, *_notes(path, written, found, dtype)))


def _source_of(ref: ModelRef, sources: Sequence[Source], path: Path) -> Source:
    """The source that a model of the file is: by its content where the file states that, else by place, else by name.

    A name alone counts where it cannot be that of another model: the place is not here, and the source not of the hub.
    """
    if ref.fingerprint is not None:
        same = [source for source in sources if source.ref.fingerprint == ref.fingerprint]
    else:
        same = [source for source in sources if _is_at(source, ref)] or [
            source for source in sources if source.name == ref.name and _may_be_named(source, ref)
        ]
    if not same:
        known = listed([f"{source.name} ({source.ref.location})" for source in sources])
        content = "" if ref.fingerprint is None else f" with the content {ref.fingerprint[:12]}"
        raise InvalidInput(
            f"{path} merges {ref.location}{content}, which is no source of this search; it has {known}. Name that "
            "model among the sources, or write the place of one of them in the file"
        )
    return next((source for source in same if source.name == ref.name), same[0])


def _is_at(source: Source, ref: ModelRef) -> bool:
    folder = expanded(ref.location)
    if is_folder(folder):
        return folder.resolve() == source.directory.resolve()
    revisions = (None, source.ref.revision, source.directory.name)
    return source.hub_id == ref.location and ref.revision in revisions


def _may_be_named(source: Source, ref: ModelRef) -> bool:
    return source.hub_id is None and not is_folder(expanded(ref.location))


def _renamed(recipe: Recipe, refs: Mapping[str, ModelRef]) -> Recipe:
    """The recipe with the models of the search. Names that are not models are those of ingredients, and stay."""

    def name(old: str) -> str:
        return refs[old].name if old in refs else old

    return replace(
        recipe,
        base=refs[recipe.base.name],
        sources=tuple(refs[source.name] for source in recipe.sources),
        rules=tuple(replace(rule, sources=tuple(map(name, rule.sources))) for rule in recipe.rules),
        layers=tuple(replace(layer, source=name(layer.source)) for layer in recipe.layers),
        ingredients={label: _renamed(each, refs) for label, each in recipe.ingredients.items()},
    )


def _on_base(recipe: Recipe, base: Source, path: Path) -> Recipe:
    """The same weights as a merge that has the base of the search.

    A merge without task vectors has for its base what gives config and tokenizer, which may be one of the experts.

    Raises:
        InvalidInput: a rule takes task vectors from another model.
    """
    if recipe.base.name == base.name:
        return recipe
    if rule := next((rule for rule in recipe.rules if recipe.space == "core" or _takes_base(rule)), None):
        raise InvalidInput(
            f"{path} merges by {rule.method} over {recipe.base.name}, but task vectors are taken from the base of the "
            f"search, {base.name}; make {recipe.base.name} the base of the search, or leave the file out"
        )
    merged = {name for rule in recipe.rules for name in rule.tensors}
    copied = tuple(
        entry.name
        for entry in base.catalogue.mergeable
        if entry.name not in merged and not (recipe.layers and entry.layer is not None)
    )
    return replace(
        recipe,
        base=base.ref,
        sources=tuple(ref for ref in dict.fromkeys((recipe.base, *recipe.sources)) if ref.name != base.name),
        rules=(*recipe.rules, *([copying_rule(recipe.base.name, copied)] if copied else [])),
        ingredients={label: _on_base(each, base, path) for label, each in recipe.ingredients.items()},
    )


def _takes_base(rule: Rule) -> bool:
    info = method_info(rule.method)
    under = info.mergekit.base_under if info.mergekit is not None else None
    return "base" in info.needs or (under is not None and rule.options.get(under[0]) == under[1])


def _notes(path: Path, written: Recipe, found: Sequence[tuple[ModelRef, Source]], dtype: str) -> list[str]:
    """Sentences on the dtype, and on models that only their names tell."""
    named = [ref for ref, source in found if ref.fingerprint is None and not _is_at(source, ref)]
    notes = [f"{path.name}: {ref.location} is taken for the source {ref.name}, by its name" for ref in named]
    if written.dtype != dtype:
        notes.append(f"{path.name} is in {written.dtype}; it is scored in {dtype}, the `dtype` of the search")
    return notes

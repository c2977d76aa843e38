"""The recipe: the complete description of one merge. Together with the sources it rebuilds the weights bit for bit."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

from evomerge.errors import InvalidInput
from evomerge.forms import parse_json, reading

SEMANTICS_VERSION = 1  # raised whenever the same recipe would give other weights

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")

MergeSpace = Literal["full", "core"]


@dataclass(frozen=True)
class ModelRef:
    """A model that goes into a merge.

    Attributes:
        name: what the user calls it.
        location: a local directory or a Hugging Face hub id.
        revision: hub revision (branch, tag or commit), None for directories.
        fingerprint: content hash of config and weights, filled in when the source is opened.
        tokenizer: `base`: its embeddings are put in the order of the base's vocabulary; None: they have to be.
        missing: `base`: tensors that it lacks are the base's; None: it has to have the same ones.
    """

    name: str
    location: str
    revision: str | None = field(default=None, kw_only=True)
    fingerprint: str | None = field(default=None, kw_only=True)
    tokenizer: str | None = field(default=None, kw_only=True)
    missing: str | None = field(default=None, kw_only=True)

    def content(self) -> dict[str, Any]:
        """The ref as plain data, which does not mention policies that it does not have."""
        absent = {name for name in ("tokenizer", "missing") if getattr(self, name) is None}
        return {name: value for name, value in asdict(self).items() if name not in absent}


@dataclass(frozen=True, kw_only=True)
class Rule:
    """The merge of a set of tensors: method, sources, parameters and options.

    `parameters` holds one number for shared parameters and one number per source (recipe order) for the others;
    `options` are the method's semantics options, all of them, defaults written out.
    """

    tensors: tuple[str, ...]
    method: str
    sources: tuple[str, ...]
    parameters: Mapping[str, float | tuple[float, ...]] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PathLayer:
    """One layer of a merged model.

    Attributes:
        source: the model whose layer it is.
        layer: index of the layer in that model.
        scale: factor of what the layer's MLP adds, folded into the MLP's output projection; 1 changes nothing.
    """

    source: str
    layer: int
    scale: float


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One merge. Tensors that no rule names are copied from the base (or from the first source without a base).

    Attributes:
        base: the model that task vectors are taken from; also gives config and tokenizer.
        sources: the experts, in the order that per-source values follow.
        rules: each tensor is in at most one rule.
        dtype: what the merged weights are rounded to, once, after fp32 arithmetic.
        seed: key of all random masks.
        semantics: version of the arithmetic.
        files: role -> content digest of a file that a rule needs, which is stored with the study's artifacts. Roles are
            "coefficients", the name of a method's statistics, or that of the statistics of one source, such as
            "grams.reverse" (`source_role`).
        layers: the layers of the model, from the first to the last, of base and sources as they are; rules then name
            tensors outside of layers only. Empty: as many layers as the base has, merged by the rules.
        ingredients: name -> a merge that rules may name as one more source: its weights, rounded to its own dtype.
            `sources` has the real models, those of the ingredients included; `files` only what the rules of this recipe
            need, each ingredient has its own. An ingredient may have ingredients.
        space: the coordinates that task vectors are merged in: those of the weights (`full`), or for adapters `core`
            space, see `evomerge.adapters.core_space`.
    """

    base: ModelRef
    sources: tuple[ModelRef, ...]
    rules: tuple[Rule, ...]
    dtype: str
    seed: int = 0
    semantics: int = SEMANTICS_VERSION
    files: Mapping[str, str] = field(default_factory=dict)
    layers: tuple[PathLayer, ...] = ()
    ingredients: Mapping[str, Recipe] = field(default_factory=dict)
    space: MergeSpace = "full"

    @cached_property
    def digest(self) -> str:
        """SHA-256 over everything that determines the weights: the content of the sources, not their location."""
        return hashlib.sha256(_canonical(_without_locations(self._content())).encode()).hexdigest()

    def to_json(self) -> str:
        return json.dumps({"digest": self.digest, **self._content()}, indent=2, ensure_ascii=False)

    def _content(self) -> dict[str, Any]:
        content = asdict(replace(self, ingredients={}))
        content["base"] = self.base.content()
        content["sources"] = tuple(source.content() for source in self.sources)
        content["ingredients"] = {name: recipe._content() for name, recipe in self.ingredients.items()}
        for name in ("files", "layers", "ingredients"):  # a recipe without them does not mention them
            if not content[name]:
                del content[name]
        if self.space == "full":
            del content["space"]
        return content

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """The recipe that `to_json` wrote.

        Raises:
            InvalidInput: it did not write this.
        """
        with reading("the recipe"):
            recipe = cls._from(parse_json(text, Recipe))
            _ = recipe.digest  # of no number that JSON lacks, and of no text that Unicode lacks
            return recipe

    @classmethod
    def _from(cls, content: Mapping[str, Any]) -> Recipe:
        return cls(
            base=ModelRef(**content["base"]),
            sources=tuple(ModelRef(**source) for source in content["sources"]),
            rules=tuple(_rule_from(rule) for rule in content["rules"]),
            dtype=content["dtype"],
            seed=content["seed"],
            semantics=content["semantics"],
            files=checked_files(content.get("files", {})),
            layers=tuple(PathLayer(**layer) for layer in content.get("layers", ())),
            ingredients={name: cls._from(recipe) for name, recipe in content.get("ingredients", {}).items()},
            space=content.get("space", "full"),
        )


@dataclass(frozen=True, kw_only=True)
class RecipeSet:
    """Several merges that make one row of the leaderboard: each task is given to the model that belongs to it.

    Attributes:
        recipes: name of the model -> its recipe. Every model has a task.
        tasks: task -> name of the model that belongs to it.
        stated: the tasks whose model the spec names; the models of the others were chosen on the search items.
    """

    recipes: Mapping[str, Recipe]
    tasks: Mapping[str, str]
    stated: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """SHA-256 over everything that determines the scores: the models, and the tasks of each."""
        content = {"recipes": {name: recipe.digest for name, recipe in self.recipes.items()}, "tasks": dict(self.tasks)}
        return hashlib.sha256(_canonical(content).encode()).hexdigest()

    def summary(self) -> dict[str, Any]:
        """The set in short: digests of its recipes, tasks and stated tasks."""
        digests = {name: recipe.digest for name, recipe in self.recipes.items()}
        return {"recipes": digests, "tasks": dict(self.tasks), "stated": list(self.stated)}

    def to_json(self) -> str:
        recipes = {name: recipe._content() for name, recipe in self.recipes.items()}
        content = {"recipes": recipes, "tasks": dict(self.tasks), "stated": list(self.stated)}
        return json.dumps({"digest": self.digest, **content}, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> RecipeSet:
        """The set that `to_json` wrote.

        Raises:
            InvalidInput: it did not write this.
        """
        with reading("the set of recipes"):
            content = parse_json(text, RecipeSet)
            _check_names("model", content["recipes"])
            recipes = {name: Recipe._from(recipe) for name, recipe in content["recipes"].items()}
            found = cls(recipes=recipes, tasks=content["tasks"], stated=tuple(content["stated"]))
            _ = found.digest
            return found


def checked_files(files: Mapping[str, str]) -> Mapping[str, str]:
    """The files that a document names by role and digest. Both become parts of paths, as names of models do.

    Raises:
        ValueError: one of them would lead to another folder.
    """
    _check_names("role", files)
    for digest in files.values():
        if not _DIGEST.fullmatch(digest):
            raise ValueError(f"{digest!r} is no digest of a file: 64 hexadecimal digits")
    return files


def _check_names(what: str, names: Iterable[str]) -> None:
    for name in names:
        if name in ("", "..") or "\0" in name or Path(name).name != name:
            raise ValueError(f"{name!r} is no {what}: a name, not a path")


def all_ingredients(recipe: Recipe) -> Iterator[tuple[str, Recipe]]:
    """Every ingredient at every depth with its path, such as "dam" or "soup/dam"; inner ones come first."""
    for name, ingredient in recipe.ingredients.items():
        for path, inner in all_ingredients(ingredient):
            yield f"{name}/{path}", inner
        yield name, ingredient


def all_files(recipe: Recipe) -> Iterator[str]:
    """Digests of the files of a recipe and of its ingredients."""
    for each in (recipe, *(ingredient for _, ingredient in all_ingredients(recipe))):
        yield from each.files.values()


def check_ingredients(recipe: Recipe) -> None:
    """Refuse what cannot stand as a source.

    Raises:
        InvalidInput: an ingredient is several models or a path of layers, has the name of a source, or merges models
            that the recipe does not list; or a path takes layers of one.
    """
    models = {recipe.base.name: recipe.base, **{source.name: source for source in recipe.sources}}
    for name, ingredient in recipe.ingredients.items():
        _check_ingredient(name, ingredient, models)
        if ingredient.base.fingerprint != recipe.base.fingerprint:
            raise InvalidInput(
                f"ingredient {name!r} has another base than the recipe; all merges of one recipe have the same base"
            )
        check_ingredients(ingredient)
    if layer := next((layer for layer in recipe.layers if layer.source in recipe.ingredients), None):
        raise InvalidInput(
            f"the path takes a layer of the ingredient {layer.source!r}; export that merge, and use it as a source"
        )


def _check_ingredient(name: str, ingredient: object, models: Mapping[str, ModelRef]) -> None:
    if not isinstance(ingredient, Recipe):
        raise InvalidInput(
            f"ingredient {name!r} is several models, and only one model can be a source; name one of them"
        )
    if ingredient.layers:
        raise InvalidInput(
            f"ingredient {name!r} is a path of layers, whose tensors are not those of the base; export it, and search "
            "with it as a source"
        )
    if name in models:
        raise InvalidInput(f"ingredient {name!r} has the name of a source of the recipe; give it another one")
    for ref in (ingredient.base, *ingredient.sources):
        if ref.name not in models or models[ref.name].fingerprint != ref.fingerprint:
            raise InvalidInput(
                f"ingredient {name!r} merges {ref.name!r} ({ref.fingerprint}), which the recipe does not list; "
                "`sources` has the models of all ingredients"
            )


def source_role(role: str, source: str) -> str:
    """The role of a file with the statistics of one source."""
    return f"{role}.{source}"


def single_source(base: ModelRef, source: ModelRef, tensors: tuple[str, ...], dtype: str) -> Recipe:
    """The recipe that copies one source."""
    return Recipe(base=base, sources=(source,), rules=(copying_rule(source.name, tensors),), dtype=dtype)


def copying_rule(source: str, tensors: tuple[str, ...]) -> Rule:
    """The rule that copies tensors of one source."""
    return Rule(
        tensors=tensors,
        method="linear",
        sources=(source,),
        parameters={"weight": (1.0,)},
        options={"normalize": False},
    )


def _without_locations(content: dict[str, Any]) -> dict[str, Any]:
    """The content of a recipe in which a model whose fingerprint is known is named by that alone."""
    for model in (content["base"], *content["sources"]):
        if model["fingerprint"]:
            del model["location"], model["revision"]
    for ingredient in content.get("ingredients", {}).values():
        _without_locations(ingredient)
    return content


def _rule_from(content: Mapping[str, Any]) -> Rule:
    parameters = {k: tuple(v) if isinstance(v, list) else v for k, v in content["parameters"].items()}
    return Rule(
        tensors=tuple(content["tensors"]),
        method=content["method"],
        sources=tuple(content["sources"]),
        parameters=parameters,
        options=dict(content["options"]),
    )


def _canonical(content: Any) -> str:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)

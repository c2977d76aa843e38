"""A recipe in mergekit's YAML, where that language can express it.

mergekit is a separate program that others may run on this file; nothing of it is used here. The YAML can express one
method for the whole model, and for each parameter one value, values by layer (a gradient over the layers), and values
by name (a filter is a part of a tensor's name; the first that fits decides). A merge of merges is several documents, as
mergekit-multi runs them: each ingredient has a name, by which later ones take it as a model.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import yaml

from evomerge.catalogue import TensorCatalogue
from evomerge.mergekit.layer_slices import dtypes_of, slices_of
from evomerge.mergekit.model_names import adapted_model, model_names, unnameable
from evomerge.mergekit.parameter_settings import Setting, evaluate, position
from evomerge.messages import counted
from evomerge.methods import METHODS, MergekitMethod, Option
from evomerge.methods.functions import load_function
from evomerge.recipe import Recipe, Rule, all_ingredients

_SEVERAL = "# Several merges, of which the last one has no name: run them with mergekit-multi.\n"
_ADAPTERS = (
    "# Models with adapters: mergekit needs --lora-merge-cache FOLDER, and --lora-merge-dtype float32 to add them in\n"
    "# float32 as evomerge does.\n"
)


class _NotExpressible(Exception):
    """Carries the reason; never leaves this file."""


def to_mergekit(recipe: Recipe, catalogue: TensorCatalogue, adapters: Collection[str] = ()) -> tuple[str | None, str]:
    """The recipe as mergekit YAML and an empty reason, or None and the reason why it cannot be expressed.

    The YAML opens with comments that name every choice in which mergekit's arithmetic differs from the recipe's.

    Args:
        adapters: names of the sources that are adapters of the base.
    """
    if reason := unnameable(recipe):
        return None, reason
    models = model_names(recipe, adapters)
    how = _ADAPTERS if any(map(adapted_model, models.values())) else ""
    if recipe.layers:
        slices, reason = slices_of(recipe, catalogue, models)
        if slices is None:
            return None, reason
        return how + _opening(recipe) + yaml.safe_dump(slices, sort_keys=False, allow_unicode=True), ""
    if any(each.space != "full" for each in (recipe, *(made for _, made in all_ingredients(recipe)))):
        return None, "it is merged in core space, which mergekit does not have"
    stages = dict(_stages(recipe))
    names = {digest: f"merge-{place}-{label}" for place, (digest, (label, _)) in enumerate(stages.items(), start=1)}
    documents, where = [], ""
    try:
        for label, each in stages.values():
            where = f"its ingredient {label!r}: "
            documents.append(_document(each, catalogue, models, names))
        where = ""
        documents.append(_document(recipe, catalogue, models, names))
    except _NotExpressible as error:
        return None, f"{where}{error}"
    how = (_SEVERAL if stages else "") + how
    return how + "---\n".join(documents), ""


def _stages(recipe: Recipe) -> Iterator[tuple[str, tuple[str, Recipe]]]:
    """(digest, (label, recipe)) of the ingredients that a rule names, at every depth, each after its own ones."""
    named = {source for rule in recipe.rules for source in rule.sources}
    for label, ingredient in recipe.ingredients.items():
        if label in named:
            yield from _stages(ingredient)
            yield ingredient.digest, (label, ingredient)


def _document(recipe: Recipe, catalogue: TensorCatalogue, models: Mapping[str, str], names: Mapping[str, str]) -> str:
    """The document of one merge.

    Args:
        models: name in the recipe -> the model as mergekit names it.
        names: digest -> name of each merge that later ones take.
    """
    method, sources, options = _one_method(recipe, catalogue)
    theirs = _counterpart(method)
    values = _values(recipe, theirs, options)
    stages = {label: names[each.digest] for label, each in recipe.ingredients.items() if each.digest in names}
    content = {"name": names[recipe.digest]} if recipe.digest in names else {}
    content |= _content(
        recipe,
        theirs,
        sources,
        {**models, **stages},
        base_model=_base_model(recipe, theirs, sources, options),
        switches=_switches(method, theirs, options),
        settings=_settings(values, catalogue),
    )
    comments = _comments(recipe, method, options, tokenizer="tokenizer_source" in content)
    return comments + yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def _one_method(recipe: Recipe, catalogue: TensorCatalogue) -> tuple[str, tuple[str, ...], dict[str, Any]]:
    """The method, the sources and the options that all rules share, checked for what mergekit has."""
    methods = {rule.method for rule in recipe.rules}
    if len(methods) != 1:
        raise _NotExpressible(f"mergekit has one method for a whole model; this recipe has {len(methods)}")
    first = recipe.rules[0]
    _counterpart(first.method)
    if any(rule.sources != first.sources for rule in recipe.rules):
        raise _NotExpressible("the rules of this recipe merge different sources")
    if any(dict(rule.options) != dict(first.options) for rule in recipe.rules):
        raise _NotExpressible("the rules of this recipe have different options")
    merged = {name for rule in recipe.rules for name in rule.tensors}
    copied = [entry.name for entry in catalogue.mergeable if entry.name not in merged]
    if copied:
        raise _NotExpressible(
            f"the recipe copies {counted(len(copied), 'tensor')} from the base, and mergekit merges all"
        )
    return first.method, first.sources, dict(first.options)


def _counterpart(method: str) -> MergekitMethod:
    info = METHODS.get(method)
    if info is None or info.mergekit is None:
        raise _NotExpressible(f"mergekit has no counterpart of the method {method}")
    return info.mergekit


def _values(
    recipe: Recipe, theirs: MergekitMethod, options: Mapping[str, Any]
) -> dict[tuple[str, str | None], dict[str, float]]:
    """(mergekit's parameter, source or None for shared) -> tensor -> value."""
    values: dict[tuple[str, str | None], dict[str, float]] = defaultdict(dict)
    for rule in recipe.rules:
        for name, value in _rule_parameters(rule, theirs, options).items():
            by_source = zip(rule.sources, value, strict=True) if isinstance(value, tuple) else [(None, value)]
            for source, number in by_source:
                values[name, source].update(dict.fromkeys(rule.tensors, number))
    lengths = {len(numbers) for numbers in values.values()}
    if len(lengths) > 1:
        raise _NotExpressible("the rules of this recipe have different parameters")
    return values


def _rule_parameters(
    rule: Rule, theirs: MergekitMethod, options: Mapping[str, Any]
) -> dict[str, float | tuple[float, ...]]:
    given = rule.parameters
    parameters = {theirs.parameters[name]: value for name, value in given.items() if name in theirs.parameters}
    for ours, name in theirs.complements.items():
        value = given[ours]
        parameters[name] = tuple(1 - share for share in value) if isinstance(value, tuple) else 1 - value
    for name, (path, names) in theirs.derived.items():
        by_source = zip(*(_by_source(given[ours], len(rule.sources)) for ours in names), strict=True)
        parameters[name] = tuple(load_function(path)(*values) for values in by_source)
    for missing in theirs.missing:
        value = given[missing.name]
        numbers = value if isinstance(value, tuple) else (value,)
        neutral = numbers[0] if missing.neutral is None else missing.neutral
        if not _holds(missing.unused_under, options) and any(number != neutral for number in numbers):
            raise _NotExpressible(missing.reason)
    return parameters


def _by_source(value: float | tuple[float, ...], sources: int) -> tuple[float, ...]:
    return value if isinstance(value, tuple) else (value,) * sources


def _holds(condition: tuple[str, Any] | None, options: Mapping[str, Any]) -> bool:
    return condition is not None and options.get(condition[0]) == condition[1]


def _settings(
    values: Mapping[tuple[str, str | None], Mapping[str, float]], catalogue: TensorCatalogue
) -> dict[tuple[str, str | None], Setting]:
    return {key: _setting(numbers, catalogue) for key, numbers in values.items()}


def _content(
    recipe: Recipe,
    theirs: MergekitMethod,
    sources: tuple[str, ...],
    refs: Mapping[str, str],
    *,
    base_model: str | None,
    switches: Mapping[str, bool],
    settings: Mapping[tuple[str, str | None], Setting],
) -> dict[str, Any]:
    models = []
    for source in sources:
        own = {name: setting for (name, of), setting in settings.items() if of == source}
        models.append({"model": refs[source]} | ({"parameters": own} if own else {}))
    shared = {name: setting for (name, of), setting in settings.items() if of is None} | dict(switches)
    content: dict[str, Any] = {"merge_method": theirs.name, "models": models}
    content |= {"base_model": refs[base_model]} if base_model else {}
    content |= {"parameters": shared} if shared else {}
    content |= dtypes_of(recipe)
    base = refs[recipe.base.name]
    return content if content.get("base_model") == base else content | {"tokenizer_source": base}


def _base_model(
    recipe: Recipe, theirs: MergekitMethod, sources: tuple[str, ...], options: Mapping[str, Any]
) -> str | None:
    """The model that is mergekit's `base_model`; None for none."""
    if theirs.base_model == "first source":
        return sources[0]
    # One of the models can give config and tokenizer alone, where the method takes nothing from a base.
    gives_tokenizer = theirs.base_under is None and recipe.base.name in sources
    needed = theirs.base_model == "base" or _holds(theirs.base_under, options)
    return recipe.base.name if needed or gives_tokenizer else None


def _switches(method: str, theirs: MergekitMethod, options: Mapping[str, Any]) -> dict[str, bool]:
    """mergekit's switches that correspond to our options; written out, because its defaults differ by method."""
    ours: dict[str, Option] = {option.name: option for option in METHODS[method].options}
    chosen = {name: options.get(name, option.default) for name, option in ours.items()}
    switches = {switch: chosen[name] != off for switch, (name, off) in theirs.switches.items()}
    switches |= {switch: chosen[name] == on for switch, (name, on) in theirs.selections.items()}
    return switches | dict(theirs.fixed)


def _setting(values: Mapping[str, float], catalogue: TensorCatalogue) -> Setting:
    """One number, or filters with numbers and gradients, that give every tensor its value, as is checked here."""
    distinct = set(values.values())
    if len(distinct) == 1:
        return distinct.pop()
    setting = _by_name(values, catalogue) + _by_layer(values, catalogue)
    for name, value in values.items():
        found = evaluate(setting, name, position(catalogue, name))
        if found is None or not math.isclose(found, value, rel_tol=1e-9, abs_tol=1e-12):
            raise _NotExpressible(f"mergekit's name filters cannot tell {name} from other tensors")
    return setting


def _by_name(values: Mapping[str, float], catalogue: TensorCatalogue) -> list[dict[str, Any]]:
    return [{"filter": name, "value": value} for name, value in values.items() if catalogue[name].layer is None]


def _by_layer(values: Mapping[str, float], catalogue: TensorCatalogue) -> list[dict[str, Any]]:
    """Filters for the tensors of the layers: the commonest values last, without a filter."""
    gradients = _gradients(values, catalogue)
    if not gradients:
        return []
    commonest = Counter(gradients.values()).most_common(1)[0][0]
    modules: dict[str, set[tuple[float, ...]]] = defaultdict(set)
    for suffix, gradient in gradients.items():
        modules[suffix.split(".")[0]].add(gradient)
    filters: dict[str, tuple[float, ...]] = {}
    for suffix, gradient in gradients.items():
        module = suffix.split(".")[0]
        if len(modules[module]) > 1:
            filters[f".{suffix}"] = gradient
        elif gradient != commonest:
            filters[f".{module}."] = gradient
    conditions = [{"filter": part, "value": _plain(gradient)} for part, gradient in filters.items()]
    return [*conditions, {"value": _plain(commonest)}]


def _gradients(values: Mapping[str, float], catalogue: TensorCatalogue) -> dict[str, tuple[float, ...]]:
    """Name after the layer's number -> value by layer. A layer without such a tensor takes the value before it."""
    by_suffix: dict[str, dict[int, float]] = defaultdict(dict)
    for name, value in values.items():
        layer = catalogue[name].layer
        if layer is not None:
            by_suffix[name.partition(f".{layer}.")[2]][layer] = value
    return {suffix: _filled(by_layer, catalogue.depth) for suffix, by_layer in by_suffix.items()}


def _filled(by_layer: Mapping[int, float], depth: int) -> tuple[float, ...]:
    values, last = [], by_layer[min(by_layer)]
    for layer in range(depth):
        last = by_layer.get(layer, last)
        values.append(last)
    return tuple(values)


def _plain(gradient: tuple[float, ...]) -> Setting:
    return gradient[0] if len(set(gradient)) == 1 else list(gradient)


def _opening(recipe: Recipe) -> str:
    return (
        f"# Written by evomerge from the recipe {recipe.digest}.\n"
        "# evomerge multiplies in float32 and rounds once; mergekit may give other last bits.\n"
    )


def _comments(recipe: Recipe, method: str, options: Mapping[str, Any], *, tokenizer: bool) -> str:
    lines = [
        f"Written by evomerge from the recipe {recipe.digest}.",
        "evomerge adds in float32 and rounds once; mergekit may give other last bits.",
    ]
    counterpart = _counterpart(method)
    theirs = counterpart.semantics
    # A recipe from before there was an option has its first choice.
    ours = {option.name: option.default for option in METHODS[method].options} | dict(options)
    different = [
        name
        for name, value in ours.items()
        if value not in counterpart.expressed.get(name, ()) and value != theirs.get(name)
    ]
    if different:
        lines.append("mergekit computes this method in its own way, so its weights WILL differ. Not as in the recipe:")
        lines += [f"  {name}: {ours[name]} here, {theirs.get(name, 'unknown')} in mergekit" for name in different]
    if METHODS[method].random:
        lines.append("mergekit draws random masks of its own, so its weights WILL differ from run to run of a search.")
    if tokenizer:
        lines += [
            "mergekit makes embeddings with one row for each token. Where the base has more rows than tokens, leave",
            "`tokenizer_source` out, and copy config and tokenizer from the base.",
        ]
    return "".join(f"# {line}\n" for line in lines)

"""Checks of a recipe that somebody may have written by hand: its rules say one merge, and say it as evomerge does.

A search makes its recipes of what is checked already. Here every number and option has to be what the method would make
of it: an option in another spelling would be taken for the choice that comes last.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from evomerge.catalogue import TensorCatalogue
from evomerge.errors import InvalidInput, nearest, unknown_name
from evomerge.messages import listed, some
from evomerge.methods import MethodInfo, method_info
from evomerge.methods.resolve import ParameterValue, resolve_options, resolve_parameters
from evomerge.passes.kernels import DTYPES
from evomerge.recipe import Recipe, Rule, all_ingredients


def check_rules(recipe: Recipe) -> None:
    """Refuse a recipe of which something is no merge whatever the models are, and ingredients likewise.

    Raises:
        InvalidInput: names rule, value and what is allowed.
    """
    for label, each in _recipes(recipe):
        _check_models(label, each)
        if each.dtype not in DTYPES:
            raise InvalidInput(f"{label} is of dtype {each.dtype!r}; known are {listed(list(DTYPES))}")
        known = [each.base.name, *(source.name for source in each.sources), *each.ingredients]
        for place, rule in enumerate(each.rules):
            with _named(f"{label}, rules[{place}] ({rule.method})"):
                _check_rule(rule, known)


def check_tensors(recipe: Recipe, catalogue: TensorCatalogue) -> None:
    """Refuse a recipe that names a tensor which its base does not have or which is not merged, or one tensor twice.

    Args:
        catalogue: of the base, which is that of all ingredients.

    Raises:
        InvalidInput: names rule and tensor.
    """
    mergeable = {entry.name for entry in catalogue.mergeable}
    for label, each in _recipes(recipe):
        places: dict[str, int] = {}
        for place, rule in enumerate(each.rules):
            with _named(f"{label}, rules[{place}] ({rule.method})"):
                for name in rule.tensors:
                    if name not in mergeable:
                        raise _no_tensor(name, mergeable, catalogue)
                    if name in places:
                        raise InvalidInput(f"it merges {name}, as rules[{places[name]}] does; name each tensor once")
                    places[name] = place


def _recipes(recipe: Recipe) -> Iterator[tuple[str, Recipe]]:
    yield "the recipe", recipe
    for path, each in all_ingredients(recipe):
        yield f"ingredient {path!r} of the recipe", each


@contextmanager
def _named(where: str) -> Iterator[None]:
    """Put the place into the message of an InvalidInput."""
    try:
        yield
    except InvalidInput as error:
        raise InvalidInput(f"{where}: {error}") from error


def _check_models(label: str, recipe: Recipe) -> None:
    known = {recipe.base.name: recipe.base}
    for ref in recipe.sources:
        if known.setdefault(ref.name, ref) != ref:
            raise InvalidInput(f"{label} has two models named {ref.name!r}; give each a name of its own")


def _check_rule(rule: Rule, known: list[str]) -> None:
    info = method_info(rule.method)
    for source in rule.sources:
        if source not in known:
            raise unknown_name("source", source, known)
    _check_parameters(info, rule)
    _check_options(info, rule)


def _check_parameters(info: MethodInfo, rule: Rule) -> None:
    sources = len(rule.sources)
    in_files: dict[str, ParameterValue] = {each.name: ({},) * sources for each in info.tensors}
    resolved = resolve_parameters(info.name, in_files | dict(rule.parameters), sources)
    for parameter in info.parameters:
        if parameter.name not in rule.parameters:
            raise InvalidInput(
                f"it lacks the parameter {parameter.name} ({parameter.allowed}); a recipe has every parameter"
            )
        given = rule.parameters[parameter.name]
        if parameter.per_source and not isinstance(given, tuple):
            raise InvalidInput(
                f"the parameter {parameter.name} is {given}, but a recipe has one number for each source: write "
                f"{list(resolved[parameter.name])}"  # type: ignore[arg-type]
            )


def _check_options(info: MethodInfo, rule: Rule) -> None:
    if "semantics" in rule.options:
        raise InvalidInput("`semantics` is no option of a recipe, which has every option with its own value")
    resolved = resolve_options(info.name, rule.options, n_sources=len(rule.sources))
    for name, value in rule.options.items():
        if value != resolved[name]:
            raise InvalidInput(f"the option {name} is {value!r}; write it as {resolved[name]!r}")
    for option in info.options:
        if option.name not in rule.options and not option.late:
            choices = [str(choice).lower() if isinstance(choice, bool) else str(choice) for choice in option.choices]
            raise InvalidInput(f"it lacks the option {option.name} ({' | '.join(choices)}); a recipe has every option")


def _no_tensor(name: str, mergeable: set[str], catalogue: TensorCatalogue) -> InvalidInput:
    if name in catalogue:
        return InvalidInput(f"{name} holds no floating-point numbers, and is copied from the base; leave it out")
    close = nearest(name, mergeable)
    hint = f"did you mean {close[0]!r}?" if close else f"it has {some(sorted(mergeable))}"
    return InvalidInput(f"the base has no tensor {name!r}; {hint}")

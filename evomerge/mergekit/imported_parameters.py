"""Parameters and switches of mergekit's methods as those of ours: the inverse of the values in `export_yaml.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from evomerge.errors import InvalidInput, nearest
from evomerge.mergekit.merge_file import InputModel, Keys, MergeDocument, OutputSlice
from evomerge.mergekit.parameter_settings import evaluate, values_of
from evomerge.methods import METHODS, MergekitMethod, MethodInfo, OptionValue, Parameter
from evomerge.methods.functions import load_function
from evomerge.methods.resolve import resolve_options, resolve_parameters

_METHODS = {info.mergekit.name: info for info in METHODS.values() if info.mergekit is not None}

# mergekit's own defaults, by its documentation. `weight` and `t` have none.
_DEFAULTS = {"density": 1.0, "gamma": 0.01, "lambda": 1.0, "scale": 1.0, "select_topk": 1.0, "r": 0.1, "alpha": 0.2}
_EPSILON = {"della": 0.15, "della_linear": 0.15, "ram": 1e-5, "ramplus_tl": 1e-5}

# Parameters that change mergekit's arithmetic in a way that no recipe says, with the values under which they do not.
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "rescale": (False,),
    "normalize_weights": (True,),
    "embed_slerp": (False,),
    "max_iter": (10,),
    "tol": (1e-5,),
    "eps": (1e-8,),
}

_WITHOUT_EFFECT = {"int8_mask": "`int8_mask` saves memory in mergekit and changes nothing; ignored"}

# Sums of task vectors whose weights our methods multiply in the place of a `lambda` of their own.
_LAMBDA_IN_WEIGHTS = frozenset({"task_arithmetic", "dare_linear"})

Number = float | tuple[float, ...]


@dataclass(frozen=True)
class _Scope:
    """One place of the file that has parameters.

    Attributes:
        model: whether they are of one model alone; mergekit reads parameters of the whole merge elsewhere.
        merged: whether that model is merged. The base of task vectors is not.
    """

    parameters: Mapping[str, Any]
    keys: Keys
    model: bool = False
    merged: bool = True


class MethodReader:
    """The method of a document, and what the file says of its parameters for each tensor.

    Raises InvalidInput where the method is unknown, or a parameter has no counterpart; with the line.
    """

    def __init__(self, document: MergeDocument) -> None:
        if document.method not in _METHODS:
            close = nearest(document.method, _METHODS)
            hint = f"did you mean {close[0]!r}?" if close else f"read are {', '.join(sorted(_METHODS))}"
            reason = f"the method {document.method!r} has no counterpart here; {hint}"
            raise document.refusal(("merge_method",), reason)
        self.info: MethodInfo = _METHODS[document.method]
        self._theirs = _counterpart(self.info)
        self._document = document
        self._per_source = {parameter.name for parameter in self.info.per_source}
        self._switches = {*self._theirs.switches, *self._theirs.selections, *self._theirs.fixed}
        for level in self._levels():
            self._check(level)

    @property
    def has_base(self) -> bool:
        """Whether a `base_model` is what task vectors are taken from."""
        return self._theirs.base_model == "base" or self._theirs.base_under is not None

    @property
    def needs_base_model(self) -> bool:
        """Whether the file has to name a `base_model`."""
        return self._theirs.base_model != "none"

    def values(
        self, name: str, place: Fraction, each: OutputSlice, models: Sequence[InputModel]
    ) -> tuple[dict[str, Number], dict[str, OptionValue]]:
        """Parameters and options of our method for one tensor.

        Args:
            place: of the tensor on gradients.
            models: those that are merged, in the order of the rule's sources.

        Raises:
            InvalidInput: a value is missing, or one for which the method is not defined.
        """
        options = self._options(name, place, each)
        values = {
            parameter.name: self._value(parameter, name, place, each, models) for parameter in self.info.parameters
        }
        self._multiply_lambda(values, options, name, place, each)
        if "normalize" in self._theirs.fixed and self._read("normalize", name, place, each):
            # Our method has no such switch, but divided by the sum of the weights it is the same with another lambda.
            values["lambda"] = _one(values["lambda"]) / _divisor(values["weight"])
        try:
            found = resolve_parameters(self.info.name, values, len(models))
        except InvalidInput as error:
            raise self._document.refusal(each.keys, str(error)) from None
        return {key: _number(value) for key, value in found.items()}, options

    def scale(self, name: str, place: Fraction, each: OutputSlice) -> float:
        """Scale of one tensor of a slice of passthrough."""
        return self._theirs_of("scale", name, place, each, each.models[0])

    def notes(self) -> Iterator[str]:
        """A sentence for each parameter that is not read, and for random masks."""
        for level in self._levels():
            for key in level.parameters:
                if (note := self._note(level, key)) is not None:
                    yield self._document.note((*level.keys, "parameters", key), note)
        if self.info.random:
            yield self._document.note(
                ("merge_method",), "mergekit draws random masks of its own; evomerge's are a function of the seed"
            )

    def _value(
        self, parameter: Parameter, name: str, place: Fraction, each: OutputSlice, models: Sequence[InputModel]
    ) -> Number:
        if not parameter.per_source:
            return self._number(parameter, name, place, each, None)
        return tuple(self._number(parameter, name, place, each, model) for model in models)

    def _number(
        self, parameter: Parameter, name: str, place: Fraction, each: OutputSlice, model: InputModel | None
    ) -> float:
        ours, theirs = parameter.name, self._theirs
        if ours in theirs.parameters:
            return self._theirs_of(theirs.parameters[ours], name, place, each, model)
        if ours in theirs.complements:
            density = self._theirs_of(theirs.complements[ours], name, place, each, model)
            return _shortest(1 - density, lambda share: 1 - share == density)
        for derived, (path, names) in theirs.derived.items():
            if ours == names[-1]:
                return self._solved(derived, path, names, name, place, each, model)
        neutral = next((missing.neutral for missing in theirs.missing if missing.name == ours), None)
        return parameter.default if neutral is None else neutral

    def _solved(
        self,
        derived: str,
        path: str,
        names: tuple[str, ...],
        name: str,
        place: Fraction,
        each: OutputSlice,
        model: InputModel | None,
    ) -> float:
        """The last parameter of ours that a parameter of mergekit's is made of; it is proportional to it."""
        given = self._theirs_of(derived, name, place, each, model)
        known = [self._theirs_of(self._theirs.parameters[ours], name, place, each, model) for ours in names[:-1]]
        function = load_function(path)
        whole = function(*known, 1.0)
        if not whole:
            return 0.0  # where everything is kept, or nothing, it has no effect
        return _shortest(given / whole, lambda share: function(*known, share) == given)

    def _theirs_of(
        self, parameter: str, name: str, place: Fraction, each: OutputSlice, model: InputModel | None
    ) -> float:
        """mergekit's parameter for one tensor: of the model, else of the slice, else of the whole merge."""
        value = self._read(parameter, name, place, each, model)
        if value is None and parameter == "epsilon":
            value = _EPSILON[self._theirs.name]
        value = _DEFAULTS.get(parameter) if value is None else value
        if value is None:
            where = f" of {model.model}" if model is not None else ""
            keys = each.keys if model is None else model.keys
            raise self._document.refusal(keys, f"`{parameter}`{where} is missing for {name}")
        return float(value)

    def _read(
        self, parameter: str, name: str, place: Fraction, each: OutputSlice, model: InputModel | None = None
    ) -> Any:
        own = [model.parameters] if model is not None else []
        for parameters in (*own, each.parameters, self._document.parameters):
            if parameter not in parameters:
                continue
            value = evaluate(parameters[parameter], name, place, switch=parameter in self._switches)
            if value is not None:
                return value
        return None

    def _multiply_lambda(
        self,
        values: dict[str, Number],
        options: dict[str, OptionValue],
        name: str,
        place: Fraction,
        each: OutputSlice,
    ) -> None:
        factor = self._read("lambda", name, place, each) if self._theirs.name in _LAMBDA_IN_WEIGHTS else None
        if factor is None or factor == 1:
            return
        if options.get("normalize"):
            factor /= _divisor(values["weight"])
            options["normalize"] = False
        values["weight"] = tuple(factor * weight for weight in _tuple(values["weight"]))

    def _options(self, name: str, place: Fraction, each: OutputSlice) -> dict[str, OptionValue]:
        theirs = self._theirs
        chosen: dict[str, OptionValue] = {}
        for switch, (option, off) in theirs.switches.items():
            if (value := self._read(switch, name, place, each)) is not None:
                chosen[option] = self._switched_on(option, off) if value else off
        if theirs.selections:
            chosen |= self._selected(name, place, each)
        if theirs.base_under is not None and self._document.base_model is not None:
            option, value = theirs.base_under
            chosen[option] = value
        return resolve_options(self.info.name, chosen, semantics="mergekit")

    def _switched_on(self, option: str, off: OptionValue) -> OptionValue:
        """The value of an option under which a switch of mergekit's is on: its own definition where that is so."""
        theirs = self._theirs
        choices = (theirs.semantics.get(option, off), *theirs.expressed.get(option, ()), *self._choices(option))
        return next(choice for choice in choices if choice != off)

    def _selected(self, name: str, place: Fraction, each: OutputSlice) -> dict[str, OptionValue]:
        """The option that several switches choose: of the first one that is on, or else the choice without a switch."""
        named = []
        for switch, (option, on) in self._theirs.selections.items():
            choices, value = self._choices(option), self._read(switch, name, place, each)
            if value or (value is None and choices[0] == on):
                return {option: on}
            named.append(on)
        return {option: next(choice for choice in choices if choice not in named)}

    def _choices(self, option: str) -> tuple[OptionValue, ...]:
        return next(each.choices for each in self.info.options if each.name == option)

    def _levels(self) -> Iterator[_Scope]:
        document = self._document
        yield _Scope(document.parameters, ())
        for each in document.slices:
            if document.sliced:
                yield _Scope(each.parameters, each.keys)
            for model in each.models:
                merged = not (self.has_base and model.model == document.base_model)
                yield _Scope(model.parameters, model.keys, model=True, merged=merged)

    def _check(self, level: _Scope) -> None:
        for key, setting in level.parameters.items():
            keys: Keys = (*level.keys, "parameters", key)
            if key in self._switches and (given := [value for value in values_of(setting) if value not in (0, 1)]):
                raise self._document.refusal(keys, f"`{key}` is true or false, not {given[0]}")
            if key in self._read_here(model=False) or key in self._theirs.fixed or not level.merged:
                continue
            if key in _NEUTRAL:
                if setting not in _NEUTRAL[key]:
                    allowed = str(_NEUTRAL[key][0]).lower()
                    raise self._document.refusal(keys, f"`{key}` of {self._theirs.name} can only be {allowed} here")
            elif key not in _WITHOUT_EFFECT and key not in _every_parameter():
                close = nearest(key, _every_parameter())
                hint = f"did you mean {close[0]!r}?" if close else f"it reads {', '.join(sorted(self._read_here()))}"
                raise self._document.refusal(keys, f"{self._theirs.name} has no parameter `{key}`; {hint}")

    def _note(self, level: _Scope, key: str) -> str | None:
        if key in _WITHOUT_EFFECT:
            return _WITHOUT_EFFECT[key]
        if not level.merged:
            return f"`{key}` of the base is not read; ignored"
        if key == "lambda" and self._theirs.name in _LAMBDA_IN_WEIGHTS and not level.model:
            return "`lambda` is multiplied into the weights"
        if key in self._read_here(model=level.model) or key in self._theirs.fixed or key in _NEUTRAL:
            return None
        if key in self._read_here(model=False):
            return f"`{key}` is read of the whole merge, not of one model; ignored"
        return f"{self._theirs.name} reads no `{key}`; ignored"

    def _read_here(self, *, model: bool = False) -> set[str]:
        """Parameters of mergekit's that are read, of one model alone or anywhere."""
        theirs = self._theirs
        own = {**theirs.parameters, **theirs.complements}
        names = {their for ours, their in own.items() if not model or ours in self._per_source} | set(theirs.derived)
        if not model:
            names.update(theirs.switches, theirs.selections)
            names.update({"lambda"} if theirs.name in _LAMBDA_IN_WEIGHTS else ())
        return names


def _counterpart(info: MethodInfo) -> MergekitMethod:
    if info.mergekit is None:
        raise ValueError(f"{info.name} has no counterpart in mergekit")
    return info.mergekit


def _every_parameter() -> set[str]:
    """Every parameter that some method of mergekit's has: where one of them is not read, it does no harm."""
    counterparts = [_counterpart(info) for info in _METHODS.values()]
    names: set[str] = set()
    for each in counterparts:
        names.update(each.parameters.values(), each.complements.values(), each.derived, each.switches, each.selections)
    return names | _NEUTRAL.keys()


def _tuple(value: Number) -> tuple[float, ...]:
    return value if isinstance(value, tuple) else (value,)


def _one(value: Number) -> float:
    (number,) = _tuple(value)
    return number


def _divisor(weights: Number) -> float:
    """The sum of the weights; 1 where it is nearly 0, as in mergekit."""
    total = sum(_tuple(weights))
    return total if abs(total) >= 1e-8 else 1.0


def _number(value: Any) -> Number:
    return tuple(float(each) for each in value) if isinstance(value, tuple) else float(value)


def _shortest(value: float, fits: Callable[[float], bool]) -> float:
    """The number with the fewest digits near a value that fits, as somebody may have written it; else the value."""
    return next((near for digits in range(1, 18) if fits(near := float(f"{value:.{digits}g}"))), value)

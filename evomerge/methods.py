"""Every merge method as data: its parameters, options, needs and paper. The arithmetic stands in `evomerge.merging`.

The names and values of options are those that recipes, search spaces and `evomerge methods` use. The first choice of an
option is the default: the definition of the method's own authors. `MERGEKIT_SEMANTICS` holds mergekit's choices, which
differ from the authors' in almost every option and change the result without any error message.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from evomerge.errors import InvalidInput, unknown_name

__all__ = [
    "MERGEKIT_SEMANTICS",
    "METHODS",
    "MethodInfo",
    "Option",
    "OptionValue",
    "Parameter",
    "TensorParameter",
    "method_info",
    "resolve_options",
    "resolve_parameters",
    "validate",
]

OptionValue = str | bool
ParameterValue = float | Sequence[Any]
Resolved = float | tuple[Any, ...]  # a number, one per source, or one mapping of tensors per source


@dataclass(frozen=True)
class Parameter:
    """A number that a search may choose.

    Attributes:
        per_source: one number per source, in source order; otherwise one number for all.
        low, high: the range recommended for a search.
        minimum, maximum: the values for which the method is defined; both included.
    """

    name: str
    per_source: bool
    low: float
    high: float
    default: float
    description: str
    minimum: float = -math.inf
    maximum: float = math.inf


@dataclass(frozen=True)
class TensorParameter:
    """For each source, in source order, {tensor name: tensor}. It is trained or given, never searched."""

    name: str
    description: str


@dataclass(frozen=True)
class Option:
    """A choice between definitions. The first of `choices` is the default; an option with one choice is fixed."""

    name: str
    choices: tuple[OptionValue, ...]
    description: str

    @property
    def default(self) -> OptionValue:
        return self.choices[0]


@dataclass(frozen=True)
class MethodInfo:
    """What is known about a merge method without merging.

    Attributes:
        per_source, shared: its parameters that are numbers; `parameters` is both.
        needs: what it needs beyond the sources' weights, of "base", "statistics" and "gradients".
        elementwise: whatever the options, an element of the result depends on that element of base and sources alone.
        sources: the exact number of sources, or None for any number.
        tensors: its parameters that are tensors.
    """

    name: str
    title: str
    per_source: tuple[Parameter, ...]
    shared: tuple[Parameter, ...]
    options: tuple[Option, ...]
    needs: frozenset[str]
    elementwise: bool
    sources: int | None
    paper: str
    tensors: tuple[TensorParameter, ...] = ()

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        return self.per_source + self.shared


_BASE = frozenset({"base"})

_DENSITY = Parameter(
    "density", True, 0.05, 0.6, 0.2, "share of each task vector that is kept, largest magnitudes first", 0.0, 1.0
)
_DROP_RATE = Parameter(
    "drop_rate", True, 0.0, 0.95, 0.1, "probability with which an element of the task vector is dropped", 0.0, 1.0
)
_LAMBDA = Parameter(
    "lambda", False, 0.3, 2.5, 1.0, "factor of the merged task vector; search 0.1 to 0.6 with agg: dis-sum"
)
_TASK_WEIGHT = Parameter("weight", True, 0.0, 1.5, 0.3, "factor of each task vector; a negative one removes a skill")

_NORMALIZE_OFF = Option("normalize", (False, True), "divide the sum of task vectors by the sum of the weights")

_TIES_OPTIONS = (
    Option(
        "trim_scope",
        ("global", "tensor", "layer_group"),
        "over what the density is measured: all mergeable tensors, each tensor alone, or those of one layer or group",
    ),
    Option(
        "kept_rule",
        ("ge_kth", "topk", "mask_rate"),
        "ge_kth keeps int(dK)+1 of d elements and those tied with the last; topk keeps exactly int(dK), at least one; "
        "mask_rate drops int(d(1-K))-1. Density 1 keeps everything under each",
    ),
    Option("elect", ("mass", "count"), "the sign of an element is that of the sum of values, or of the sum of signs"),
    Option(
        "zero_sign",
        ("global majority", "plus"),
        "the sign of an exactly zero sum: that of most elements of the trim scope (negative where they balance), or +1",
    ),
    Option("agg", ("dis-mean", "dis-sum", "dis-max"), "mean, sum or largest magnitude of what has the elected sign"),
    Option(
        "weighting",
        ("count", "norm", "sum"),
        "what dis-mean divides the weighted sum by: the number of kept values, the sum of their weights, or nothing",
    ),
)

_DARE_OPTIONS = (
    Option(
        "rescale",
        ("1/(1-p)", "none", "l1_match"),
        "factor of the survivors: 1/(1-p), so that the mean over masks is the task vector; none; or whatever restores "
        "the L1 norm of the tensor",
    ),
    Option("targets", ("all", "linear"), "drop from all tensors, or from two-dimensional ones only"),
    Option("delta_only", (True,), "the task vector is masked, never the weights themselves"),
)

_ALL = (
    MethodInfo(
        name="linear",
        title="Weighted average of the sources (model soup)",
        per_source=(Parameter("weight", True, 0.0, 1.0, 1.0, "share of each source", minimum=0.0),),
        shared=(),
        options=(Option("normalize", (True, False), "divide by the sum of the weights"),),
        needs=frozenset(),
        elementwise=True,
        sources=None,
        paper="Model soups, arXiv 2203.05482",
    ),
    MethodInfo(
        name="column_linear",
        title="Sum of the sources, each input column with a trained weight of its own (DAM)",
        per_source=(),
        shared=(),
        options=(
            Option("phi", ("identity", "tanh", "sigmoid", "relu"), "what a coefficient goes through before it weighs"),
        ),
        needs=frozenset(),
        elementwise=True,
        sources=None,
        paper="Differentiable adaptive merging (DAM), arXiv 2410.08371",
        tensors=(
            TensorParameter(
                "coefficients",
                "for each source {tensor name: tensor}, broadcast to the weight: one number per input column, per "
                "element of a norm, or one in all",
            ),
        ),
    ),
    MethodInfo(
        name="slerp",
        title="Spherical interpolation between two sources, one angle per tensor",
        per_source=(),
        shared=(Parameter("t", False, 0.0, 1.0, 0.5, "0 is the first source, 1 the second", 0.0, 1.0),),
        options=(Option("multi_model", ("reject",), "more than two sources are refused"),),
        needs=frozenset(),
        elementwise=False,
        sources=2,
        paper="Animating rotation with quaternion curves, SIGGRAPH 1985",
    ),
    MethodInfo(
        name="task_arithmetic",
        title="Base plus a weighted sum of task vectors",
        per_source=(_TASK_WEIGHT,),
        shared=(),
        options=(_NORMALIZE_OFF,),
        needs=_BASE,
        elementwise=True,
        sources=None,
        paper="Editing models with task arithmetic, arXiv 2212.04089",
    ),
    MethodInfo(
        name="ties",
        title="TIES: trim task vectors, elect signs, merge what agrees",
        per_source=(_DENSITY, Parameter("weight", True, 0.0, 2.0, 1.0, "factor of each trimmed task vector")),
        shared=(_LAMBDA,),
        options=_TIES_OPTIONS,
        needs=_BASE,
        elementwise=False,
        sources=None,
        paper="TIES-Merging, arXiv 2306.01708",
    ),
    MethodInfo(
        name="dare_linear",
        title="DARE: drop elements of task vectors at random, rescale, then task arithmetic",
        per_source=(_DROP_RATE, _TASK_WEIGHT),
        shared=(),
        options=(*_DARE_OPTIONS, _NORMALIZE_OFF),
        needs=_BASE,
        elementwise=False,
        sources=None,
        paper="Language models are super Mario (DARE), arXiv 2311.03099",
    ),
    MethodInfo(
        name="dare_ties",
        title="DARE: drop elements of task vectors at random, rescale, then TIES",
        per_source=(
            _DROP_RATE,
            _DENSITY,
            Parameter("weight", True, 0.0, 2.0, 1.0, "factor of each masked and trimmed task vector"),
        ),
        shared=(_LAMBDA,),
        options=(
            *_DARE_OPTIONS,
            Option("dare_ties", ("retrim", "no_trim"), "trim the masked vectors, or elect and merge only"),
            *_TIES_OPTIONS,
        ),
        needs=_BASE,
        elementwise=False,
        sources=None,
        paper="Language models are super Mario (DARE), arXiv 2311.03099; TIES-Merging, arXiv 2306.01708",
    ),
)

METHODS: dict[str, MethodInfo] = {info.name: info for info in _ALL}

_MERGEKIT_TIES: dict[str, OptionValue] = {
    "trim_scope": "tensor",
    "kept_rule": "topk",
    "elect": "mass",
    "zero_sign": "plus",
    "agg": "dis-mean",
}

MERGEKIT_SEMANTICS: dict[str, dict[str, OptionValue]] = {
    "linear": {"normalize": True},
    "column_linear": {},
    "slerp": {"multi_model": "reject"},
    "task_arithmetic": {"normalize": False},
    "ties": {**_MERGEKIT_TIES, "weighting": "norm"},
    "dare_linear": {"rescale": "l1_match", "targets": "all", "normalize": False},
    "dare_ties": {
        "rescale": "l1_match",
        "targets": "all",
        "dare_ties": "no_trim",
        **_MERGEKIT_TIES,
        "weighting": "sum",
    },
}

_SEMANTICS: dict[str, Mapping[str, Mapping[str, OptionValue]]] = {"evomerge": {}, "mergekit": MERGEKIT_SEMANTICS}


def method_info(name: str) -> MethodInfo:
    """What is known about the method of that name.

    Raises:
        InvalidInput: there is no such method; the message offers the nearest names.
    """
    if name not in METHODS:
        raise unknown_name("merge method", str(name), METHODS)
    return METHODS[name]


def resolve_parameters(method: str, parameters: Mapping[str, ParameterValue], n_sources: int) -> dict[str, Resolved]:
    """All parameters of the method: one float for shared ones, a tuple in source order for per-source ones.

    What is not given takes its default; a number given for a per-source parameter stands for all sources. Tensors have
    no default and are passed on as they are, a tuple of mappings in source order.

    Raises:
        InvalidInput: unknown parameter, a list of the wrong length, a value that is no number, not finite, or one for
            which the method is not defined; or a number of sources that the method cannot merge.
    """
    info = method_info(method)
    if n_sources < 1:
        raise InvalidInput(f"{method} needs at least one source, but got {n_sources}")
    if info.sources is not None and n_sources != info.sources:
        raise InvalidInput(f"{method} merges exactly {info.sources} sources, but got {n_sources}")
    known = [parameter.name for parameter in info.parameters] + [each.name for each in info.tensors]
    _refuse_unknown(f"parameter of {method!r}", parameters, known)
    numbers: dict[str, Resolved] = {
        parameter.name: _resolve_parameter(
            method, parameter, parameters.get(parameter.name, parameter.default), n_sources
        )
        for parameter in info.parameters
    }
    return numbers | {each.name: _resolve_tensors(method, each, parameters, n_sources) for each in info.tensors}


def resolve_options(
    method: str, options: Mapping[str, OptionValue], *, semantics: str = "evomerge", scope: str | None = None
) -> dict[str, OptionValue]:
    """All options of the method, with their canonical values.

    What is given wins over the preset `semantics` ("evomerge" or "mergekit"; it may also stand among the options), the
    preset over `scope`, and that over the defaults. Case does not matter in values, nor whether words are joined by
    spaces, hyphens or underscores.

    Args:
        scope: the `trim_scope` of methods that have one, where neither the options nor the preset say it.

    Raises:
        InvalidInput: unknown option, value or preset.
    """
    info = method_info(method)
    known = {option.name: option for option in info.options}
    preset = options.get("semantics", semantics)
    if not isinstance(preset, str) or preset not in _SEMANTICS:
        raise unknown_name("semantics", str(preset), _SEMANTICS)
    given = {name: value for name, value in options.items() if name != "semantics"}
    _refuse_unknown(f"option of {method!r}", given, known)
    base = {"trim_scope": scope} if scope is not None and "trim_scope" in known else {}
    chosen = {**base, **_SEMANTICS[preset].get(method, {}), **given}
    return {name: _resolve_option(method, option, chosen.get(name, option.default)) for name, option in known.items()}


def validate(
    method: str,
    parameters: Mapping[str, ParameterValue],
    options: Mapping[str, OptionValue],
    n_sources: int,
    *,
    has_base: bool = True,
) -> tuple[dict[str, Resolved], dict[str, OptionValue]]:
    """`resolve_parameters` and `resolve_options` in one, and a check that a base is there where the method needs one.

    Raises:
        InvalidInput: whatever is wrong, see there.
    """
    if "base" in method_info(method).needs and not has_base:
        raise InvalidInput(f"{method} works on task vectors (source minus base); give the base model")
    return resolve_parameters(method, parameters, n_sources), resolve_options(method, options)


def _refuse_unknown(kind: str, given: Iterable[str], known: Iterable[str]) -> None:
    names = list(known)
    for name in given:
        if name not in names:
            raise unknown_name(kind, str(name), names)


def _resolve_parameter(
    method: str, parameter: Parameter, value: ParameterValue, n_sources: int
) -> float | tuple[float, ...]:
    if isinstance(value, list | tuple):
        if not parameter.per_source:
            raise InvalidInput(f"{method}: {parameter.name} is one number, not one per source, but got {value!r}")
        if len(value) != n_sources:
            raise InvalidInput(
                f"{method}: {parameter.name} has {len(value)} values for {n_sources} sources; give one number per "
                "source, in source order, or one number for all"
            )
        return tuple(_number(method, parameter, item) for item in value)
    number = _number(method, parameter, value)
    return (number,) * n_sources if parameter.per_source else number


def _resolve_tensors(
    method: str, parameter: TensorParameter, parameters: Mapping[str, ParameterValue], n_sources: int
) -> tuple[Mapping[str, Any], ...]:
    wanted = f"{method}: {parameter.name} is a list of {n_sources} mappings of tensor names to tensors, in source order"
    if parameter.name not in parameters:
        raise InvalidInput(f"{wanted}, and has no default; give it")
    value = parameters[parameter.name]
    if not isinstance(value, list | tuple) or not all(isinstance(each, Mapping) for each in value):
        raise InvalidInput(f"{wanted}, but got {_kind(value)}")
    if len(value) != n_sources:
        raise InvalidInput(f"{wanted}, but got {len(value)} mappings")
    return tuple(value)


def _kind(value: object) -> str:
    inside = (
        f" with {', '.join(sorted({type(each).__name__ for each in value}))}" if isinstance(value, list | tuple) else ""
    )
    return f"a {type(value).__name__}{inside}"


def _number(method: str, parameter: Parameter, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise InvalidInput(f"{method}: {parameter.name} must be a number, but got {value!r}")
    number = float(value)
    if not math.isfinite(number):
        raise InvalidInput(f"{method}: {parameter.name} must be finite, but got {number}")
    if not parameter.minimum <= number <= parameter.maximum:
        raise InvalidInput(
            f"{method}: {parameter.name} = {number} is outside of [{parameter.minimum}, {parameter.maximum}]"
        )
    return number


def _resolve_option(method: str, option: Option, value: object) -> OptionValue:
    for choice in option.choices:
        # By type as well: 1 == True, but a number is no switch.
        if type(value) is type(choice) and _spelling(value) == _spelling(choice):
            return choice
    known = [str(choice).lower() if isinstance(choice, bool) else choice for choice in option.choices]
    raise unknown_name(f"value of {method!r} option {option.name!r}:", str(value), known)


def _spelling(value: object) -> object:
    return value.lower().replace(" ", "_").replace("-", "_") if isinstance(value, str) else value

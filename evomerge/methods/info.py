"""Values that describe a merge method: parameters, options, needs, traits, and its counterpart in mergekit."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

OptionValue = str | bool | int

NEEDS = frozenset({"base", "statistics", "gradients"})


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A number that a search may choose.

    Attributes:
        per_source: one number per source, in source order; otherwise one number for all.
        low, high: the range recommended for a search.
        minimum, maximum: the values for which the method is defined; both included.
        fixed: better left at one value in a search: each value costs a measurement, or has an effect under some options
            only.
    """

    name: str
    per_source: bool
    low: float
    high: float
    default: float
    description: str
    minimum: float = -math.inf
    maximum: float = math.inf
    fixed: bool = False

    @property
    def allowed(self) -> str:
        """The values for which the method is defined, in words."""
        least = "" if math.isinf(self.minimum) else f"{self.minimum:g}"
        most = "" if math.isinf(self.maximum) else f"{self.maximum:g}"
        if self.maximum < float(most or "inf"):  # the largest number below the one that it rounds to
            return f"from {least}, below {most}" if least else f"below {most}"
        if least and most:
            return f"{least} to {most}"
        return f"from {least}" if least else f"up to {most}" if most else "any number"


@dataclass(frozen=True)
class TensorParameter:
    """For each source, in source order, {tensor name: tensor}. It is trained or given, never searched.

    Attributes:
        options: those options of the method that the tensors were trained for. Their file states the values, and is
            refused by a rule with others.
    """

    name: str
    description: str
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Statistics:
    """For each source, in source order, {tensor name: tensor}: measured before the merge, on data.

    Attributes:
        name: the role under which a recipe names their file, such as "fisher".
        of_tied: whether a tensor that several modules share has one. A tied head merged as a linear layer would no
            longer suit the embedding that it is.
        needed_under: (option, its value) under which the method cannot do without, where it otherwise takes none.
        measured: whether a search measures them: they are a kind of `evomerge.statistics`.
        switches: setting of the measurement -> (option of the method, its value under which the setting is on).
    """

    name: str
    description: str
    of_tied: bool = True
    needed_under: tuple[str, OptionValue] | None = None
    measured: bool = False
    switches: Mapping[str, tuple[str, OptionValue]] = field(default_factory=dict)

    def settings(self, options: Mapping[str, OptionValue]) -> dict[str, bool]:
        """The settings of the measurement for these options of the method, all of them given."""
        return {setting: options[option] == value for setting, (option, value) in self.switches.items()}


@dataclass(frozen=True)
class Option:
    """A choice between definitions. The first of `choices` is the default; an option with one choice is fixed.

    Attributes:
        late: recipes from before there was this option do not name it, and mean the first choice.
    """

    name: str
    choices: tuple[OptionValue, ...]
    description: str
    late: bool = False

    @property
    def default(self) -> OptionValue:
        return self.choices[0]


@dataclass(frozen=True)
class SourceOption:
    """An option whose value is the position of a source, counted from 0. It has no default and is never searched."""

    name: str
    description: str


@dataclass(frozen=True, kw_only=True)
class MissingParameter:
    """A parameter of ours that mergekit's method lacks: there a merge is the same only where it has no effect.

    Attributes:
        neutral: the value without effect; None: any value that all sources share.
        unused_under: (option, its value) under which the parameter has no effect at all; None: there is no such option.
        reason: the sentence that refuses any other value.
    """

    name: str
    neutral: float | None
    unused_under: tuple[str, OptionValue] | None
    reason: str


@dataclass(frozen=True, kw_only=True)
class MergekitMethod:
    """A method's counterpart in mergekit.

    Attributes:
        name: mergekit's `merge_method`.
        base_model: what its YAML names as `base_model`: nothing, the base, or the first source.
        base_under: (our option, its value) under which it is the base instead.
        parameters: our parameter -> mergekit's, for those that carry over as they are.
        complements: our parameter -> mergekit's that is 1 minus it.
        derived: mergekit's parameter -> ("module:function", the parameters of ours that the function takes in order).
        missing: parameters that mergekit lacks.
        switches: mergekit's switch -> (our option, the value under which the switch is off).
        selections: mergekit's switch -> (our option, the value under which the switch is on).
        fixed: mergekit's switches that its method needs at one value.
        semantics: our options with the values that are mergekit's definition.
        expressed: our option -> values that the YAML states by other means, so that they are no difference.
    """

    name: str
    base_model: Literal["none", "base", "first source"]
    base_under: tuple[str, OptionValue] | None = None
    parameters: Mapping[str, str]
    semantics: Mapping[str, OptionValue]
    complements: Mapping[str, str] = field(default_factory=dict)
    derived: Mapping[str, tuple[str, tuple[str, ...]]] = field(default_factory=dict)
    missing: tuple[MissingParameter, ...] = ()
    switches: Mapping[str, tuple[str, OptionValue]] = field(default_factory=dict)
    selections: Mapping[str, tuple[str, OptionValue]] = field(default_factory=dict)
    fixed: Mapping[str, bool] = field(default_factory=dict)
    expressed: Mapping[str, tuple[OptionValue, ...]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class MethodInfo:
    """Description of a merge method, known without merging.

    Attributes:
        formula: its definition in letters, one equation or remark a line. theta_0 is the base, theta_i source i, and
            tau_i = theta_i - theta_0; parameters have their names.
        cost: the work of one merge, and the work that is done before it, once.
        evidence: results on language models that are known of it, with their place; empty: none that was checked.
        unsuited: sources and aims that it is not for.
        merge: "module:function" of its arithmetic, a function from `RuleTensors` to named tensors; or the function.
        plan: "module:function" of its formula, if it has one: see `evomerge.tensors.plans`.
        per_source, shared: its parameters that are numbers; `parameters` is both.
        options, source_options: its choices between definitions, and those of a source.
        needs: what it needs beyond the sources' weights, of "base", "statistics" and "gradients".
        elementwise: whatever the options, an element of the result depends on that element of base and sources alone.
        weighted_sum: the result is the sum of the sources, each times its `weight` (under `normalize: true` divided by
            the sum of the weights). With a base it is the sum of task vectors, on the base.
        relative_weights: only the ratios of the sources' `weight` matter, whatever the options.
        sorts_magnitudes: it trims task vectors at thresholds, for which a worker sorts their magnitudes once.
        keeps_vector: a worker makes its merged task vector once, from decompositions of linear weights, and keeps it.
        keeps_ranks: a worker sorts the magnitudes of every row once, and keeps their ranks.
        keeps_bins: a worker keeps a byte for every element.
        random: the result depends on the seed.
        arrival: sources arrive one after the other, in an order that a space may search.
        sources: the exact number of sources, or None for any number.
        same_shapes: sources must agree in the shapes of their tensors; otherwise the method says what fits.
        tensors: its parameters that are tensors.
        statistics: those that it takes; "statistics" in `needs` says that it cannot do without.
        mergekit: its counterpart there, or None.
        version: of a method that is not shipped: another one is another method, and a study refuses it.
    """

    name: str
    title: str
    paper: str
    merge: str | Callable[..., Any]
    formula: str = ""
    cost: str = ""
    evidence: str = ""
    unsuited: str = ""
    plan: str | None = None
    per_source: tuple[Parameter, ...] = ()
    shared: tuple[Parameter, ...] = ()
    options: tuple[Option, ...] = ()
    source_options: tuple[SourceOption, ...] = ()
    needs: frozenset[str] = frozenset()
    elementwise: bool = False
    weighted_sum: bool = False
    relative_weights: bool = False
    sorts_magnitudes: bool = False
    keeps_vector: bool = False
    keeps_ranks: bool = False
    keeps_bins: bool = False
    random: bool = False
    arrival: bool = False
    sources: int | None = None
    same_shapes: bool = True
    tensors: tuple[TensorParameter, ...] = ()
    statistics: Statistics | None = None
    mergekit: MergekitMethod | None = None
    version: str = ""

    def __post_init__(self) -> None:
        if unknown := self.needs - NEEDS:
            raise ValueError(f"{self.name} needs {sorted(unknown)}; known needs: {', '.join(sorted(NEEDS))}")
        if "statistics" in self.needs and self.statistics is None:
            raise ValueError(f"{self.name} needs statistics; describe them in its field `statistics`")
        if self.weighted_sum and "weight" not in {parameter.name for parameter in self.per_source}:
            raise ValueError(f"{self.name} is a weighted sum; give it the parameter `weight`, one per source")

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        return self.per_source + self.shared

    @property
    def option_names(self) -> tuple[str, ...]:
        return (*(option.name for option in self.options), *(option.name for option in self.source_options))

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles of the files that a recipe with this method may name: parameters that are tensors, statistics."""
        statistics = () if self.statistics is None else (self.statistics.name,)
        return (*(each.name for each in self.tensors), *statistics)

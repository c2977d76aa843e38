"""A search space as its YAML file defines it: methods, groups of tensors, ranges."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from evomerge.catalogue import PART_PATTERNS, PARTS
from evomerge.catalogue.expert_parts import GroupedPart
from evomerge.documents import Frozen, Positive
from evomerge.genomes.genome_settings import GenomeSettings
from evomerge.recipe import MergeSpace


class Range(Frozen):
    """The values that one parameter may take.

    Attributes:
        low, high: ends of the interval, both included.
        log: search on a logarithmic scale; the centre is then the geometric mean.
        choices: named values instead of an interval.
        log_ratio: for normalised weights, in place of an interval: each source but the first gets log(its weight / the
            first one's weight) in [-log_ratio, +log_ratio]. Weights that are divided by their sum have one direction
            that changes nothing; these coordinates do not have it, and their centre is the uniform average.
        divided_by_sources: low and high are divided by the number of sources, for weights whose sum matters.
        shared: "groups" gives all groups one value, "sources" gives all sources one value, "all" both.
    """

    low: float | None = None
    high: float | None = None
    log: bool = False
    choices: tuple[float | str, ...] | None = None
    log_ratio: Annotated[float, Field(gt=0)] | None = None
    divided_by_sources: bool = False
    shared: Literal["no", "groups", "sources", "all"] = "no"

    @field_validator("shared", mode="before")
    @classmethod
    def _no_is_a_word(cls, value: object) -> object:
        return "no" if value is False else value  # YAML 1.1 reads a bare `no` as false

    @model_validator(mode="after")
    def _exactly_one_kind(self) -> Range:
        interval = self.low is not None or self.high is not None
        if sum([interval, self.choices is not None, self.log_ratio is not None]) != 1:
            raise ValueError("give either low and high, or choices, or log_ratio")
        if interval and (self.low is None or self.high is None or not self.low < self.high):
            raise ValueError(f"low < high must hold, but low is {self.low} and high is {self.high}")
        if self.log and (self.low is None or self.low <= 0):
            raise ValueError(f"a logarithmic range must start above zero, but low is {self.low}")
        if self.choices is not None and len(set(self.choices)) < 2:
            raise ValueError("choices must name at least two different values")
        return self


class MethodSpace(Frozen):
    """One method of the space.

    Attributes:
        parameters: a range (searched) or a number (fixed) per parameter.
        options: options of the method, which decide what it means.
        order: of arrival, for methods whose sources arrive one after the other: that of the spec (`given`), or one for
            all groups that is `searched` by a key for each source.
    """

    parameters: Mapping[str, Range | float] = {}
    options: Mapping[str, Any] = {}
    order: Literal["given", "searched"] = "given"

    @model_serializer(mode="wrap")
    def _without_defaults(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Studies of earlier releases store spaces without an order."""
        content: dict[str, Any] = dump(self)
        if self.order == "given":
            content.pop("order", None)
        return content


def _depth(value: object) -> object:
    return {value: True} if isinstance(value, str) else value


class Depth(Frozen):
    """Division of the layers into groups: exactly one of these.

    Attributes:
        whole: one group of all tensors; `depth: global` is the same.
        layers: each layer is a group; `depth: layers` is the same.
        blocks: number of consecutive layers that form a group.
        smooth: number of control points over depth, between which each layer interpolates.
    """

    whole: bool = Field(default=False, alias="global")
    layers: bool = False
    blocks: Positive | None = None
    smooth: Annotated[int, Field(ge=2)] | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Depth:
        if sum([self.whole, self.layers, self.blocks is not None, self.smooth is not None]) != 1:
            raise ValueError("depth must be 'global', 'layers', {blocks: k} or {smooth: points}")
        return self


class Groups(Frozen):
    """Division of the tensors into groups that share parameters.

    Attributes:
        depth: division of the layers: `global`, `layers`, `{blocks: k}` or `{smooth: n}`.
        parts: parts that are grouped apart, the finest counts; others fall into "rest". Empty: all parts together.
        one_method: where methods are chosen, the parts of a depth group choose one, with parameters of their own.
        outside: tensors outside the layer stack join their `neighbours` (embeddings the first group, final norm and
            head the last), form a group of their `own`, or all join the `first` group.
    """

    depth: Annotated[Depth, BeforeValidator(_depth, json_schema_input_type=Literal["global", "layers"] | Depth)]
    parts: tuple[GroupedPart, ...] = ()
    outside: Literal["neighbours", "own", "first"] = "neighbours"
    one_method: bool = False

    @model_validator(mode="after")
    def _parts_to_agree(self) -> Groups:
        if self.one_method and not self.parts:
            raise ValueError("one_method: true is for parts that choose together; name parts, or leave it out")
        return self

    @model_serializer(mode="wrap")
    def _without_absent(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = handler(self)
        if not self.one_method:  # a space without it does not mention it, as before there was such a key
            del content["one_method"]
        return content


class LayerPaths(Frozen):
    """Paths of layers instead of merges of tensors: DIS, depth-wise integration (arXiv 2502.04030).

    Attributes:
        granularity: consecutive layers that form one position.
        fix_layers: layers at each end that are the first source's in every path.
        max_layers: a longer path is not scored. Without it a quarter more layers than a source has.
        scale: whether what the last MLP of a position adds has a factor in [0, 2].
    """

    granularity: Positive = 1
    fix_layers: Annotated[int, Field(ge=0)] = 0
    max_layers: Positive | None = None
    scale: bool = True


class SearchSpace(Frozen):
    """A search space, independent of any model: methods and groups, the genome of another search, or paths of layers.

    Attributes:
        name: of the space.
        description: for those who choose one; no search depends on it.
        methods: merge method -> its parameters and options. Of several methods each group chooses one.
        groups: division of the tensors; needed beside `methods`.
        sources: models that have weights: the experts, or the base as well (`all`).
        semantics: defaults of the methods' options: evomerge's, or those that `mergekit` has.
        part_patterns: part -> regular expression of the tensor names that belong to it; tried before the shipped ones.
        genome: the genome of another search in place of methods and groups, with its names, ranges and first trials.
        layers: paths of layers in place of methods and groups.
        origin: what is merged: the sources, or the `baselines` of the search.
        around: a baseline or a recipe.json, whose coefficients are multiplied by a `factor` per source and group.
        factor: the range of these factors.
        space: `core`: adapters are merged in coordinates that all their factors share; `full`: whole weights.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    description: str = ""
    methods: Mapping[str, MethodSpace] = {}
    groups: Groups = Groups(depth=Depth(**{"global": True}))
    sources: Literal["experts", "all"] = "experts"
    semantics: Literal["evomerge", "mergekit"] = "evomerge"
    part_patterns: Mapping[str, str] = {}
    genome: GenomeSettings | None = None
    layers: LayerPaths | None = None
    origin: Literal["sources", "baselines"] = Field(default="sources", alias="from")
    around: str | None = None
    factor: Range | None = None
    space: MergeSpace = "full"

    @property
    def takes_recipes(self) -> bool:
        """Whether its merges are made of other merges, which are there before the first trial."""
        return self.origin == "baselines" or self.around is not None

    @model_validator(mode="after")
    def _recipes_fit(self) -> SearchSpace:
        if (self.around is None) != (self.factor is None):
            raise ValueError("around: RECIPE and factor: {low, high} belong together; give both or neither")
        if self.takes_recipes and (self.genome or self.layers or self.semantics != "evomerge" or self.sources == "all"):
            raise ValueError("a space of other merges has groups only; leave genome, layers, semantics and sources out")
        if self.space == "core" and (self.takes_recipes or self.layers):
            raise ValueError("space: core is for merges of adapters; leave it out beside from, around and layers")
        given = {"methods", "origin", "groups"} & self.model_fields_set
        if self.around is not None and given != {"groups"}:
            raise ValueError("around: RECIPE has the methods and sources of that recipe; give groups and factor alone")
        return self

    @model_validator(mode="after")
    def _one_kind(self) -> SearchSpace:
        if self.around is not None:
            return self
        given = sorted({"methods", "groups"} & self.model_fields_set)
        if self.layers is not None and (given or self.genome or "semantics" in self.model_fields_set):
            raise ValueError(
                "layers are taken as they are, so that methods, groups, semantics and a genome have no meaning beside "
                "them; search merges first, and paths through the exported winner afterwards"
            )
        if self.genome is not None and given:
            raise ValueError(f"a genome decides methods and groups; leave {' and '.join(given)} out")
        if self.genome is None and self.layers is None and (len(given) < 2 or not self.methods):
            raise ValueError("give methods, at least one, and groups; or a genome; or layers")
        return self

    @model_serializer(mode="wrap")
    def _without_absent(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        absent = {"genome"} if self.genome is None else {"methods", "groups"}
        absent |= {"layers"} if self.layers is None else {"methods", "groups", "semantics"}
        absent |= {"around", "factor"} if self.around is None else {"methods", "semantics", "sources"}
        absent |= {"space"} if self.space == "full" else set()
        absent |= {"origin", "from"} if self.origin == "sources" else {"sources"}
        return {name: value for name, value in handler(self).items() if name not in absent}

    @field_validator("part_patterns")
    @classmethod
    def _patterns_compile(cls, patterns: Mapping[str, str]) -> Mapping[str, str]:
        for part, pattern in patterns.items():
            if part not in PARTS:
                raise ValueError(f"unknown part {part!r}; known: {', '.join(PARTS)}")
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"pattern of {part!r} is no regular expression: {error}") from None
        return patterns

    @property
    def method_names(self) -> tuple[str, ...]:
        """The methods that a merge of this space may have."""
        return tuple(self.methods) if self.genome is None else self.genome.chosen.methods

    @property
    def patterns(self) -> tuple[tuple[str, str], ...]:
        """The space's own part patterns, tried before the shipped ones."""
        return (*self.part_patterns.items(), *PART_PATTERNS)

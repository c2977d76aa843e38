"""The whole description of one search, frozen, and the part of it that a study may not change."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import (
    BeforeValidator,
    Field,
    field_validator,
    model_validator,
)

from evomerge.baselines.info import BASELINES
from evomerge.documents import Frozen
from evomerge.methods import METHODS
from evomerge.observers import MetricsSpec, NotifySpec, TrackSpec
from evomerge.recipe import ModelRef
from evomerge.recipe_spaces.checks import is_recipe_file
from evomerge.spaces.space import SearchSpace
from evomerge.spec.sections import (
    Allowed,
    BaselineSpec,
    BudgetSpec,
    EvaluatorSpec,
    FidelitySpec,
    Name,
    ObjectiveSpec,
    SamplerSpec,
    SourceSpec,
    VerdictSpec,
    WarmStartSpec,
    WorkersSpec,
)

BESIDE_WEIGHTS: Final = "beside the weights"  # key of the identity, which studies of earlier releases do not have


class SearchSpec(Frozen):
    """A search, as its search.yaml describes it.

    Attributes:
        name: the study's name: results are kept under it, in `runs/NAME` beside this file.
        sources: the base and its fine-tunes, the experts: a list, or a mapping from names to locations or to the other
            keys of a source. The base is the source named `base`, else the first.
        space: merges that are searched: the name of a shipped space, the path of a YAML file, or a space itself.
        evaluator: how a merge is scored: an evaluator by name, the folder of a pack, or a mapping with settings.
        objective: rule that turns the scores of the tasks into the one number that is maximised.
        sampler: the way merges are proposed: a name, or a mapping with `name` and the settings of that sampler.
        fidelity: how many items a merge is scored on: a name, or a mapping with `name` and settings.
        warm_start: merges that are scored first.
        budget: the end of the search.
        workers: the processes that merge and score.
        baselines: merges that cost less, which the search is compared with: names, or mappings with `name` and
            settings. Without this key all that apply and are not built on request only, with [] none.
        verdict: the comparison at the end, on items that the search never saw.
        notify: who is told of a new best merge, of failures and of the end; without it nobody.
        metrics: a file of figures for monitoring; without it none.
        track: experiment trackers; without it none.
        storage: URL of the study's storage; `env:NAME` reads it from the environment. Without it
            `sqlite:///runs/NAME/study.db`.
        storage_patience: seconds that a storage which is away is waited for.
        artifacts: folder or s3:// URL for the scores of single items and for trained weights; beside the study without
            it.
        tokenizer: `base`: embeddings of experts with another vocabulary are put in the order of the base's, by token.
            Without it such an expert is refused.
        missing: `base`: tensors that an expert lacks are the base's, those that the base lacks are left out; `error`:
            such an expert is refused.
        dtype: numbers of the merged weights, scored and exported alike.
        seed: decides all that is drawn at random.
        allow: permissions for what is refused without them: weights that are pickled, code of models, code of tasks,
            and searching on test sets of public benchmarks.
    """

    name: Name
    sources: Annotated[
        tuple[SourceSpec, ...],
        BeforeValidator(_sources, json_schema_input_type=tuple[SourceSpec, ...] | Mapping[str, str | SourceSpec]),
    ]
    space: str | SearchSpace
    evaluator: Annotated[EvaluatorSpec, _name_or(EvaluatorSpec)]
    objective: ObjectiveSpec = ObjectiveSpec()
    sampler: Annotated[SamplerSpec, _name_or(SamplerSpec)] = SamplerSpec()
    fidelity: Annotated[FidelitySpec, _name_or(FidelitySpec)] = FidelitySpec()
    warm_start: WarmStartSpec = WarmStartSpec()
    budget: BudgetSpec = BudgetSpec()
    workers: WorkersSpec = WorkersSpec()
    baselines: (
        Annotated[
            tuple[BaselineSpec, ...],
            BeforeValidator(_each_named, json_schema_input_type=tuple[str | BaselineSpec, ...]),
        ]
        | None
    ) = None
    verdict: VerdictSpec = VerdictSpec()
    notify: NotifySpec | None = None
    metrics: MetricsSpec | None = None
    track: TrackSpec | None = None
    storage: str | None = Field(default=None, repr=False)  # may hold a password
    storage_patience: Annotated[float, Field(ge=0)] = 600.0  # seconds that a storage which is away is waited for
    artifacts: str | None = None
    tokenizer: Literal["base"] | None = None
    missing: Literal["error", "base"] = "error"
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    allow: tuple[Allowed, ...] = ()

    @model_validator(mode="after")
    def _parts_fit(self) -> SearchSpec:
        built_before = [each for each in self.chosen_baselines if _is_reference_point(each)]
        if self.needs_reference_points and not built_before:
            raise ValueError(
                "the sampler cma with several objectives searches for what is better than the baselines; name some, or "
                "use nsgaii, nsgaiii, tpe or gp"
            )
        begin = self.warm_start.begin
        if begin is not None and begin not in {each.name for each in built_before}:
            raise ValueError(
                f"warm_start: begin: {begin} is none of the search's baselines that are one model and made before it "
                f"({', '.join(each.name for each in built_before) or 'there are none'}); name it among them"
            )
        if begin is not None and self.objective.aggregate == "pareto":
            raise ValueError("warm_start: begin is for one objective; with several, cma begins at every baseline")
        if self.objective.aggregate == "pareto" and self.fidelity.name != "full":
            raise ValueError(f"fidelity {self.fidelity.name} compares one value, but pareto has several; write full")
        if self.fidelity.name != "full" and self.sampler.info is not None and self.sampler.info.complete_only:
            raise ValueError(
                f"fidelity {self.fidelity.name} ends most trials early, and sampler {self.sampler.name} learns from "
                "complete ones only; write fidelity: full, or use cma, catcma, forest or tpe"
            )
        if self.objective.constraints and self.fidelity.name != "full":
            raise ValueError(
                f"constraints are known when all items are scored; fidelity must be full, not {self.fidelity.name}"
            )
        return self

    @field_validator("tokenizer", mode="before")
    @classmethod
    def _no_union(cls, tokenizer: object) -> object:
        if tokenizer == "union":
            raise ValueError(
                "a union of vocabularies is made beforehand: `evomerge extend-vocabulary BASE EXPERT … --out FOLDER` "
                "writes a base that has it; name that as the base, and write tokenizer: base"
            )
        return tokenizer

    @field_validator("sources")
    @classmethod
    def _base_first(cls, sources: tuple[SourceSpec, ...]) -> tuple[SourceSpec, ...]:
        if len(sources) < 2:
            raise ValueError(f"name the base and at least one fine-tune of it, but got {len(sources)}")
        names = [source.name for source in sources]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(f"source name {min(twice)!r} is used twice")
        reserved = set(names) & {"best", *BASELINES}  # rows of the leaderboard that are not sources
        if reserved:
            raise ValueError(f"source name {min(reserved)!r} is a row of the leaderboard; choose another")
        return tuple(sorted(sources, key=lambda source: source.name != "base"))

    @property
    def base(self) -> SourceSpec:
        return self.sources[0]

    @property
    def experts(self) -> tuple[SourceSpec, ...]:
        return self.sources[1:]

    @property
    def expert_refs(self) -> tuple[ModelRef, ...]:
        """The experts with the policies by which they are opened."""
        return tuple(replace(expert.ref, **self._policies) for expert in self.experts)

    @property
    def _policies(self) -> dict[str, str]:
        """The policies that are not those of a spec that names none."""
        given = {"tokenizer": self.tokenizer, "missing": None if self.missing == "error" else self.missing}
        return {name: policy for name, policy in given.items() if policy is not None}

    @property
    def chosen_baselines(self) -> tuple[BaselineSpec, ...]:
        """The baselines that the spec names, else all that are not made on request only: training needs texts."""
        if self.baselines is not None:
            return self.baselines
        unasked = [info for info in BASELINES.values() if not info.on_request]
        return tuple(
            BaselineSpec(name=info.name) for info in unasked if not info.trained or self.has_texts(info.least_texts)
        )

    @property
    def needs_reference_points(self) -> bool:
        """Whether the sampler searches for what is better than the baselines on every task."""
        info = self.sampler.info
        return self.objective.aggregate == "pareto" and info is not None and info.needs_reference_points

    @property
    def has_calibration(self) -> bool:
        """Whether every expert names text that it is good at."""
        return self.has_texts(1)

    def has_texts(self, least: int) -> bool:
        """Whether every expert names so many texts that it is good at, or more."""
        return all(expert.calibration is not None and expert.calibration.items >= least for expert in self.experts)

    @property
    def search_space(self) -> SearchSpace:
        if isinstance(self.space, str):
            raise TypeError("the spec was not made by load_spec or resolve, its space is still a name")
        return self.space

    @property
    def space_baselines(self) -> tuple[BaselineSpec, ...]:
        """The baselines whose merges the search space is made of."""
        space = self.search_space
        if space.origin == "baselines":
            return tuple(each for each in self.chosen_baselines if _is_reference_point(each))
        return tuple(each for each in self.chosen_baselines if each.name == space.around)

    @property
    def space_labels(self) -> tuple[str, ...]:
        """The merges that the search space is made of, by their labels: baselines, or the name of a recipe's file."""
        around = self.search_space.around
        if around is not None and is_recipe_file(around):
            return (Path(around).name,)
        return tuple(each.name for each in self.space_baselines)

    @property
    def storage_url(self) -> str:
        return self.storage or f"sqlite:///runs/{self.name}/study.db"

    def to_json(self) -> str:
        """JSON that the study stores: the whole spec without the storage URLs, which may hold passwords, and without
        those who are told of a run: their URLs may hold passwords too, and their files are those of a machine."""
        unsaid = {"tokenizer", "missing"} - self._policies.keys()  # earlier releases have no such keys
        whole = dict.fromkeys(("storage", "notify", "metrics", "track", *unsaid), True)
        exclude: Any = {**whole, "warm_start": {"studies": {"__all__": {"storage"}}}}
        # The order of keys carries meaning: methods and parameters of the space are searched in it.
        return json.dumps(self.model_dump(mode="json", by_alias=True, exclude=exclude))

    def identity(
        self,
        fingerprints: Mapping[str, str],
        evaluator: str,
        params: Mapping[str, str],
        measured: Mapping[str, str] | None = None,
        made_of: Mapping[str, str] | None = None,
        beside: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """Everything that the value of a trial, or the next proposal, depends on. Runs of a study must agree in it.

        Budget, workers, storage, artifacts, notify, metrics, track, baselines that the space is not made of, verdict,
        and calibration that no statistics of the space are measured on, may change when a study is resumed.

        Args:
            fingerprints: source name -> content hash of its files.
            evaluator: fingerprint of the evaluator, data included.
            params: param -> its distribution, in the order in which samplers see them.
            measured: role of a file of statistics -> digest of the texts that they are measured on.
            made_of: source -> digest of the texts that the baselines of the space are made from, where they need texts.
            beside: name -> digest of what else decides a score: files beside the base's weights, such as its tokenizer
                and chat template, and the order in which an expert's rows of tokens are put.
        """
        return {
            "base": self.base.name,
            "sources": {source.name: fingerprints[source.name] for source in self.sources},
            "order of sources": [source.name for source in self.sources],
            "space": self._space_identity(),
            "params and their order": digest(list(params.items())),
            "evaluator": evaluator,
            "objective": self.objective.model_dump(mode="json"),
            "sampler": {"name": self.sampler.name, **self.sampler.settings},
            "fidelity": self.fidelity.model_dump(mode="json", exclude_none=True),
            "warm start": {
                "baselines": self.warm_start.baselines,
                "recipes": [Path(name).name for name in self.warm_start.recipes],
                "studies": [[study.name, study.trials] for study in self.warm_start.studies],
                **({} if self.warm_start.begin is None else {"begin": self.warm_start.begin}),
            },
            "dtype": self.dtype,
            "seed": self.seed,
            **self._policies,
            **({BESIDE_WEIGHTS: dict(beside)} if beside else {}),
            **({"texts of statistics": dict(measured)} if measured else {}),
            **self._merges_identity(made_of),
            **self._methods_identity(),
        }

    def _space_identity(self) -> dict[str, Any]:
        content = self.search_space.model_dump(mode="json", by_alias=True, exclude={"description"})
        if (around := self.search_space.around) is not None:
            content["around"] = Path(around).name  # the recipe in a file is compared by its digest
        return content

    def _methods_identity(self) -> dict[str, Any]:
        names = self.search_space.method_names
        versions = {name: METHODS[name].version for name in names if METHODS[name].version}
        return {"functions of methods": versions} if versions else {}

    def _merges_identity(self, texts: Mapping[str, str] | None) -> dict[str, Any]:
        if not self.search_space.takes_recipes:
            return {}
        settings = {each.name: each.settings for each in self.space_baselines}
        for name in settings:
            if BASELINES[name].from_file:  # the recipe in a file is compared by its digest
                settings[name]["recipe"] = Path(settings[name]["recipe"]).name
        return {"baselines of the space": settings, **({"texts of these baselines": dict(texts)} if texts else {})}


def digest(content: object) -> str:
    """SHA-256 of plain data, by its canonical JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _is_reference_point(baseline: BaselineSpec) -> bool:
    """Whether a baseline is one model that is there before the search. `resolve` refuses an unknown name later."""
    info = BASELINES.get(baseline.name)
    return info is None or info.one_model_before


def _name_or(kind: type) -> BeforeValidator:
    """Takes a name alone in place of a mapping with that name."""
    return BeforeValidator(_named, json_schema_input_type=str | kind)


def _named(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


def _each_named(value: object) -> object:
    return [_named(each) for each in value] if isinstance(value, list | tuple) else value


def _sources(value: object) -> object:
    """Base first, as a list; or by key: {base: {...}, reverse: {...}}."""
    if isinstance(value, dict):
        return [{"name": name, **_located(content)} for name, content in value.items()]
    return value


def _located(content: object) -> dict[str, Any]:
    return {"location": content} if isinstance(content, str) else dict(content) if isinstance(content, dict) else {}

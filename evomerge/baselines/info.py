"""The baselines as data: one row each, with all that other rooms have to know of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, Field

from evomerge.documents import Frozen
from evomerge.methods import METHODS

__all__ = [
    "BASELINES",
    "BaselineInfo",
    "EmrSettings",
    "GivenSettings",
    "LineGrid",
    "ModelStockSettings",
    "NoBaselineSettings",
    "WeightGrid",
]


class NoBaselineSettings(Frozen):
    """Settings of a baseline that has none."""


class WeightGrid(Frozen):
    """A grid of weights, each one the same for all experts.

    The default ends at 1.0, which adds the task vectors up and collapses with many of them.

    Attributes:
        weights: the grid, of which the best on the search items is taken.
    """

    weights: Annotated[tuple[float, ...], Field(min_length=1)] = tuple(number / 10 for number in range(1, 11))


class LineGrid(Frozen):
    """A grid of slopes: how much more the last layer of a line over depth weighs than the first.

    Attributes:
        betas: the grid, of which the best on the search items is taken.
    """

    betas: Annotated[tuple[float, ...], Field(min_length=1)] = tuple(number / 10 for number in range(1, 11))


class EmrSettings(Frozen):
    """Settings of EMR-Merging.

    Attributes:
        rescaler: option of the merge method: factors from sums over the whole task vector, or from means per tensor.
        tasks: task -> the expert whose reconstruction it is given to. A task that is not named belongs to the expert
            that names it as its calibration, and else to the one that scores best on its search items.
    """

    rescaler: Literal["flat_sum", "tensor_mean"] = "flat_sum"
    tasks: Mapping[str, str] = {}


class ModelStockSettings(Frozen):
    """Settings of Model Stock.

    Attributes:
        pair_mean: what is averaged over pairs of experts: the cosines between their task vectors, or the angles.
        negative: task vectors that point away from each other count as if they were at right angles (`clip`), or as
            they are (`raw`: the merge may then lie beyond the base, or far out).
    """

    pair_mean: Literal["cosines", "angles"] = "cosines"
    negative: Literal["clip", "raw"] = "clip"


class GivenSettings(Frozen):
    """Settings of the merge that you have already.

    Attributes:
        recipe: its file, relative to the spec: a mergekit YAML, a recipe as JSON or YAML, or the folder of an export.
            Its models are sources of the search.
    """

    recipe: str


@dataclass(frozen=True, kw_only=True)
class BaselineInfo:
    """A baseline as data. Functions are named as "module:function", and loaded when the baseline is built.

    Attributes:
        name: in search.yaml, and the label of its row in the leaderboard.
        plan: function that builds it, from `Ingredients` and `BaselineSpec` to a `BaselinePlan`; empty for a search.
        candidates: function from `BaselineSpec` and `SearchSpec` to the number of merges, at most, that the plan has
            scored on the search items; None for one.
        settings: its settings in search.yaml, for one that neither applies a merge method nor trains.
        method: merge method that `one_method` applies to all experts. Its parameters and options are the settings.
        scales: merge method of which it takes the best `lambda` of a grid.
        trainer: trainer that it uses, on text of every expert. Its settings are those of the training.
        preset: settings of that training that make this baseline; search.yaml cannot change them.
        defaults: settings of that training where search.yaml gives none, in place of the trainer's own defaults.
        sampler: it is a search with this sampler, and has no plan.
        built_from: part of the search that it is built from: the winner's recipe (`best`) or the number of finished
            trials (`trials`). A change of that part makes another baseline.
        on_request: built only when it is named: it costs a search, a training, a measurement or a row
            more, and every further row costs the verdict power.
        early: built before the first trial, since normalisation, constraints and warm starts may need it.
        chosen_on_search_items: chosen by its own value on the search items, whose luck it shares.
        least_experts: how many experts it needs.
        least_texts: of every expert, with which a trained one is built unasked.
        control: shows what a merge is worth that cannot know what the experts learned. It is scored, tested and marked
            as one, and no search starts from it.
        form: raised whenever the same settings give another merge, so that a row of the former one is not taken for it.
        by_task: its row is several models, one per expert; each task is given to the one that belongs to it.
        from_file: it is the merge of the file that its setting `recipe` names.
    """

    name: str
    plan: str = ""
    candidates: str | None = None
    settings: type[BaseModel] = NoBaselineSettings
    method: str | None = None
    scales: str | None = None
    trainer: str | None = None
    preset: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    sampler: str | None = None
    built_from: Literal["best", "trials"] | None = None
    on_request: bool = False
    early: bool = False
    chosen_on_search_items: bool = False
    least_experts: int = 1
    least_texts: int = 1
    control: bool = False
    form: int = 1
    by_task: bool = False
    from_file: bool = False

    @property
    def trained(self) -> bool:
        """Whether it is the result of a training."""
        return self.trainer is not None

    @property
    def trains_weights(self) -> bool:
        """Whether all weights are trained, so that the result is as large as a model."""
        return self.trainer == "fine-tune"

    @property
    def measured(self) -> bool:
        """Whether its method merges with statistics of every expert, which are measured for it."""
        return self.method is not None and "statistics" in METHODS[self.method].needs

    @property
    def needs_texts(self) -> bool:
        """Whether it needs texts of every expert."""
        return self.trained or self.measured

    @property
    def needs_search(self) -> bool:
        """Whether it can be built only after the search."""
        return self.built_from is not None

    @property
    def one_model_before(self) -> bool:
        """Whether it can be one model that is there before the search, and that a search may start from."""
        return not (self.needs_search or self.by_task or self.control)


_PLANS = "evomerge.baselines.baseline_plans"
_LEARNED = "evomerge.baselines.learned_plans"
_NORMS = "evomerge.baselines.norm_rules"
_ALL = (
    BaselineInfo(name="uniform-soup", plan=f"{_PLANS}:uniform_soup", early=True),
    BaselineInfo(
        name="greedy-soup",
        plan=f"{_PLANS}:greedy_soup",
        candidates=f"{_PLANS}:one_per_expert",
        chosen_on_search_items=True,
    ),
    BaselineInfo(
        name="task-arithmetic",
        plan=f"{_PLANS}:task_arithmetic",
        candidates=f"{_PLANS}:one_per_weight",
        settings=WeightGrid,
        chosen_on_search_items=True,
    ),
    BaselineInfo(name="ties", plan=f"{_PLANS}:one_method", method="ties"),
    BaselineInfo(name="dare-ties", plan=f"{_PLANS}:one_method", method="dare_ties"),
    BaselineInfo(
        name="given", plan=f"{_PLANS}:own_merge", settings=GivenSettings, on_request=True, early=True, from_file=True
    ),
    BaselineInfo(
        name="lines",
        plan="evomerge.baselines.depth_lines:lines",
        candidates="evomerge.baselines.depth_lines:one_per_beta",
        settings=LineGrid,
        on_request=True,
        chosen_on_search_items=True,
    ),
    *(
        BaselineInfo(
            name=name,
            plan=f"{_PLANS}:best_scale",
            candidates=f"{_PLANS}:one_per_weight",
            settings=WeightGrid,
            scales=method,
            on_request=True,
            chosen_on_search_items=True,
        )
        for name, method in (("tsv-m", "tsv_m"), ("iso-c", "iso_c"), ("wudi", "wudi"))
    ),
    BaselineInfo(name="metagpt", plan=f"{_NORMS}:metagpt", on_request=True),
    BaselineInfo(
        name="model-stock",
        plan=f"{_NORMS}:model_stock",
        settings=ModelStockSettings,
        on_request=True,
        least_experts=2,
    ),
    BaselineInfo(name="nan", plan=f"{_NORMS}:nan", on_request=True),
    BaselineInfo(
        name="random-source",
        plan=f"{_PLANS}:random_source",
        candidates=f"{_PLANS}:one_per_weight",
        settings=WeightGrid,
        on_request=True,
        chosen_on_search_items=True,
        control=True,
    ),
    BaselineInfo(
        name="emr",
        plan="evomerge.baselines.models_by_task:emr",
        candidates=f"{_PLANS}:one_per_expert",
        settings=EmrSettings,
        on_request=True,
        chosen_on_search_items=True,
        by_task=True,
    ),
    BaselineInfo(name="pcb", plan=f"{_PLANS}:one_method", method="pcb", on_request=True),
    BaselineInfo(name="opcm", plan=f"{_PLANS}:one_method", method="opcm", on_request=True),
    BaselineInfo(name="fisher", plan=f"{_PLANS}:one_measured_method", method="fisher", on_request=True),
    BaselineInfo(name="regmean", plan=f"{_PLANS}:one_measured_method", method="regmean", on_request=True),
    BaselineInfo(name="dam", plan=f"{_PLANS}:dam", trainer="dam"),
    BaselineInfo(
        name="dam-from-best",
        plan=f"{_PLANS}:dam_from_best",
        trainer="dam",
        built_from="best",
        on_request=True,
        chosen_on_search_items=True,
    ),
    BaselineInfo(
        name="learned",
        plan=f"{_LEARNED}:learned",
        trainer="learned",
        preset={"labels": "given"},
        defaults={"granularity": "chosen", "steps": 120},
        least_texts=2,
    ),
    BaselineInfo(
        name="learned-permuted",
        plan=f"{_LEARNED}:learned",
        trainer="learned",
        preset={"labels": "permuted"},
        defaults={"granularity": "chosen", "steps": 120},
        on_request=True,
        control=True,
        form=2,  # 1 might leave items their own answers
    ),
    BaselineInfo(
        name="learned-groups",
        plan=f"{_LEARNED}:learned",
        trainer="learned",
        preset={"granularity": "groups", "labels": "given"},
        # benchmarks/search.md: a search may begin there for the cost of a few candidates
        defaults={"steps": 20, "batch_size": 6, "stop_every": 10, "learning_rate": 0.1},
        on_request=True,
    ),
    BaselineInfo(
        name="learned-tensor",
        plan=f"{_LEARNED}:learned",
        trainer="learned",
        preset={"granularity": "tensor", "labels": "given"},
        on_request=True,
    ),
    BaselineInfo(
        name="learned-column",
        plan=f"{_LEARNED}:learned",
        trainer="learned",
        preset={"granularity": "column", "labels": "given"},
        defaults={"steps": 120},
        on_request=True,
    ),
    BaselineInfo(name="fine-tune", plan=f"{_LEARNED}:fine_tune", trainer="fine-tune", on_request=True),
    BaselineInfo(name="adamerging", plan=f"{_PLANS}:adamerging", trainer="adamerging", on_request=True),
    BaselineInfo(
        name="adamerging-task",
        plan=f"{_PLANS}:adamerging",
        trainer="adamerging",
        preset={"granularity": "task"},
        on_request=True,
    ),
    BaselineInfo(
        name="adamerging-from-best",
        plan=f"{_PLANS}:adamerging_from_best",
        trainer="adamerging",
        # A clamp would change a winner that has a weight above 1.
        preset={"initial": None, "clamp": False, "variant": "plain"},
        built_from="best",
        on_request=True,
        chosen_on_search_items=True,
    ),
    BaselineInfo(
        name="without-one",
        plan="evomerge.baselines.ablation:without_one",
        candidates=f"{_PLANS}:one_per_expert",
        built_from="best",
        on_request=True,
        chosen_on_search_items=True,
        least_experts=2,
    ),
    BaselineInfo(
        name="random-search", sampler="random", built_from="trials", on_request=True, chosen_on_search_items=True
    ),
)
BASELINES: Final[dict[str, BaselineInfo]] = {info.name: info for info in _ALL}

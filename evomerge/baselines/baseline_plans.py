"""Plans of the baselines: each asks for scores, trainings and measurements, and ends in the choice of a recipe.

A plan is a generator. It yields a list of steps that may be done at the same time, is given a result for each of them
(None for one that failed), and returns the recipe that it has chosen. It never waits, so that the plans of several
baselines share the workers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from evomerge.baselines.info import BASELINES, WeightGrid
from evomerge.baselines.named_recipes import NamedRecipe, NamedResult
from evomerge.baselines.training_settings import SearchFacts, training_settings
from evomerge.catalogue import TensorCatalogue
from evomerge.documents import validate
from evomerge.errors import InvalidInput, unknown_name
from evomerge.evaluation.scores import Scores
from evomerge.jobs import Cost, Products
from evomerge.methods import METHODS, resolve_options, resolve_parameters
from evomerge.methods.functions import load_function
from evomerge.objective import Objective
from evomerge.opening.measurements import PlannedMeasurement, baseline_measurements
from evomerge.optimisation.flattening import flattened
from evomerge.recipe import ModelRef, Recipe, RecipeSet, Rule
from evomerge.recipe_spaces.scaled_rules import LINEAR_IN_WEIGHT
from evomerge.spec import BaselineSpec, Calibration, SearchSpec
from evomerge.study.rows import TrainingResult
from evomerge.study.snapshot import SearchSnapshot


@dataclass(frozen=True, kw_only=True)
class TrainingRequest:
    """A step of a plan: train a merge, starting from this recipe. `trainer` is its name among the trainers."""

    recipe: Recipe
    settings: Mapping[str, Any]
    calibration: Mapping[str, Calibration]
    trainer: str


@dataclass(frozen=True)
class Choice:
    """Recipe that a plan has chosen, or the recipes of several models.

    Attributes:
        cost: of choosing it that is not the cost of the plan's own steps.
        losses: of a training, see `evomerge.jobs.Trained`.
    """

    recipe: Recipe | RecipeSet
    cost: Cost = field(default_factory=Cost)
    losses: Mapping[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class MeasurementResult:
    """The digest of a file of statistics, and the cost of measuring them."""

    digest: str
    cost: Cost


@dataclass(frozen=True)
class ProductsRequest:
    """A step of a plan: the inner products of all experts' task vectors."""


@dataclass(frozen=True)
class ProductsResult:
    """Inner products by tensor, see `evomerge.jobs.Multiplied`, and the cost of taking them."""

    products: Mapping[str, Products]
    cost: Cost


Step = NamedRecipe | TrainingRequest | PlannedMeasurement | ProductsRequest
StepResult = NamedResult | TrainingResult | MeasurementResult | ProductsResult
BaselinePlan = Generator[Sequence[Step], Sequence[StepResult | None], Choice]


@dataclass(frozen=True, kw_only=True)
class Ingredients:
    """Inputs of the plans: the sources with their scores, and the state of the search.

    Attributes:
        references: source name -> its scores on the search items.
        reference_cost: of scoring the experts there.
        best: recipe of the winner, None before it has been named.
        search_cost: of the search so far, see `search_cost.search_cost`.
        trials: finished trials of the search.
        own_merge: recipe of the merge that the user has already, None where the spec names none.
        facts: what trainings and measurements go by.
    """

    spec: SearchSpec
    base: ModelRef
    experts: tuple[ModelRef, ...]
    catalogue: TensorCatalogue
    objective: Objective
    references: Mapping[str, Scores]
    reference_cost: Cost = field(default_factory=Cost)
    best: Recipe | None = None
    search_cost: Cost = field(default_factory=Cost)
    trials: int = 0
    own_merge: Recipe | None = None
    facts: SearchFacts = field(default_factory=SearchFacts)

    @property
    def standing(self) -> SearchSnapshot:
        return SearchSnapshot(self.best.digest if self.best is not None else None, self.trials)

    def recipe(self, method: str, parameters: Mapping[str, Any], options: Mapping[str, Any]) -> Recipe:
        """All mergeable tensors of all experts, merged in one way."""
        return self.recipe_of(self.experts, method, parameters, options)

    def recipe_of(
        self, experts: Sequence[ModelRef], method: str, parameters: Mapping[str, Any], options: Mapping[str, Any]
    ) -> Recipe:
        """All mergeable tensors of some experts, merged in one way."""
        rule = Rule(
            tensors=tuple(entry.name for entry in self.catalogue.mergeable),
            method=method,
            sources=tuple(ref.name for ref in experts),
            parameters=resolve_parameters(method, parameters, len(experts)),
            options=resolve_options(method, options, n_sources=len(experts)),
        )
        return Recipe(base=self.base, sources=tuple(experts), rules=(rule,), dtype=self.spec.dtype, seed=self.spec.seed)

    def soup(self, experts: Sequence[ModelRef]) -> Recipe:
        """The plain average of some experts (Wortsman et al. 2022, arXiv 2203.05482)."""
        return self.recipe_of(experts, "linear", {"weight": 1.0}, {})


PlanBuilder = Callable[[Ingredients, BaselineSpec], BaselinePlan]


def plan_of(baseline: BaselineSpec, ingredients: Ingredients) -> BaselinePlan:
    """The plan of a baseline.

    Raises:
        InvalidInput: a setting that the baseline does not have, or that is out of its range.
    """
    build = cast(PlanBuilder, load_function(BASELINES[baseline.name].plan))
    return build(ingredients, baseline)


def check_baseline(baseline: BaselineSpec, spec: SearchSpec, tasks: Collection[str]) -> None:
    """Refuse settings that a baseline does not have, before anything is run.

    Args:
        tasks: of the evaluator.

    Raises:
        InvalidInput: see `plan_of`; a baseline that needs calibration texts, or more experts, without them; or emr with
            a task or expert that there is not.
    """
    info = BASELINES[baseline.name]
    if len(spec.experts) < info.least_experts:
        raise InvalidInput(
            f"baseline {baseline.name!r} compares experts with each other: it needs {info.least_experts} of them, but "
            f"the spec has {len(spec.experts)}; leave it out"
        )
    if info.built_from == "best" and not info.trained:
        others = set(spec.search_space.method_names) - set(LINEAR_IN_WEIGHT)
        if others or spec.search_space.layers is not None:
            raise InvalidInput(
                f"baseline {baseline.name!r} takes one source out of a weighted sum, but the space has "
                f"{', '.join(sorted(others)) or 'paths of layers'}; it is for {', '.join(LINEAR_IN_WEIGHT)}"
            )
    if info.method is not None:
        _merge_settings(baseline, info.method, len(spec.experts))
        baseline_measurements(baseline, spec, [expert.ref for expert in spec.experts], longest=None)
    elif info.trained:
        training_settings(baseline)
        if not spec.has_calibration:
            without = [expert.name for expert in spec.experts if expert.calibration is None]
            raise InvalidInput(
                f"baseline {baseline.name!r} trains on text of every expert, but {', '.join(without)} name no "
                "calibration; write calibration: {task: NAME, items: N} beside them, or leave it out"
            )
        if info.built_from == "best" and spec.search_space.layers is not None:
            raise InvalidInput(
                f"baseline {baseline.name!r} starts from a weighted sum of the sources, but the space has paths of "
                f"their layers; use {info.trainer}, which needs no winner"
            )
        sums = {name for name, info in METHODS.items() if info.weighted_sum}
        if info.built_from == "best" and not set(spec.search_space.method_names) <= sums:
            raise InvalidInput(
                f"baseline {baseline.name!r} starts from a weighted sum of the sources, but the space has "
                f"{', '.join(sorted(set(spec.search_space.method_names) - sums))}; use {info.trainer}, which needs no "
                "winner"
            )
    else:
        validate(info.settings, baseline.settings, f"baseline {baseline.name!r}")
    if info.by_task:
        from evomerge.baselines.models_by_task import check_tasks

        check_tasks(baseline, spec, tasks)


def candidates(baseline: BaselineSpec, spec: SearchSpec) -> int:
    """Number of merges, at most, that are scored on the search items to build a baseline."""
    info = BASELINES[baseline.name]
    if info.sampler is not None:
        return spec.budget.trials
    if info.candidates is None:
        return 1
    count = cast(Callable[[BaselineSpec, SearchSpec], int], load_function(info.candidates))
    return count(baseline, spec)


def one_per_expert(baseline: BaselineSpec, spec: SearchSpec) -> int:
    return len(spec.experts)


def one_per_weight(baseline: BaselineSpec, spec: SearchSpec) -> int:
    return len(_grid(baseline))


def uniform_soup(given: Ingredients, baseline: BaselineSpec) -> BaselinePlan:
    """The plain average of all experts."""
    yield []
    return Choice(given.soup(given.experts))


def own_merge(given: Ingredients, baseline: BaselineSpec) -> BaselinePlan:
    """The merge that the user has already, from its file."""
    yield []
    if given.own_merge is None:
        raise InvalidInput(f"the spec names no file; write {{name: {baseline.name}, recipe: FILE}} among its baselines")
    return Choice(given.own_merge)


def greedy_soup(given: Ingredients, baseline: BaselineSpec) -> BaselinePlan:
    """Experts from the best to the worst; each joins the average if that scores higher with it (arXiv 2203.05482)."""
    value = {ref.name: given.objective.value(given.references[ref.name]) for ref in given.experts}
    # Ascending and reversed, as the authors do it: of equal experts the last comes first.
    best_first = sorted(given.experts, key=lambda ref: value[ref.name])[::-1]
    chosen, best = [best_first[0]], value[best_first[0].name]
    for expert in best_first[1:]:
        tried = [*chosen, expert]
        label = f"{baseline.name}/{'+'.join(ref.name for ref in tried)}"
        (result,) = yield [NamedRecipe(label=label, recipe=given.soup(tried))]
        if isinstance(result, NamedResult) and given.objective.value(result.scores) > best:
            chosen, best = tried, given.objective.value(result.scores)
    return Choice(given.soup(chosen), given.reference_cost)


def task_arithmetic(given: Ingredients, baseline: BaselineSpec) -> BaselinePlan:
    """One weight for all task vectors, the best of a grid on the search items (arXiv 2212.04089)."""
    return (yield from _best_weight(given, baseline, "task_arithmetic"))


def random_source(given: Ingredients, baseline: BaselineSpec) -> BaselinePlan:
    """The same with task vectors that are as large and know nothing: what any change of this size would be worth.

    The weight is chosen anew, since the weights of real task vectors say nothing of it.
    """
    return (yield from _best_weight(given, baseline, "permuted_arithmetic"))


def _best_weight(given: Ingredients, baseline: BaselineSpec, method: str) -> BaselinePlan:
    recipes = {weight: given.recipe(method, {"weight": weight}, {}) for weight in _grid(baseline)}
    return (yield from best_of(given, baseline, recipes))


def best_scale(given: Ingredients, baseline: BaselineSpec) -> BaselinePlan:
    """A merged task vector of a method without other numbers, times the best factor of a grid on the search items."""
    method = str(BASELINES[baseline.name].scales)
    recipes = {scale: given.recipe(method, {"lambda": scale}, {}) for scale in _grid(baseline)}
    return (yield from best_of(given, baseline, recipes))


def best_of(given: Ingredients, baseline: BaselineSpec, recipes: Mapping[float, Recipe]) -> BaselinePlan:
    """The recipe that scores best on the search items, of recipes by the number that makes them differ.

    Raises:
        InvalidInput: none of them can be scored.
    """
    results = yield [
        NamedRecipe(label=f"{baseline.name}/{number:g}", recipe=recipe) for number, recipe in recipes.items()
    ]
    values = [given.objective.value(result.scores) if isinstance(result, NamedResult) else None for result in results]
    scored = [(value, -place) for place, value in enumerate(values) if value is not None]
    if not scored:
        raise InvalidInput(f"none of the weights {list(recipes)} gives a merge that can be scored")
    return Choice(list(recipes.values())[-max(scored)[1]])


def one_method(given: Ingredients, baseline: BaselineSpec) -> BaselinePlan:
    """One merge method with its published settings, where the spec gives no others."""
    yield []
    method = str(BASELINES[baseline.name].method)
    parameters, options = _merge_settings(baseline, method, len(given.experts))
    return Choice(given.recipe(method, parameters, options))


def one_measured_method(given: Ingredients, baseline: BaselineSpec) -> BaselinePlan:
    """The same for a method with statistics, which are measured first."""
    planned = baseline_measurements(baseline, given.spec, given.experts, longest=given.facts.longest)
    results = yield planned
    files = {
        each.role: result.digest
        for each, result in zip(planned, results, strict=True)
        if isinstance(result, MeasurementResult)
    }
    if len(files) < len(planned):
        raise InvalidInput("the statistics of a source cannot be measured")
    method = str(BASELINES[baseline.name].method)
    parameters, options = _merge_settings(baseline, method, len(given.experts))
    return Choice(replace(given.recipe(method, parameters, options), files=files))


def _merge_settings(baseline: BaselineSpec, method: str, experts: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters and options of a merge method among a baseline's settings; the others are as published."""
    known = {parameter.name for parameter in METHODS[method].parameters}
    allowed = known | {"semantics", *METHODS[method].option_names}
    for name in baseline.settings:
        if name not in allowed:
            raise unknown_name(f"setting of baseline {baseline.name!r}", name, allowed)
    parameters = {name: value for name, value in baseline.settings.items() if name in known}
    options = {name: value for name, value in baseline.settings.items() if name not in known}
    resolved = resolve_options(method, options, n_sources=experts)
    return dict(resolve_parameters(method, parameters, experts)), dict(resolved)


def dam(given: Ingredients, baseline: BaselineSpec) -> BaselinePlan:
    """Differentiable adaptive merging from the uniform average (arXiv 2410.08371)."""
    return (yield from trained(given, baseline, given.soup(given.experts)))


def dam_from_best(given: Ingredients, baseline: BaselineSpec) -> BaselinePlan:
    """The same from the winner of the search, whose merge has to be a weighted sum of the sources."""
    return (yield from _trained_from_winner(given, baseline))


def adamerging(given: Ingredients, baseline: BaselineSpec) -> BaselinePlan:
    """Task arithmetic with weights that make predictions sure, from one weight for all (arXiv 2310.02575)."""
    from evomerge.training import AdaSettings

    settings = AdaSettings.model_validate(training_settings(baseline))
    initial = given.recipe(settings.method, {"weight": settings.initial}, {})
    return (yield from trained(given, baseline, initial))


def adamerging_from_best(given: Ingredients, baseline: BaselineSpec) -> BaselinePlan:
    """The same from the winner of the search, whose merge has to be a weighted sum of task vectors."""
    return (yield from _trained_from_winner(given, baseline))


def _trained_from_winner(given: Ingredients, baseline: BaselineSpec) -> BaselinePlan:
    """A training from the winner of the search, which has cost the search; of merges from their sum, if it is one."""
    if given.best is None:
        raise InvalidInput("the search has not named its best merge yet; run the search first")
    refined = yield from trained(given, baseline, flattened(given.best))
    return replace(refined, cost=given.search_cost)


def trained(given: Ingredients, baseline: BaselineSpec, initial: Recipe) -> BaselinePlan:
    """A training from a merge, on the texts of all experts that have some."""
    calibration = {expert.name: expert.calibration for expert in given.spec.experts if expert.calibration is not None}
    training = TrainingRequest(
        recipe=initial,
        settings=training_settings(baseline, given.facts),
        calibration=calibration,
        trainer=str(BASELINES[baseline.name].trainer),
    )
    (kept,) = yield [training]
    if not isinstance(kept, TrainingResult):
        raise InvalidInput("the training failed")
    return Choice(kept.recipe, losses=kept.losses)


def _grid(baseline: BaselineSpec) -> tuple[float, ...]:
    return validate(WeightGrid, baseline.settings, f"baseline {baseline.name!r}").weights

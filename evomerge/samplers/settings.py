"""Settings of the samplers as data, and their reader: a wrong name, type or value is refused.

They are read without the samplers, which load Optuna and pycma.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import ConfigDict, Field

from evomerge.documents import Frozen, validate
from evomerge.errors import unknown_name

__all__ = [
    "CatCmaSettings",
    "CmaSettings",
    "ForestSettings",
    "GpSettings",
    "NoSettings",
    "NsgaiiSettings",
    "NsgaiiiSettings",
    "ReferencePointSettings",
    "TpeSettings",
    "only",
    "read",
]

AboveZero = Annotated[float, Field(gt=0)]
Probability = Annotated[float, Field(ge=0, le=1)]


class NoSettings(Frozen):
    """Settings of a sampler that has none."""

    model_config = ConfigDict(strict=True)  # a text is no number, nor is true


Settings = TypeVar("Settings", bound=NoSettings)


class ReferencePointSettings(NoSettings):
    """Settings of CMA-ES with several objectives.

    Attributes:
        sigma0: initial standard deviation, as a share of each parameter's range; smaller without this key where the
            search begins at a known merge.
        popsize: number of results that make one update of the distribution. Without it 4 + 3 ln(dimensions), and at
            least half the number of workers (all of them with `generation_mode: sync`).
        restarts: what happens after the distribution has shrunk to a point: `ipop` begins elsewhere with twice the
            population, `bipop` in turn with a large and a small one; `none` continues.
    """

    sigma0: AboveZero = 0.2
    popsize: Annotated[int, Field(ge=3)] | None = None
    restarts: Literal["ipop", "bipop", "none"] = "ipop"


class CmaSettings(ReferencePointSettings):
    """Settings of CMA-ES, for numbers that always exist.

    Attributes:
        generation_mode: `async` never waits; `sync` draws a whole population from one distribution, and waits for all
            its results. With one objective only.
        mean_every: propose the distribution's mean every `mean_every` trials; 0 disables it. With one objective only.
    """

    generation_mode: Literal["async", "sync"] = "async"
    mean_every: Annotated[int, Field(ge=0)] = 0


class CatCmaSettings(NoSettings):
    """Settings of CatCMA with margin, for numbers and choices, also of methods.

    Attributes:
        sigma0: initial standard deviation of the numbers, as a share of each one's range.
        popsize: number of results that make one update of the distribution. Without it 4 + 3 ln(dimensions), and at
            least the number of workers.
    """

    sigma0: AboveZero = 0.2
    popsize: Annotated[int, Field(ge=4)] | None = None


class ForestSettings(NoSettings):
    """Settings of the search with a random forest, as SMAC does it, for numbers and choices.

    Attributes:
        n_startup_trials: proposals at random before the first forest, and values that a number of items must have for a
            forest to be fitted to it. SMAC asks for one value only, from which a forest learns nothing.
        n_trees: trees of the forest.
        random_share: share of later proposals that are random, so that a wrong forest is found out.
    """

    n_startup_trials: Annotated[int, Field(ge=2)] = 10
    n_trees: Annotated[int, Field(ge=2)] = 10
    random_share: Probability = 0.2


class GpSettings(NoSettings):
    """Settings of the Gaussian process, for a few hundred trials in up to about 20 dimensions.

    Attributes:
        n_startup_trials: proposals at random before the first fit.
    """

    n_startup_trials: Annotated[int, Field(ge=1)] = 10


class TpeSettings(NoSettings):
    """Settings of the tree-structured Parzen estimator, for numbers and choices.

    Attributes:
        n_startup_trials: proposals at random before the first estimate.
        n_ei_candidates: points that are drawn for each proposal, of which the most promising is taken.
    """

    n_startup_trials: Annotated[int, Field(ge=0)] = 10
    n_ei_candidates: Annotated[int, Field(ge=1)] = 24


class NsgaiiSettings(NoSettings):
    """Settings of NSGA-II, for two or three objectives and big budgets.

    Attributes:
        population_size: trials of a generation, no fewer than a crossover has parents: 3 for `spx` and `undx`, else 2.
        crossover: how children come from their parents. `sbx`, simulated binary crossover, is that of the paper;
            `uniform` takes each parameter from one of the parents.
        mutation: `polynomial`, that of the paper, moves a parameter a little; `uniform` draws it anew.
        mutation_prob: probability of each parameter to mutate; without it one over their number.
        crossover_prob: probability that a child has several parents; without it Optuna's, 0.9.
        swapping_prob: of `crossover: uniform`, probability of each parameter to come from the second parent; without it
            Optuna's, 0.5.
    """

    population_size: Annotated[int, Field(ge=2)] = 50
    crossover: Literal["sbx", "uniform", "blx_alpha", "vsbx", "spx", "undx"] = "sbx"
    mutation: Literal["polynomial", "uniform"] = "polynomial"
    mutation_prob: Probability | None = None
    crossover_prob: Probability | None = None
    swapping_prob: Probability | None = None


class NsgaiiiSettings(NsgaiiSettings):
    """Settings of NSGA-III, for more objectives.

    Attributes:
        dividing_parameter: divisions of each axis between the reference points, of which there are
            C(objectives + divisions - 1, divisions).
    """

    dividing_parameter: Annotated[int, Field(ge=1)] = 3


def only(sampler: str, settings: Mapping[str, Any], known: Collection[str]) -> None:
    """Refuse settings that the sampler does not have."""
    for name in settings:
        if name not in known:
            raise unknown_name(f"setting of sampler {sampler!r}", name, known)


def read(sampler: str, settings: Mapping[str, Any], kind: type[Settings]) -> Settings:
    """The settings of a sampler, checked. None, like an absent setting, is the default.

    Raises:
        InvalidInput: an unknown setting, a wrong type, or a value out of its range.
    """
    only(sampler, settings, kind.model_fields)
    given = {name: value for name, value in settings.items() if value is not None}
    return validate(kind, given, f"sampler {sampler!r}")

"""Importance of each source and of each group of tensors, by the finished trials of a search."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial

from evomerge.baselines.info import BASELINES
from evomerge.evolution.unit_cube import UnitCube
from evomerge.importance.left_out import Share, shares_of
from evomerge.study.stored_search import StoredSearch
from evomerge.study.trials import best_trials, value_of

ALPHA: Final = 0.05  # of all intervals together
FEWEST: Final = 20  # trials, below which an interval by their spread is not to be trusted

Kind = Literal["source", "group"]


@dataclass(frozen=True, kw_only=True)
class Importance:
    """A source, or a group of tensors, with what its parameters explain.

    Attributes:
        params: number of its parameters.
        share: of the variance of the objective between trials: what no other parameter explains. It, and its interval,
            are None where there are too few trials or all are equally good; the interval also where its parameters
            change no prediction.
        answer: "matters" where the whole interval is above 0. Else it cannot be told: parameters that matter little,
            that vary together with others, or trials too few.
    """

    kind: Kind
    name: str
    params: int
    share: float | None
    low: float | None
    high: float | None

    @property
    def answer(self) -> str:
        return "matters" if self.low is not None and self.low > 0 else "cannot be told"


def importances(stored: StoredSearch) -> list[Importance]:
    """The sources, then the groups, each in the order of the space; of a search with one of a kind none of that kind.

    Trials that were cut short are left out: their values are of fewer items. A path of layers has neither.
    """
    complete = _complete(stored)
    if not complete or stored.spec.search_space.layers is not None:
        return []
    sources = [*(source.name for source in stored.spec.sources), *BASELINES]  # a space of merges has these
    distributions = {name: kind for trial in complete for name, kind in trial.distributions.items()}
    owned = _owned(distributions, sources, stored.spec.search_space.method_names)
    values = np.array([value_of(trial) or 0.0 for trial in complete])
    shares: Sequence[Share | None] = [None] * len(owned)
    if len(complete) >= FEWEST and owned:
        table, params = _table(complete, distributions)
        columns = [{place for place, name in enumerate(params) if name in names} for names in owned.values()]
        shares = shares_of(table, values, columns, alpha=ALPHA) or shares
    return [
        Importance(
            kind=kind,
            name=name,
            params=len(names),
            share=None if share is None else share.share,
            low=share.low if share is not None and share.low < share.high else None,
            high=share.high if share is not None and share.low < share.high else None,
        )
        for ((kind, name), names), share in zip(owned.items(), shares, strict=True)
    ]


def importance_document(stored: StoredSearch) -> dict[str, Any]:
    """`importances` as JSON, for the document of a leaderboard."""
    found = importances(stored)
    trials = len(_complete(stored))
    return {"importance": {"trials": trials, "rows": [{**asdict(each), "answer": each.answer} for each in found]}}


def _complete(stored: StoredSearch) -> list[FrozenTrial]:
    """The complete trials with a finite value: others' studies may have infinite ones."""
    trials = best_trials(stored.study, len(stored.study.get_trials(deepcopy=False)))
    return [trial for trial in trials if math.isfinite(value_of(trial) or 0.0)]


def expert_and_group(param: str, sources: Collection[str], methods: Collection[str]) -> tuple[str | None, str | None]:
    """The source and the group of a param such as "layers0-1.ties.reverse.density"; None where it is of all of them."""
    rest = param.rpartition(".")[0]
    expert = next((name for name in sorted(sources, key=len, reverse=True) if _ends(rest, name)), None)
    rest = rest.removesuffix(expert or "").removesuffix(".")
    method = next((name for name in methods if _ends(rest, name)), "")
    return expert, rest.removesuffix(method).removesuffix(".") or None


def _ends(text: str, name: str) -> bool:
    return text == name or text.endswith(f".{name}")


def _owned(
    params: Collection[str], sources: Collection[str], methods: Collection[str]
) -> dict[tuple[Kind, str], set[str]]:
    """(kind, name) -> its params, sources first."""
    kinds: dict[Kind, dict[str, set[str]]] = {"source": {}, "group": {}}
    for param in params:
        expert, group = expert_and_group(param, sources, methods)
        if expert is not None:
            kinds["source"].setdefault(expert, set()).add(param)
        if group is not None:
            kinds["group"].setdefault(group, set()).add(param)
    return {(kind, name): names for kind, found in kinds.items() if len(found) > 1 for name, names in found.items()}


def _table(
    trials: Sequence[FrozenTrial], distributions: Mapping[str, BaseDistribution]
) -> tuple[NDArray[np.float64], list[str]]:
    """[trials, columns] and the param of each column: a number and its square, or one column for each choice.

    A param that a trial does not have, since another method was chosen, is at the mean of those that have it.
    """
    columns: list[NDArray[np.float64]] = []
    params: list[str] = []
    for name, distribution in distributions.items():
        cube = UnitCube({name: distribution})
        has = np.array([name in trial.params for trial in trials])
        at = np.array([cube.encode(trial.params)[0] for trial in trials if name in trial.params and cube.free])
        if not len(at):
            continue
        if isinstance(distribution, CategoricalDistribution):
            forms = [at == place for place in np.unique(at)]
        else:
            forms = [at, (at - at.mean()) ** 2]
        for form in forms:
            column = np.full(len(trials), float(form.mean()))
            column[has] = form
            columns.append(column)
            params.append(name)
    return np.stack(columns, axis=1) if columns else np.zeros((len(trials), 0)), params

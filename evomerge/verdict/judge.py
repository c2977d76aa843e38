"""Compares the winner with every baseline on the held-out items, and its lead there with that on the search items.

Nothing is chosen here: the winner was named from the search items, and the family of comparisons is the caller's.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.special import log_ndtr

from evomerge.errors import InvalidInput
from evomerge.evaluation.scores import Scores
from evomerge.objective import Objective
from evomerge.seeding import derive
from evomerge.verdict import holm
from evomerge.verdict.paired import PairedDifference, paired_difference, subtract
from evomerge.verdict.sentences import sentence
from evomerge.verdict.verdict import ALPHA, Comparison, Lead, Unit, Verdict, VerdictWord


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """A row that has been scored on the held-out items.

    Attributes:
        label: the row's label.
        held_out: its scores there.
        search: its objective on the search items, None where it is not known.
        chosen: whether it was picked for that value, as the best of a grid or of a random search is. It has luck of its
            own there, so that it is no measure of the winner's.
        models: number of models that the row is; each task was given to the one that belongs to it.
    """

    label: str
    held_out: Scores
    search: float | None = None
    chosen: bool = False
    models: int = 1


def judge(
    objective: Objective,
    winner: Entrant,
    trial: int,
    baselines: Sequence[Entrant],
    sources: Sequence[Entrant] = (),
    *,
    trials: int | None = None,
    search_items: int | None = None,
    looks: int = 1,
    seed: int = 0,
) -> Verdict:
    """The verdict on a search.

    Args:
        objective: of the search.
        winner: the best trial by the search items, with its value there.
        trial: its number.
        baselines: what it is compared with: the family that the p-values are corrected for.
        sources: further rows; with those baselines that were not `chosen` they show how much easier or harder the
            held-out items are. A row that is among the baselines too counts once.
        trials, search_items: number of candidates that the winner was chosen from, and of items that it was chosen on;
            without them the verdict does not say what luck alone would give the best of them.
        looks: number of comparisons of a winner on these items, this one included.
        seed: key of resamples and sampled coins.

    Raises:
        InvalidInput: a baseline has no scores of the winner's tasks and items, or two have one label.
    """
    leads = {
        entrant.label: subtract(winner.search, entrant.search)
        for entrant in baselines
        if winner.search is not None and entrant.search is not None
    }
    comparisons = compare(
        objective,
        winner.held_out,
        _by_label(baselines),
        search_differences=leads,
        models={entrant.label: entrant.models for entrant in baselines},
        seed=seed,
    )
    held_out = objective.value(winner.held_out)
    references = {entrant.label: entrant for entrant in (*sources, *baselines) if not entrant.chosen}
    gap = None if winner.search is None else subtract(winner.search, held_out)
    gaps = [
        entrant.search - objective.value(entrant.held_out)
        for entrant in references.values()
        if entrant.search is not None
    ]
    others = [each for each in gaps if math.isfinite(each)]
    reference_gap = sum(others) / len(others) if others else None
    verdict = Verdict(
        winner=winner.label,
        trial=trial,
        search_value=winner.search,
        held_out_value=held_out,
        gap=gap,
        reference_gap=reference_gap,
        luck=gap - reference_gap if gap is not None and reference_gap is not None else None,
        lead=_lead([each for each in comparisons if each.baseline in references] or comparisons, trials, search_items),
        comparisons=comparisons,
        items=sum(len(score.items) for score in winner.held_out.tasks.values()),
        looks=looks,
        unit=_unit(objective, [winner.held_out, *(entrant.held_out for entrant in baselines)]),
    )
    return verdict.with_sentence(sentence(verdict))


def compare(
    objective: Objective,
    winner: Scores,
    baselines: Mapping[str, Scores],
    *,
    search_differences: Mapping[str, float] | None = None,
    models: Mapping[str, int] | None = None,
    seed: int = 0,
) -> tuple[Comparison, ...]:
    """The winner against each baseline on the same items, corrected by Holm for all of them together.

    Args:
        search_differences: label -> winner − baseline on the search items, shown beside the comparison.
        models: label -> number of models that it is, 1 where it is not named.
        seed: key of resamples and sampled coins.

    Raises:
        InvalidInput: a baseline has no scores of the winner's tasks and items.
    """
    found = {
        label: paired_difference(winner, scores, objective, seed=derive(seed, "verdict", label))
        for label, scores in baselines.items()
    }
    tested = {label: each.p for label, each in found.items() if each.p is not None}
    adjusted = dict(zip(tested, holm.adjust(list(tested.values())), strict=True))
    multipliers = dict(zip(tested, holm.multipliers(list(tested.values())), strict=True))
    known, counts = search_differences or {}, models or {}
    return tuple(
        Comparison(
            baseline=label,
            difference=each.difference,
            low=each.low,
            high=each.high,
            stderr=math.sqrt(each.variance) if each.variance is not None else None,
            p=each.p,
            adjusted_p=adjusted.get(label),
            test=each.test,
            items=each.items,
            discordant=each.discordant,
            items_needed=each.items_needed(ALPHA / multipliers[label]) if label in multipliers else None,
            outcome=_outcome(each, adjusted.get(label)),
            search_difference=known.get(label),
            models=counts.get(label, 1),
        )
        for label, each in found.items()
    )


def _outcome(found: PairedDifference, adjusted_p: float | None) -> VerdictWord:
    if found.difference <= 0:
        return "does not beat"
    return "beats" if adjusted_p is not None and adjusted_p < ALPHA else "cannot be told"


def _lead(comparisons: Sequence[Comparison], trials: int | None, search_items: int | None) -> Lead | None:
    """The lead over the baseline that is best on the search items: the smallest lead there."""
    known = [(each.search_difference, each) for each in comparisons if each.search_difference is not None]
    if not known:
        return None
    search, closest = min(known, key=lambda pair: pair[0])
    left = closest.difference
    luck = search > 0 and closest.outcome != "beats" and left < search / 2
    return Lead(
        baseline=closest.baseline,
        search=search,
        held_out=left,
        luck=luck,
        by_chance=_by_chance(search, closest, trials, search_items),
    )


def _by_chance(search: float, closest: Comparison, trials: int | None, search_items: int | None) -> float | None:
    """P(the luckiest of `trials` candidates leads by `search` or more), if they are independent and none is better.

    The spread of a lead on the search items is that on the held-out ones, scaled to their number. Candidates of a
    search that has converged resemble each other, so that luck gives them less than this.
    """
    if trials is None or search_items is None or closest.stderr is None or search <= 0:
        return None
    if closest.stderr == 0:
        return 0.0
    spread = closest.stderr * math.sqrt(closest.items / search_items)
    return -math.expm1(trials * float(log_ndtr(search / spread)))


def _unit(objective: Objective, scores: Sequence[Scores]) -> Unit:
    if objective.scales is not None:
        return "normalised points"
    tasks = [score for each in scores for score in each.tasks.values()]
    shares = all(min(score.outcomes) >= 0 and max(score.outcomes) <= 1 for score in tasks)
    return "points" if shares else "plain"


def _by_label(entrants: Sequence[Entrant]) -> dict[str, Scores]:
    counts = Counter(entrant.label for entrant in entrants)
    if twice := [label for label, count in counts.items() if count > 1]:
        raise InvalidInput(f"two baselines are called {twice[0]!r}; a verdict needs labels that differ")
    return {entrant.label: entrant.held_out for entrant in entrants}

"""Compares the winner with every baseline on the held-out items, and its lead there with that on the search items.

Nothing is chosen here: the winner was named from the search items, and the comparisons are the caller's. Those that are
new form the family of this look; what an earlier look said of the same two merges stands.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Container, Mapping, Sequence
from dataclasses import dataclass, replace

from scipy.special import log_ndtr

from evomerge.errors import InvalidInput
from evomerge.evaluation.scores import Scores
from evomerge.forms import finite_or_none
from evomerge.objective import Objective
from evomerge.seeding import derive
from evomerge.verdict import holm
from evomerge.verdict.looks import share
from evomerge.verdict.paired import PairedDifference, paired_difference, subtract
from evomerge.verdict.sentences import sentence
from evomerge.verdict.verdict import ALPHA, Comparison, Known, Lead, Unit, Verdict, VerdictWord


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
        recipe: digest of its recipe, by which a later look knows it again.
        control: whether it is a baseline that cannot know what the experts learned.
    """

    label: str
    held_out: Scores
    search: float | None = None
    chosen: bool = False
    models: int = 1
    recipe: str | None = None
    control: bool = False


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
    known: Mapping[str, Known] | None = None,
    margin: float | None = None,
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
        known: label of a baseline -> what an earlier look found between the same two merges.
        margin: difference of the objective below which two models are equivalent; None: that is not tested.
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
        recipes={entrant.label: entrant.recipe for entrant in baselines if entrant.recipe is not None},
        look=looks,
        margin=margin,
        known=known,
        controls={entrant.label for entrant in baselines if entrant.control},
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
    reference_gap = finite_or_none(sum(others) / len(others)) if others else None
    verdict = Verdict(
        winner=winner.label,
        trial=trial,
        search_value=winner.search,
        held_out_value=held_out,
        gap=gap,
        reference_gap=reference_gap,
        luck=gap - reference_gap if gap is not None and reference_gap is not None else None,
        lead=_lead(_measures(comparisons, references) or comparisons, trials, search_items),
        comparisons=comparisons,
        items=sum(len(score.items) for score in winner.held_out.tasks.values()),
        looks=looks,
        unit=_unit(objective, [winner.held_out, *(entrant.held_out for entrant in baselines)]),
        margin=margin,
    )
    return verdict.with_sentence(sentence(verdict))


def _measures(comparisons: Sequence[Comparison], unchosen: Container[str]) -> list[Comparison]:
    """The comparisons with baselines that a lead is over: not picked for their value, and no control."""
    return [each for each in comparisons if each.baseline in unchosen and not each.control]


def compare(
    objective: Objective,
    winner: Scores,
    baselines: Mapping[str, Scores],
    *,
    search_differences: Mapping[str, float] | None = None,
    models: Mapping[str, int] | None = None,
    recipes: Mapping[str, str] | None = None,
    look: int = 1,
    margin: float | None = None,
    known: Mapping[str, Known] | None = None,
    controls: Collection[str] = (),
    seed: int = 0,
) -> tuple[Comparison, ...]:
    """The winner against each baseline on the same items, corrected for all comparisons that this look adds.

    Args:
        search_differences: label -> winner − baseline on the search items, shown beside the comparison.
        models: label -> number of models that it is, 1 where it is not named.
        recipes: label -> digest of its recipe.
        look: number of this look at the held-out items.
        margin: difference below which two models are equivalent; None: that is not tested.
        known: label -> what an earlier look found between the same two merges.
        controls: labels of those that cannot know what the experts learned.
        seed: key of resamples and sampled coins.

    Raises:
        InvalidInput: a baseline has no scores of the winner's tasks and items.
    """
    found = {
        label: paired_difference(winner, scores, objective, seed=derive(seed, "verdict", label), margin=margin)
        for label, scores in baselines.items()
    }
    before = known or {}
    added = {label: each for label, each in found.items() if label not in before or before[label].margin != margin}
    corrected = _corrected(added, look, with_equivalence=margin is not None)
    leads, counts, digests = search_differences or {}, models or {}, recipes or {}
    comparisons = []
    for label, each in found.items():
        tested = corrected.get(label)
        if label in before:
            earlier = before[label].comparison
            tested = _Corrected.of(earlier) if tested is None else tested.after(earlier)
        assert tested is not None  # it is known or added
        comparisons.append(
            Comparison(
                baseline=label,
                difference=each.difference,
                low=each.low,
                high=each.high,
                stderr=finite_or_none(math.sqrt(each.variance)) if each.variance is not None else None,
                p=each.p,
                adjusted_p=tested.p,
                test=each.test,
                items=each.items,
                discordant=each.discordant,
                items_needed=tested.items_needed,
                outcome=_outcome(each.difference, tested),
                search_difference=leads.get(label),
                models=counts.get(label, 1),
                control=label in controls,
                equivalence_p=tested.equivalence_p,
                look=tested.look,
                recipe=digests.get(label),
            )
        )
    return tuple(comparisons)


@dataclass(frozen=True, kw_only=True)
class _Corrected:
    """The p-values of one comparison, corrected for its family and for all looks; see `Comparison`."""

    p: float | None
    equivalence_p: float | None
    items_needed: int | None
    look: int

    @classmethod
    def of(cls, comparison: Comparison) -> _Corrected:
        return cls(
            p=comparison.adjusted_p,
            equivalence_p=comparison.equivalence_p,
            items_needed=comparison.items_needed,
            look=comparison.look,
        )

    def after(self, earlier: Comparison) -> _Corrected:
        """With the difference as an earlier look found it, where that p-value is smaller: equivalence alone is new."""
        if earlier.adjusted_p is None or self.p is None or self.p < earlier.adjusted_p:
            return self
        return replace(self, p=earlier.adjusted_p, items_needed=earlier.items_needed, look=earlier.look)


def _corrected(added: Mapping[str, PairedDifference], look: int, *, with_equivalence: bool) -> dict[str, _Corrected]:
    """The comparisons that a look adds, with p-values corrected for their number and for all looks."""
    tested = {label: each.p for label, each in added.items() if each.p is not None}
    spent, p_values = share(look), list(tested.values())
    adjusted = dict(zip(tested, holm.adjust(p_values, with_equivalence=with_equivalence), strict=True))
    factors = dict(zip(tested, holm.multipliers(p_values, with_equivalence=with_equivalence), strict=True))
    found = {}
    for label, each in added.items():
        equivalence_p = None if each.equivalence_p is None else holm.adjust_equivalence(each.equivalence_p, len(tested))
        p = min(1.0, adjusted[label] / spent) if label in tested else None
        found[label] = _Corrected(
            p=p,
            equivalence_p=None if equivalence_p is None else min(1.0, equivalence_p / spent),
            items_needed=None if p is None else _needed(each, ALPHA * spent / factors[label], p),
            look=look,
        )
    return found


def _needed(found: PairedDifference, level: float, p: float) -> int | None:
    """The items that would tell; more than there are where these do not, though the formula may allow for fewer."""
    needed = found.items_needed(level)
    return needed if needed is None or p < ALPHA else max(needed, found.items + 1)


def _outcome(difference: float, tested: _Corrected) -> VerdictWord:
    told_apart = tested.p is not None and tested.p < ALPHA
    if told_apart and difference > 0:
        return "beats"
    if not told_apart and tested.equivalence_p is not None and tested.equivalence_p < ALPHA:
        return "equivalent"
    return "cannot be told" if difference > 0 else "does not beat"


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

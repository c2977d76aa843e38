"""The verdict on a winner by the held-out items: plain values, stored in the study as one JSON document."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal

from evomerge.errors import InvalidInput
from evomerge.messages import marked

SCHEMA: Final = 2
_WITHOUT_LOOKS: Final = 1  # of verdicts whose p-values do not allow for repeated looks
ALPHA: Final = 0.05
CONFIDENCE: Final = 0.95  # of intervals

VerdictWord = Literal["beats", "equivalent", "does not beat", "cannot be told"]
Unit = Literal["points", "normalised points", "plain"]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The winner against one baseline on the same held-out items. Differences are winner − baseline, more is better.

    Attributes:
        baseline: label of the baseline.
        difference: of the objective, in its own unit.
        low, high: 95 % confidence interval of this one difference, not widened for the number of comparisons; None
            where no test could be made.
        stderr: standard error of the difference; None where no test could be made.
        p: two-sided; None where no test could be made.
        adjusted_p: p after the correction for all comparisons of its look (Holm's without a margin) and for all looks,
            earlier and later ones.
        test: the test that gives p: "McNemar", "sign flip", "paired bootstrap" or "none".
        items: number of items that were compared.
        discordant: number of those whose outcomes differ.
        items_needed: number of such items that shows a difference of the observed size with 80 % power, tested at the
            level at which this one was tested; None where the winner is not ahead or nothing could be tested.
        outcome: the answer.
        search_difference: the same difference on the search items, None where it is not known.
        models: number of models that the baseline is; more than one know the task of every item.
        equivalence_p: that the difference is the verdict's margin or more, corrected likewise; None without a margin,
            and where that cannot be tested.
        look: number of the look at the held-out items in which it was tested; the words of a look stand in later ones.
        recipe: digest of the baseline's recipe; None in verdicts of earlier versions.
        control: whether the baseline is one that cannot know what the experts learned.
    """

    baseline: str
    difference: float
    low: float | None
    high: float | None
    stderr: float | None
    p: float | None
    adjusted_p: float | None
    test: str
    items: int
    discordant: int
    items_needed: int | None
    outcome: VerdictWord
    search_difference: float | None = None
    models: int = 1
    equivalence_p: float | None = None
    look: int = 1
    recipe: str | None = None
    control: bool = False

    @property
    def name(self) -> str:
        """The baseline's label, with a mark where it is not one model."""
        return marked(self.baseline, self.models, control=self.control)

    @property
    def worse(self) -> bool:
        """Whether the winner does not only not beat the baseline, but is beaten by it."""
        return self.difference < 0 and self.adjusted_p is not None and self.adjusted_p < ALPHA

    def to_document(self) -> dict[str, Any]:
        """As JSON, without the fields that earlier versions had not where they have nothing to tell."""
        content = asdict(self)
        for name, usual in (("models", 1), ("equivalence_p", None), ("look", 1), ("recipe", None), ("control", False)):
            if content[name] == usual:
                del content[name]
        return content


@dataclass(frozen=True)
class Known:
    """A comparison of an earlier look, and the margin that it was tested with."""

    comparison: Comparison
    margin: float | None


@dataclass(frozen=True, kw_only=True)
class Lead:
    """The winner's lead over the baseline that is best on the search items: there, and on the held-out items.

    Baselines that were themselves picked for their value there count only where there is no other.

    Attributes:
        baseline: that baseline's label.
        search, held_out: difference of the objective, winner − baseline.
        luck: whether the lead was luck: the winner was ahead on the search items, does not beat this baseline on the
            held-out ones, and less than half of the lead is left there.
        by_chance: how likely the best of as many candidates leads by as much on the search items if all are as good as
            the baseline; None where it is not known.
    """

    baseline: str
    search: float
    held_out: float
    luck: bool
    by_chance: float | None = None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The comparison of the winner with the baselines on items that the search never saw.

    Attributes:
        winner: its label.
        trial: its number.
        search_value, held_out_value: the winner's objective on both parts of the items; the first None where it is not
            known.
        gap: search value − held-out value: luck, and how much easier the search items are.
        reference_gap: mean gap of rows that the search items did not choose (sources and baselines), which have only
            the second; None where no row has both values.
        luck: gap − reference gap.
        lead: over the baseline that is best on the search items; None without baselines scored there.
        comparisons: one per baseline, in the order given.
        items: number of held-out items that were compared.
        looks: number of comparisons of a winner on these items, this one included.
        unit: how differences are shown: "points" (hundredths of scores between 0 and 1), "normalised points"
            (hundredths of the way from the sources' worst to their best) or "plain".
        margin: difference of the objective below which two models are equivalent; None where that was not asked.
        allows_for_looks: whether p-values are corrected for repeated looks; not in verdicts of earlier versions.
        sentence: the same in plain words.
        warning: sentences on the winner's faults in its sanity probe, which begin the sentence; empty without any.
        corner: in a space that is made of other merges, the one that the winner grew from; is_corner: it is that merge.
    """

    winner: str
    trial: int
    search_value: float | None
    held_out_value: float
    gap: float | None
    reference_gap: float | None
    luck: float | None
    lead: Lead | None
    comparisons: tuple[Comparison, ...]
    items: int
    looks: int
    unit: Unit
    sentence: str = ""
    margin: float | None = None
    allows_for_looks: bool = True
    corner: str | None = None
    is_corner: bool = False
    warning: str = ""

    def with_sentence(self, text: str) -> Verdict:
        return replace(self, sentence=text)

    def with_warning(self, warning: str) -> Verdict:
        """The verdict that says first what is wrong with the winner."""
        return replace(self, warning=warning, sentence=f"{warning} {self.sentence}") if warning else self

    def to_document(self) -> dict[str, Any]:
        """As JSON, with the number of its layout."""
        content = {**asdict(self), "comparisons": [each.to_document() for each in self.comparisons]}
        if self.margin is None:
            del content["margin"]
        if self.corner is None:  # of a search in another space
            del content["corner"], content["is_corner"]
        if not self.warning:
            del content["warning"]
        del content["allows_for_looks"]
        return {"schema": SCHEMA if self.allows_for_looks else _WITHOUT_LOOKS, **content}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Verdict:
        """The verdict that `to_document` wrote.

        Raises:
            InvalidInput: it was written in a layout that is not known.
        """
        content = dict(document)
        schema = content.pop("schema", None)
        if schema not in (SCHEMA, _WITHOUT_LOOKS):
            raise InvalidInput(
                f"the verdict has schema {schema!r}; this version of evomerge reads {_WITHOUT_LOOKS} and {SCHEMA}"
            )
        content["comparisons"] = tuple(Comparison(**each) for each in content["comparisons"])
        content["lead"] = Lead(**content["lead"]) if content["lead"] is not None else None
        return cls(**content, allows_for_looks=schema != _WITHOUT_LOOKS)

"""A candidate between its first block of items and its last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from evomerge.evaluation.combination import combine_scores
from evomerge.evaluation.scores import Scores
from evomerge.jobs import Cost, Outcome, Scored
from evomerge.packs.items import ItemBlock
from evomerge.racing.draw import Draw
from evomerge.racing.fidelity import InterimLook, LookResult
from evomerge.study.search_study import Proposal


@dataclass(kw_only=True)
class CandidateInFlight:
    """A candidate while it is scored, with the outcomes of its blocks so far.

    Attributes:
        blocks: the items that it is scored on, one block after another.
        incumbent: scores of the best candidate when this one started. Fixed for its whole race, otherwise the error
            rate would not hold.
        draw: the items that were drawn for it, and their predictions; None where it has the same blocks as others.
        rungs: items -> its value on them, where it has been compared with others.
    """

    proposal: Proposal
    blocks: Sequence[ItemBlock]
    incumbent: Scores | None
    draw: Draw | None = None
    rungs: dict[int, float] = field(default_factory=dict)
    _outcomes: list[Outcome] = field(default_factory=list)

    @property
    def block(self) -> ItemBlock:
        """The block that comes next."""
        return self.blocks[len(self._outcomes)]

    @property
    def is_begun(self) -> bool:
        """Whether a block has been scored."""
        return bool(self._outcomes)

    @property
    def is_complete(self) -> bool:
        """Whether all items have been scored."""
        return len(self._outcomes) == len(self.blocks)

    def add(self, outcome: Outcome) -> None:
        """Add the outcome of the latest block."""
        self._outcomes.append(outcome)

    def outcome(self) -> Outcome:
        """All blocks so far as one outcome; the last one's result where that is no score."""
        last = self._outcomes[-1]
        seconds: dict[str, float] = {}
        for each in self._outcomes:
            for phase, spent in each.seconds.items():
                seconds[phase] = seconds.get(phase, 0.0) + spent
        cost = replace(sum((each.cost for each in self._outcomes), Cost()), candidates=last.cost.candidates)
        whole = replace(
            last,
            seconds=seconds,
            cost=cost,
            losses=sum(each.losses for each in self._outcomes),
            checkpoints=tuple(name for each in self._outcomes for name in each.checkpoints),
        )
        if not isinstance(last.result, Scored):
            return whole
        return replace(whole, result=replace(last.result, scores=combine_scores(self._scores())))

    def look(self, at_rung: Mapping[int, Mapping[int, float]]) -> InterimLook:
        """The basis of the decision after a block.

        Args:
            at_rung: items -> trial -> its value on them, of all candidates that were compared there.
        """
        parts = self._scores()
        earlier = []
        for count in range(1, len(parts)):
            counts: dict[str, int] = {}
            for part in parts[:count]:
                for task, scores in part.tasks.items():
                    counts[task] = counts.get(task, 0) + len(scores.items)
            earlier.append(counts)
        return InterimLook(
            trial=self.proposal.number,
            seen=combine_scores(parts),
            earlier=earlier,
            incumbent=self.incumbent,
            at_rung=at_rung,
            draw=self.draw,
        )

    def note(self, result: LookResult) -> None:
        """Note the value by which it was compared with others at a rung."""
        if result.rung is not None and result.value is not None:
            self.rungs[result.rung] = result.value

    def _scores(self) -> list[Scores]:
        return [each.result.scores for each in self._outcomes if isinstance(each.result, Scored)]

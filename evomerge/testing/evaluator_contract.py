"""The promises of an evaluator, as tests. A test module subclasses this and says how to build one."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from evomerge.errors import OtherSpec
from evomerge.evaluation import Candidate, Evaluator, ItemBlock, Scores, Split, split_from_json, split_to_json
from evomerge.packs.split import PARTS
from evomerge.recipe import ModelRef, Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["EvaluatorContract", "candidate"]

RECIPE = Recipe(base=ModelRef("base", "/nowhere"), sources=(ModelRef("a", "/nowhere"),), rules=(), dtype="float32")


class EvaluatorContract:
    """Subclasses give `build` (same arguments, same evaluator) and `candidates` (two that differ)."""

    def build(self, seed: int = 3, split: Split | None = None) -> Evaluator:
        raise NotImplementedError

    def candidates(self) -> tuple[Candidate, Candidate]:
        raise NotImplementedError

    @pytest.fixture
    def evaluator(self) -> Evaluator:
        return self.build()

    def test_every_task_has_one_outcome_per_item_in_the_order_of_the_block(self, evaluator: Evaluator) -> None:
        block = ItemBlock("search")
        scores = evaluator.score(self.candidates()[0], block)
        assert set(scores.tasks) == set(evaluator.split.items(block))
        for task, ids in evaluator.split.items(block).items():
            assert scores.tasks[task].items == ids
            assert len(scores.tasks[task].outcomes) == len(ids)
            assert all(map(math.isfinite, scores.tasks[task].outcomes))
            assert math.isfinite(scores.tasks[task].value)

    def test_a_block_gives_the_outcomes_that_its_items_have_in_the_whole_part(self, evaluator: Evaluator) -> None:
        candidate = self.candidates()[0]
        whole = evaluator.score(candidate, ItemBlock("search"))
        block = evaluator.score(candidate, ItemBlock("search", 3, 7))
        for task, scored in block.tasks.items():
            assert scored.items == whole.tasks[task].items[3:7]
            assert scored.outcomes == pytest.approx(whole.tasks[task].outcomes[3:7], abs=1e-4)

    def test_every_task_has_a_weight(self, evaluator: Evaluator) -> None:
        assert set(evaluator.weights) == set(evaluator.split.parts["search"])
        assert all(weight > 0 for weight in evaluator.weights.values())

    def test_chosen_items_have_the_outcomes_that_they_have_in_the_whole_part(self, evaluator: Evaluator) -> None:
        candidate = self.candidates()[0]
        whole = evaluator.score(candidate, ItemBlock("search"))
        task, ids = next(iter(evaluator.split.parts["search"].items()))
        chosen = evaluator.score(candidate, ItemBlock("search", chosen=((task, ids[::-2]),)))
        assert set(chosen.tasks) == {task}
        outcomes = dict(zip(whole.tasks[task].items, whole.tasks[task].outcomes, strict=True))
        assert chosen.tasks[task].items == ids[::-2]
        assert chosen.tasks[task].outcomes == tuple(outcomes[item] for item in ids[::-2])

    def test_a_task_without_items_in_the_block_is_left_out(self, evaluator: Evaluator) -> None:
        assert not evaluator.score(self.candidates()[0], ItemBlock("search", 10_000, 10_001)).tasks

    def test_n10_two_evaluators_see_the_same_items_and_give_the_same_outcomes(self, evaluator: Evaluator) -> None:
        other = self.build()
        assert other.split == evaluator.split
        assert other.fingerprint == evaluator.fingerprint
        candidate = self.candidates()[0]
        block = ItemBlock("held_out")
        assert other.score(candidate, block).tasks == evaluator.score(candidate, block).tasks

    def test_n11_the_items_are_a_seeded_sample_and_not_the_first_ones(self, evaluator: Evaluator) -> None:
        other = self.build(seed=4)
        for task, ids in evaluator.split.parts["search"].items():
            assert list(ids) != sorted(ids)
            assert set(ids) == set(other.split.parts["search"][task])
            assert ids != other.split.parts["search"][task]

    def test_n13_scoring_leaves_the_global_generators_alone(self, evaluator: Evaluator) -> None:
        before = _generators()
        evaluator.score(self.candidates()[0], ItemBlock("search"))
        assert _generators() == before

    def test_n15_no_item_is_in_two_parts(self, evaluator: Evaluator) -> None:
        for task in evaluator.split.parts["search"]:
            ids = [item for part in PARTS for item in evaluator.split.parts[part][task]]
            assert len(ids) == len(set(ids))

    def test_n17_scoring_a_then_b_then_a_gives_the_outcomes_of_a_twice(self, evaluator: Evaluator) -> None:
        first, second = self.candidates()
        block = ItemBlock("search")
        once = evaluator.score(first, block)
        between = evaluator.score(second, block)
        again = evaluator.score(first, block)
        assert _outcomes(once) == _outcomes(again)
        assert _outcomes(once) != _outcomes(between)

    def test_a_stored_split_is_used_as_it_is(self, evaluator: Evaluator) -> None:
        stored = split_from_json(split_to_json(evaluator.split))
        assert stored == evaluator.split
        assert self.build(seed=4, split=stored).split == stored

    def test_a_split_of_other_documents_is_refused(self, evaluator: Evaluator) -> None:
        split = evaluator.split
        changed = {part: dict.fromkeys(tasks, "0" * 32) for part, tasks in split.digests.items()}
        with pytest.raises(OtherSpec, match="are not those that the study was made with"):
            self.build(split=Split(split.parts, changed))

    def test_the_fingerprint_depends_on_the_seed(self, evaluator: Evaluator) -> None:
        assert self.build(seed=4).fingerprint != evaluator.fingerprint


def candidate(
    model: PreTrainedModel | None = None, params: dict[str, Any] | None = None, load: Any = None
) -> Candidate:
    """A candidate with these params, or with a live model, or with a function that loads one."""
    return Candidate(key="test/0", params=params or {}, recipe=RECIPE, model=load or (lambda: model))


def _outcomes(scores: Scores) -> dict[str, tuple[float, ...]]:
    return {task: scored.outcomes for task, scored in scores.tasks.items()}


def _generators() -> tuple[Any, ...]:
    import torch

    return random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()

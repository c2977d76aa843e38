"""The base class of evaluators of one's own keeps their contract, and finds what a subclass gets wrong."""

from __future__ import annotations

import pytest

from evomerge.document_evaluator import DocumentEvaluator
from evomerge.errors import InvalidInput
from evomerge.evaluation import EVALUATORS, ItemBlock, find_evaluator, known_evaluators
from evomerge.evaluation.factory import build_evaluator
from evomerge.recipe import ModelRef
from evomerge.testing.evaluator_contract import EvaluatorContract, candidate


class Reach(DocumentEvaluator):
    """A document is reached when the params add up to what it wants."""

    metric = "reached"
    neutral_settings = frozenset({"address"})

    def documents(self):
        return {task: [{"task": task, "wanted": number / 50} for number in range(100)] for task in ("one", "two")}

    def outcomes(self, candidate, task, documents):
        total = sum(candidate.params.values()) * self.settings.get("factor", 1.0)
        return [float(total >= document["wanted"]) for document in documents]


def reach(seed=3, split=None, **settings):
    return Reach(settings, bounds={}, seed=seed, split=split)


class TestReach(EvaluatorContract):
    def build(self, seed=3, split=None):
        return reach(seed, split)

    def candidates(self):
        return candidate(params={"a": 0.4, "b": 0.3}), candidate(params={"a": 1.5, "b": 0.2})


def test_scores_have_the_mean_of_the_outcomes_and_its_standard_error():
    scores = reach().score(candidate(params={"a": 1.0}), ItemBlock("search")).tasks["one"]
    share = sum(scores.outcomes) / len(scores.outcomes)
    assert scores.value == share
    expected = (share * (1 - share) / (len(scores.outcomes) - 1)) ** 0.5
    assert scores.stderr == pytest.approx(expected)
    assert (scores.metric, scores.aggregate) == ("reached", "mean")
    assert reach().score(candidate(params={"a": 1.0}), ItemBlock("search", 0, 1)).tasks["one"].stderr is None


def test_settings_are_part_of_the_fingerprint_but_for_the_neutral_ones():
    assert reach(factor=2.0).fingerprint != reach().fingerprint
    assert reach(address="here").fingerprint == reach(address="there").fingerprint


def test_documents_that_are_equal_in_the_named_fields_are_in_one_part():
    class Numbered(Reach):
        fields = ("wanted",)

        def documents(self):
            return {"one": [{"number": number, "wanted": number % 20 / 10} for number in range(100)]}

    split = Numbered({}, bounds={}, seed=3).split
    search, held_out = ({item % 20 for item in split.items(ItemBlock(part))["one"]} for part in ("search", "held_out"))
    assert search
    assert held_out
    assert not search & held_out


def test_another_text_of_the_class_or_another_version_is_another_fingerprint():
    class Other(Reach):
        def outcomes(self, candidate, task, documents):
            return [0.0] * len(documents)

    class Later(Reach):
        version = "2"

    built = [cls({}, bounds={}, seed=3).fingerprint for cls in (Reach, Other, Later)]
    assert len(set(built)) == 3


def test_a_wrong_number_of_outcomes_is_refused():
    class Short(Reach):
        def outcomes(self, candidate, task, documents):
            return [1.0]

    with pytest.raises(InvalidInput, match=r"returned 1 numbers for \d+ documents of task 'one'; return one for each"):
        Short({}, bounds={}, seed=3).score(candidate(), ItemBlock("search"))


def test_a_class_of_this_process_is_found_by_its_name(monkeypatch):
    monkeypatch.setitem(EVALUATORS, "reach", Reach)
    assert "reach" in known_evaluators()
    assert find_evaluator("reach") is Reach
    built = build_evaluator("reach", base=ModelRef("base", "/nowhere"), seed=3, settings={"factor": 2.0})
    assert built.fingerprint == reach(factor=2.0).fingerprint

"""A run that was cut short between two passes is continued by another engine, to the last bit."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from engine.test_engines import reader
from steps_made import steps_made
from tiny_pack import make_model

from evomerge.engine import tree
from evomerge.engine.interim import ScoredTokens
from evomerge.engine.protocol import Prompt, Requests, Responses, run_through
from evomerge.engine.transformers_engine import TransformersEngine
from evomerge.engine.tree import TreeLoglikelihoods

DYNAMIC = {
    "max_position_embeddings": 100,
    "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
}


def requests() -> Requests:
    """Few-shot questions with options, and prompts behind the same examples."""
    rng = random.Random(0)

    def draw(count: int) -> list[int]:
        return [rng.randrange(4, 40) for _ in range(count)]

    pairs, prompts = [], []
    for _ in range(2):
        examples = draw(60)
        questions = [examples + draw(rng.randint(5, 15)) for _ in range(8)]
        pairs += [(question, draw(rng.randint(1, 5))) for question in questions for _ in range(2)]
        prompts += [Prompt(tokens=tuple(question), limit=2, stops=()) for question in questions]
    return Requests([*pairs, ([7, 8], [9])], prompts)


def engine(**settings: Any) -> TransformersEngine:
    return TransformersEngine(make_model(0, **settings), reader(), max_length=120, batch_size=2)


def prepared(engine: TransformersEngine) -> Any:
    asked = requests()
    return engine.prepare(asked, asked.lengths(120))


def nothing() -> None:
    """The model keeps nothing between passes."""


def answers(responses: Responses) -> Any:
    return list(responses.loglikelihoods), list(responses.texts), responses.tokens


@pytest.mark.parametrize("settings", [{}, DYNAMIC], ids=["over a tree", "one by one"])
def test_a_run_that_stops_after_any_pass_is_continued_to_the_same_bits(settings: dict[str, Any]) -> None:
    first, second = engine(**settings), engine(**settings)
    asked = prepared(first)
    whole = answers(first.run(asked))
    kept = [moment.answers() for moment in first.run_by_passes(asked)]
    assert len(kept) == asked.passes > 8
    again = prepared(second)
    for finished in (1, 2, len(kept) // 2, len(kept) - 1, len(kept)):
        moments, responses = steps_made(second.run_by_passes(again, kept[finished - 1]))
        assert answers(responses) == whole
        assert [moment.passes for moment in moments] == list(range(finished + 1, len(kept) + 1))
        assert {moment.of for moment in moments} <= {len(kept)}


def test_only_the_stems_that_are_still_needed_are_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rng = make_model(0), random.Random(0)
    groups = [[rng.randrange(4, 40) for _ in range(40)] for _ in range(3)]
    pairs = [(group + [rng.randrange(4, 40) for _ in range(15)], [5]) for group in groups for _ in range(20)]
    asked = TreeLoglikelihoods(pairs, 120, budget=200, hidden=1, device=torch.device("cpu"), pass_cost=10)
    whole = asked.run(model, nothing)
    stems = {at for at, each in enumerate(asked._passes) if each.keeps is not None}
    assert len(stems) > 2
    forward, passes = tree._forward, []
    monkeypatch.setattr(
        tree, "_forward", lambda model, batch, stem: passes.append(batch) or forward(model, batch, stem)
    )
    again = []
    for finished in range(1, len(asked.passes)):
        scored = ScoredTokens()
        for _ in zip(range(finished), asked.by_passes(model, nothing, scored), strict=False):
            pass
        passes.clear()
        assert run_through(asked.by_passes(model, nothing, scored)) == whole
        again.append(len(passes) - (len(asked.passes) - finished))
    assert 0 in again
    assert 0 < max(again) < len(stems)


@pytest.mark.parametrize("content", [b"", b"nothing of ours", "other requests"])
def test_answers_of_anything_else_are_not_used(content: bytes | str) -> None:
    both = engine()
    asked = prepared(both)
    if isinstance(content, str):
        few = Requests(requests().pairs[:5], requests().prompts[:2])
        *_, last = both.run_by_passes(both.prepare(few, few.lengths(120)))
        content = last.answers()
    assert len(list(both.run_by_passes(asked, content))) == asked.passes

"""A block of items answered in steps: forward passes of the engine, then the texts that it has left to lm-eval."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Any

from evomerge.engine.protocol import ContinuableEngine, Engine, Responses
from evomerge.evaluation.evaluator import ScoringStep
from evomerge.evaluation.lm_eval.encoding import EncodedInstances
from evomerge.evaluation.lm_eval.model import PreparedLM

Answers = Callable[[], bytes | None]  # those of the engine's finished passes; None where it continues no run


def answer_in_steps(
    lm: PreparedLM, engine: Engine[Any], encoded: EncodedInstances, prepared: Any, state: bytes | None
) -> Generator[ScoringStep, None, int]:
    """Give the instances of a block their responses.

    Args:
        encoded: the requests, which `prepared` has as the engine has arranged them.
        state: of an attempt before, see `ContinuableEvaluator`.

    Returns:
        Tokens that were forwarded, those of the attempts before included.

    Raises:
        MergeError: the model's logits are not numbers.
    """
    known, texts, tokens = _read(state)
    answers: Answers = partial(bytes, known) if known else lambda: None
    responses: Responses
    passes = 0
    if isinstance(engine, ContinuableEngine):
        run = engine.run_by_passes(prepared, known)
        while True:
            try:
                moment = next(run)
            except StopIteration as end:
                responses = end.value
                break
            passes, answers = moment.of, moment.answers
            yield ScoringStep(step=moment.passes, steps=passes, state=partial(_written, answers, texts, tokens))
    else:
        responses = engine.run(prepared)
    lm.processed = tokens
    for part, parts in encoded.answer_in_parts(lm, responses, texts):
        state_now = partial(_written, answers, texts, lm.processed)
        yield ScoringStep(step=passes + part, steps=passes + parts, state=state_now)
    return responses.tokens + lm.processed


def _written(answers: Answers, texts: Sequence[str], tokens: int) -> bytes:
    """A line of JSON, and the engine's answers behind it.

    Args:
        texts: those that lm-eval has written.
        tokens: those that it read and wrote for them.
    """
    return json.dumps({"texts": texts, "tokens": tokens}).encode() + b"\n" + (answers() or b"")


def _read(state: bytes | None) -> tuple[bytes | None, list[str], int]:
    """The inverse of `_written`, with the engine's answers first; nothing where it did not write this."""
    head, _, answers = (state or b"").partition(b"\n")
    try:
        known = json.loads(head)
        return answers or None, list(known["texts"]), int(known["tokens"])
    except (ValueError, KeyError, TypeError):
        return None, [], 0

"""Requests as every engine takes them, and the protocol of what scores them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from evomerge.engine.prefix_tree import Tokens
from evomerge.errors import InvalidInput

Pair = tuple[list[int], list[int]]  # token ids of a context and of the continuation that is scored
Scored = tuple[int, list[int]]  # a request, and the tokens to be scored at the end of its input


class Loglikelihoods(Protocol):
    """Requests for log-likelihoods, prepared once; `run` scores them with whatever weights the model holds then.

    Attributes:
        tokens: tokens that `run` forwards, padding among them.
        distinct: tokens of the prefix tree of all requests: the fewest that any way of computing them can forward.
    """

    tokens: int
    distinct: int

    def run(self, model: Any, reset: Callable[[], None]) -> list[tuple[float, bool]]:
        """For each request the log-likelihood of its continuation, and whether it is what greedy decoding gives.

        Args:
            reset: called before each forward pass; puts back what the model keeps between passes.

        Raises:
            MergeError: the model's logits are not numbers.
        """
        ...


def distinct_inputs(pairs: Sequence[Pair], max_length: int) -> dict[Tokens, list[Scored]]:
    """Input sequence -> the requests that it answers: continuations that differ in their last token share one.

    Raises:
        InvalidInput: see `check_pair`.
    """
    inputs: dict[Tokens, list[Scored]] = {}
    for request, (context, continuation) in enumerate(pairs):
        check_pair((context, continuation), max_length)
        row = tuple([*context, *continuation][-(max_length + 1) :][:-1])
        inputs.setdefault(row, []).append((request, continuation))
    return inputs


def check_pair(pair: Pair, max_length: int) -> None:
    """Check a request before it is run.

    Raises:
        InvalidInput: it has nothing to score or no context, or more to score than `max_length` tokens.
    """
    context, continuation = pair
    if not context or not continuation or len(continuation) > max_length:
        raise InvalidInput(
            f"a request has {len(context)} tokens of context and {len(continuation)} to score; both must be there, "
            f"and at most {max_length} can be scored: shorten the item, or raise max_length of the evaluator"
        )

"""An engine that needs no model: answers come from a table, or from a function of weights and request.

It stands in for a real engine where everything around one is tested: an evaluator, or the use that is made of answers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from evomerge.engine.protocol import (
    Engine,
    Lengths,
    Loglikelihood,
    Pair,
    Prompt,
    Requests,
    Responses,
    Unwritten,
    check_pair,
    not_a_number,
)
from evomerge.errors import InvalidInput
from evomerge.prefix_tree import Tokens

if TYPE_CHECKING:
    import torch

Weights = Mapping[str, "torch.Tensor"]
Score = Callable[[Weights, Pair], Loglikelihood]
Write = Callable[[Weights, Prompt], str]


class ScriptedEngine:
    """Answers requests from a script. See `Engine`.

    Prompts that are not plain are left to the evaluator. Tokens are counted as if every request were run by itself.

    Args:
        score: log-likelihood of a pair under the loaded weights.
        write: text of a prompt under the loaded weights, cut at its stop strings.
        max_length: tokens that may be scored at once.

    Example::

        engine = ScriptedEngine(scores_from({((3,), (5,)): (-1.25, False)}), texts_from({}))
        prepared = engine.prepare(Requests(pairs=[([3], [5])]), lengths)
        engine.run(prepared).loglikelihoods  # [(-1.25, False)]
    """

    def __init__(self, score: Score, write: Write, *, max_length: int = 2048) -> None:
        self._score = score
        self._write = write
        self._max_length = max_length
        self._weights: dict[str, torch.Tensor] = {}

    def load(self, weights: Weights) -> None:
        """See `Engine.load`. The script says which tensors it looks at; none is refused."""
        self._weights.update(weights)

    def prepare(self, requests: Requests, lengths: Lengths) -> Requests:
        """See `Engine.prepare`. There is nothing to arrange: the requests are only checked."""
        for pair in requests.pairs:
            check_pair(pair, self._max_length)
        return requests

    def run(self, prepared: Requests) -> Responses:
        """See `Engine.run`.

        Raises:
            InvalidInput: a table of the script has no answer to a request.
        """
        weights = self._weights
        loglikelihoods = [self._score(weights, pair) for pair in prepared.pairs]
        if any(math.isnan(value) for value, _ in loglikelihoods):
            raise not_a_number()
        texts = [self._write(weights, prompt) if prompt.plain else Unwritten() for prompt in prepared.prompts]
        read = sum(len(context) + len(rest) - 1 for context, rest in prepared.pairs)
        return Responses(loglikelihoods, texts, read + sum(len(prompt.tokens) for prompt in prepared.prompts))


def scores_from(table: Mapping[tuple[Tokens, Tokens], Loglikelihood]) -> Score:
    """A script's answers from a table by (context, continuation), the same with any weights."""

    def score(_: Weights, pair: Pair) -> Loglikelihood:
        key = (tuple(pair[0]), tuple(pair[1]))
        if key not in table:
            raise InvalidInput(f"the script has no log-likelihood for the tokens {key}; add a row to its table")
        return table[key]

    return score


def texts_from(table: Mapping[Tokens, str]) -> Write:
    """A script's texts from a table by the tokens of the prompt, the same with any weights."""

    def write(_: Weights, prompt: Prompt) -> str:
        if prompt.tokens not in table:
            raise InvalidInput(f"the script has no text for the prompt {prompt.tokens}; add a row to its table")
        return table[prompt.tokens]

    return write


def _proof(engine: ScriptedEngine) -> Engine[Requests]:
    return engine

"""Log-probabilities and ranks of tokens, as vLLM's offline engine gives them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vllm import SamplingParams

from evomerge.engine.protocol import not_a_number
from evomerge.prefix_tree import Tokens

CHUNK = 2**17  # prompt tokens of one call: each is a few Python objects until its row is summed up


@dataclass(frozen=True, kw_only=True)
class RowScores:
    """A row of tokens under a model.

    Attributes:
        values: log-probability of each token but the first, given those before it, in nats.
        greedy: whether greedy decoding would write it.
    """

    values: tuple[float, ...]
    greedy: tuple[bool, ...]


def score_rows(llm: Any, rows: Sequence[Tokens]) -> list[RowScores]:
    """Log-probabilities of all tokens of each row.

    vLLM reads a prompt whose log-probabilities are asked for without its prefix cache.

    Raises:
        MergeError: one is not a number.
    """
    asked = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=1, detokenize=False)
    found: list[RowScores] = []
    for chunk in _chunks(rows):
        outputs = llm.generate([as_prompt(row) for row in chunk], asked, use_tqdm=False)
        found += [_scores(row, output.prompt_logprobs) for row, output in zip(chunk, outputs, strict=True)]
    return found


def as_prompt(tokens: Sequence[int]) -> dict[str, list[int]]:
    """Token ids in vLLM's form of a prompt."""
    return {"prompt_token_ids": list(tokens)}


def number_of(logprobs: Mapping[int, Any], token: int) -> float:
    """The log-probability of a token at one position.

    Raises:
        MergeError: it is not a number.
    """
    value = float(logprobs[token].logprob)
    if math.isnan(value):
        raise not_a_number()
    return value


def _scores(row: Tokens, positions: Sequence[Mapping[int, Any] | None]) -> RowScores:
    """The scores of a row; the first position has none. Of the two tokens there, rank 1 has the most likely one."""
    values, greedy = [], []
    for token, logprobs in zip(row[1:], positions[1:], strict=True):
        if logprobs is None:
            raise ValueError("vLLM gave no log-probability for a token of a prompt")
        values.append(number_of(logprobs, token))
        greedy.append(logprobs[token].rank == 1)
    return RowScores(values=tuple(values), greedy=tuple(greedy))


def _chunks(rows: Sequence[Tokens]) -> Iterator[list[Tokens]]:
    chunk: list[Tokens] = []
    size = 0
    for row in rows:
        if chunk and size + len(row) > CHUNK:
            yield chunk
            chunk, size = [], 0
        chunk.append(row)
        size += len(row)
    if chunk:
        yield chunk

"""The scoring engine: log-likelihoods of prepared token sequences, one forward pass per batch and nothing else.

The numbers are those of lm-eval's `loglikelihood` with `softmax_dtype=float32`; the grouping, sorting, padding and
indexing that it repeats for every call is done once here, when a block of items is prepared.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch

from evomerge.errors import InvalidInput, MergeError

Pair = tuple[list[int], list[int]]  # token ids of a context and of the continuation that is scored

GPU_BATCH = 1024  # sequences in a batch, at most
CELL_BUDGET = 2**27  # logits that are normalised at once: 512 MiB in fp32


@dataclass(frozen=True)
class _Batch:
    """Right-padded sequences, and where in them the scored tokens are.

    Attributes:
        tokens: [sequences, length].
        positions: the positions, of any sequence, whose logits are wanted at all.
        cells: [2, cells]: sequence, and index into `positions`, of each distinct place that is scored.
        scored: [2, tokens]: cell and target id of every scored token, requests one after another.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    cells: torch.Tensor
    scored: torch.Tensor


class Loglikelihoods:
    """Requests for log-likelihoods, prepared once; `run` scores them with whatever weights the model holds then."""

    def __init__(self, pairs: Sequence[Pair], max_length: int, batch_size: int, device: torch.device) -> None:
        self._count = len(pairs)
        self._order: list[tuple[int, int]] = []  # request and its number of scored tokens, in the order of the batches
        rows = _rows(pairs, max_length)
        # Longest first, so that memory runs out at once or never, and sequences of like length are padded together.
        longest_first = iter(sorted(rows.items(), key=lambda row: (-len(row[0]), row[0])))
        self._batches = [
            self._prepare(batch, device) for batch in iter(lambda: list(islice(longest_first, batch_size)), [])
        ]
        self.tokens = sum(len(row) for row in rows)
        self.longest = max((len(row) for row in rows), default=0)

    def run(self, model: Any) -> list[tuple[float, bool]]:
        """For each request the log-likelihood of its continuation, and whether it is what greedy decoding gives.

        Raises:
            MergeError: the model's logits are not numbers.
        """
        picked, greedy = [], []
        for batch in self._batches:
            log_probabilities, likeliest = _score_batch(model, batch)
            picked.append(log_probabilities)
            greedy.append(likeliest)
        if not picked:
            return []
        values, hits = torch.cat(picked).tolist(), torch.cat(greedy).tolist()
        if any(map(math.isnan, values)):
            raise not_a_number()
        results: list[tuple[float, bool]] = [(0.0, True)] * self._count
        start = 0
        for request, length in self._order:
            stop = start + length
            results[request] = (math.fsum(values[start:stop]), all(hits[start:stop]))
            start = stop
        return results

    def _prepare(self, rows: Sequence[tuple[tuple[int, ...], list[tuple[int, list[int]]]]], device: Any) -> _Batch:
        width = len(rows[0][0])
        cells: dict[tuple[int, int], int] = {}
        scored: list[tuple[int, int]] = []
        for row, (tokens, requests) in enumerate(rows):
            for request, continuation in requests:
                self._order.append((request, len(continuation)))
                for position, target in enumerate(continuation, start=len(tokens) - len(continuation)):
                    scored.append((cells.setdefault((row, position), len(cells)), target))
        positions = sorted({position for _, position in cells})
        index = {position: at for at, position in enumerate(positions)}
        padded = [[*tokens, *[0] * (width - len(tokens))] for tokens, _ in rows]
        return _Batch(
            torch.tensor(padded, device=device),
            torch.tensor(positions, device=device),
            torch.tensor([(row, index[position]) for row, position in cells], device=device).T.contiguous(),
            torch.tensor(scored, device=device).T.contiguous(),
        )


def not_a_number() -> MergeError:
    """The error for a candidate that computes nothing."""
    return MergeError("the logits of the candidate are not numbers (NaN): its weights overflow or are not finite")


def forward(model: Any, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Logits [sequences, positions, vocabulary] at the wanted positions only, where the model can do that."""
    accepted = inspect.signature(model.forward).parameters
    options: dict[str, Any] = {"use_cache": False} if "use_cache" in accepted else {}
    with torch.no_grad():
        if "logits_to_keep" in accepted:
            logits: torch.Tensor = model(tokens, logits_to_keep=positions, **options).logits
            return logits
        logits = model(tokens, **options).logits
        return logits[:, positions]


def _score_batch(model: Any, batch: _Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of each scored token, and whether it was the likeliest one."""
    logits = forward(model, batch.tokens, batch.positions)
    normalisers, likeliest = [], []
    step = max(1, CELL_BUDGET // logits.shape[-1])
    for cells in torch.split(batch.cells, step, dim=1):
        table = logits[cells[0], cells[1]].float()
        normalisers.append(table.logsumexp(-1))
        likeliest.append(table.argmax(-1))
    cell, target = batch.scored
    normaliser = torch.cat(normalisers)[cell]
    sequence, position = batch.cells[:, cell]
    values = logits[sequence, position, target].float() - normaliser
    # An infinite logit would turn all others into an ordinary -inf.
    values = values.where(normaliser.isfinite(), torch.nan)
    return values, torch.cat(likeliest)[cell] == target


def _rows(pairs: Sequence[Pair], max_length: int) -> dict[tuple[int, ...], list[tuple[int, list[int]]]]:
    """Input sequence -> the requests that it answers: continuations that differ in their last token share one."""
    rows: dict[tuple[int, ...], list[tuple[int, list[int]]]] = {}
    for request, (context, continuation) in enumerate(pairs):
        if not context or not continuation or len(continuation) > max_length:
            raise InvalidInput(
                f"a request has {len(context)} tokens of context and {len(continuation)} to score; both must be there, "
                f"and at most {max_length} can be scored: shorten the item, or raise max_length of the evaluator"
            )
        row = tuple([*context, *continuation][-(max_length + 1) :][:-1])
        rows.setdefault(row, []).append((request, continuation))
    return rows


def largest_batch(model: Any, length: int) -> int:
    """On a GPU: one step, of powers of two, below the largest batch of this length that fits into its memory.

    Raises:
        InvalidInput: not even one sequence fits.
    """
    fits = 0
    try:
        for exponent in range(GPU_BATCH.bit_length()):
            tokens = torch.zeros((2**exponent, length), dtype=torch.long, device=model.device)
            forward(model, tokens, torch.arange(length, device=model.device)).float().logsumexp(-1)
            fits = 2**exponent
    except torch.cuda.OutOfMemoryError:
        pass
    torch.cuda.empty_cache()
    if not fits:
        raise InvalidInput(f"a single request of {length} tokens does not fit on {model.device}; set max_length lower")
    return max(1, fits // 2)

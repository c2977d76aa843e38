"""Log-likelihoods of prepared token sequences, one forward pass per batch and nothing else.

The numbers are those of lm-eval's `loglikelihood` with `softmax_dtype=float32`; the grouping, sorting, padding and
indexing that it repeats for every call is done once here, when a block of items is prepared. This is the plain way,
which every causal model can go; `tree` is the fast one.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch

from evomerge.engine.interim import ScoredTokens
from evomerge.engine.protocol import Loglikelihood, Pair, ScoredSuffix, distinct_inputs, not_a_number, run_through
from evomerge.errors import InvalidInput
from evomerge.prefix_tree import Tokens, distinct_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GPU_BATCH = 1024  # sequences in a batch, at most
CELL_BUDGET = 2**27  # logits that are normalised at once: 512 MiB in fp32


class Answers:
    """Gathers the scored tokens of requests, batch by batch, and adds them up.

    Args:
        requests: how many requests there are.
        order: request and a number of its scored tokens, in the order in which the batches score them. The tokens of a
            request may come in several parts.
        scored: tokens that have been scored already; further ones are added to it.
    """

    def __init__(self, requests: int, order: Sequence[tuple[int, int]], scored: ScoredTokens) -> None:
        self._requests = requests
        self._order = order
        self._scored = scored

    def add(self, logits: torch.Tensor, scored: torch.Tensor) -> None:
        """Take the logits [places, vocabulary] of a batch, and the place and target [2, tokens] of its scored tokens.

        Log-probability of each scored token, and whether it was the likeliest one. There may be none.
        """
        self._scored.passes += 1
        if not scored.numel():
            return
        normalisers, likeliest = [], []
        for table in torch.split(logits, max(1, CELL_BUDGET // logits.shape[-1])):
            precise = table.float()
            normalisers.append(precise.logsumexp(-1))
            likeliest.append(precise.argmax(-1))
        place, target = scored
        normaliser = torch.cat(normalisers)[place]
        values = logits[place, target].float() - normaliser
        # An infinite logit would turn all others into an ordinary -inf.
        self._scored.values.append(values.where(normaliser.isfinite(), torch.nan))
        self._scored.hits.append(torch.cat(likeliest)[place] == target)

    def results(self) -> list[Loglikelihood]:
        """See `Loglikelihoods.run`."""
        if not self._scored.values:
            return [(0.0, True)] * self._requests
        values, hits = torch.cat(self._scored.values).tolist(), torch.cat(self._scored.hits).tolist()
        if any(map(math.isnan, values)):
            raise not_a_number()
        found: list[list[Loglikelihood]] = [[] for _ in range(self._requests)]
        start = 0
        for request, length in self._order:
            stop = start + length
            found[request] += zip(values[start:stop], hits[start:stop], strict=True)
            start = stop
        return [(math.fsum(value for value, _ in each), all(hit for _, hit in each)) for each in found]


@dataclass(frozen=True, kw_only=True)
class _FlatPass:
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


class FlatLoglikelihoods:
    """Every distinct input is a sequence of its own, in batches of `batch_size`. See `Loglikelihoods`.

    Args:
        padding: whether sequences of different lengths may share a batch.

    Raises:
        InvalidInput: see `distinct_inputs`.
    """

    def __init__(
        self, pairs: Sequence[Pair], max_length: int, batch_size: int, device: torch.device, *, padding: bool = True
    ) -> None:
        self._count = len(pairs)
        self._order: list[tuple[int, int]] = []  # request and its number of scored tokens, in the order of the batches
        inputs = distinct_inputs(pairs, max_length)
        # Longest first, so that memory runs out at once or never, and sequences of like length are padded together.
        longest_first = sorted(inputs.items(), key=lambda row: (-len(row[0]), row[0]))
        groups = [longest_first] if padding else [list(rows) for _, rows in groupby(longest_first, _input_length)]
        self._batches = [
            self._prepare(rows[start : start + batch_size], device)
            for rows in groups
            for start in range(0, len(rows), batch_size)
        ]
        self.tokens = sum(batch.tokens.numel() for batch in self._batches)
        self.distinct = distinct_tokens(inputs)

    @property
    def passes(self) -> Sequence[int]:
        return [batch.scored.shape[1] for batch in self._batches]

    def run(self, model: PreTrainedModel, reset: Callable[[], None]) -> list[Loglikelihood]:
        return run_through(self.by_passes(model, reset, ScoredTokens()))

    def by_passes(
        self, model: PreTrainedModel, reset: Callable[[], None], scored: ScoredTokens
    ) -> Generator[None, None, list[Loglikelihood]]:
        answers = Answers(self._count, self._order, scored)
        for batch in self._batches[scored.passes :]:
            reset()
            logits = forward(model, batch.tokens, batch.positions)
            answers.add(logits[batch.cells[0], batch.cells[1]], batch.scored)
            yield
        return answers.results()

    def _prepare(self, rows: Sequence[tuple[Tokens, list[ScoredSuffix]]], device: torch.device) -> _FlatPass:
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
        return _FlatPass(
            tokens=torch.tensor(padded, device=device),
            positions=torch.tensor(positions, device=device),
            cells=torch.tensor([(row, index[position]) for row, position in cells], device=device).T.contiguous(),
            scored=torch.tensor(scored, device=device).T.contiguous(),
        )


def _input_length(row: tuple[Tokens, list[ScoredSuffix]]) -> int:
    return len(row[0])


def forward(model: PreTrainedModel, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Logits [sequences, positions, vocabulary] at the wanted positions only, where the model can do that."""
    accepted = inspect.signature(model.forward).parameters
    options: dict[str, Any] = {"use_cache": False} if "use_cache" in accepted else {}
    with torch.no_grad():
        if "logits_to_keep" in accepted:
            logits: torch.Tensor = model(tokens, logits_to_keep=positions, **options).logits
            return logits
        logits = model(tokens, **options).logits
        return logits[:, positions]


def _read_with_cache(model: PreTrainedModel, tokens: torch.Tensor) -> None:
    """Read sequences as prompts are read, whose keys and values are held for all layers at once."""
    accepted = inspect.signature(model.forward).parameters
    options = {"use_cache": True, "logits_to_keep": 1}
    with torch.no_grad():
        model(tokens, **{name: value for name, value in options.items() if name in accepted})


def largest_batch(model: PreTrainedModel, length: int, *, writes: bool) -> int:
    """On a GPU: one step, of powers of two, below the largest batch of this length that fits into its memory.

    Args:
        length: of each sequence, in tokens.
        writes: texts are written as well, with a cache of keys and values for all tokens of a batch.

    Raises:
        InvalidInput: not even one sequence fits.
    """
    fits = 0
    try:
        for exponent in range(GPU_BATCH.bit_length()):
            tokens = torch.zeros((2**exponent, length), dtype=torch.long, device=model.device)
            forward(model, tokens, torch.arange(length, device=model.device)).float().logsumexp(-1)
            if writes:
                _read_with_cache(model, tokens)
            fits = 2**exponent
    except torch.cuda.OutOfMemoryError:
        pass
    torch.cuda.empty_cache()
    if not fits:
        raise InvalidInput(f"a single request of {length} tokens does not fit on {model.device}; set max_length lower")
    return max(1, fits // 2)

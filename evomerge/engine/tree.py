"""Log-likelihoods over a prefix tree: every token that requests share is computed once.

The sequences that `prefix_tree` lays out flat are told apart by position ids and a tree-shaped attention mask (the
"tree attention" of SpecInfer, arXiv 2305.09781, section 4.2); stems leave their keys and values to what goes on from
them. Nothing of that outlives a run, so no candidate sees another's. Only the places that are scored go on to the
vocabulary. `tree_support` decides which models can do this.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer

from evomerge.engine.flat import Answers
from evomerge.engine.interim import ScoredTokens
from evomerge.engine.protocol import Loglikelihood, Pair, ScoredSuffix, distinct_inputs, run_through
from evomerge.prefix_tree import (
    PASS_COST,
    PrefixTree,
    Tokens,
    TreePass,
    arrange,
    distinct_tokens,
    schedule,
    stems_behind,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

KeysValues = list[tuple[torch.Tensor, torch.Tensor]]  # of every layer, each [rows, heads, length, size]
Target = tuple[int, list[tuple[int, int]]]  # a request, and the nodes of a row that are scored with their target ids
CPU_TOKENS = 1024  # in a pass on a CPU: more fall out of its caches


@dataclass(frozen=True, kw_only=True)
class _Pass:
    """One forward pass: rows that go on from one stem, or a stem.

    Attributes:
        stem: what the rows go on from.
        keeps: the stem that this pass computes, None for rows.
        tokens: [rows, width], right-padded.
        positions: [rows, width], the place of each token in its sequence.
        ends: [rows, width], where the descendants of each token end.
        wanted: [places], indices into the flattened tokens: where logits are wanted.
        scored: [2, tokens], place and target id of every scored token, requests one after another.
    """

    stem: int | None
    keeps: int | None
    tokens: torch.Tensor
    positions: torch.Tensor
    ends: torch.Tensor
    wanted: torch.Tensor
    scored: torch.Tensor


class TreeLoglikelihoods:
    """Requests that share stems and rows. See `Loglikelihoods`.

    Args:
        pairs: the requests.
        max_length: tokens that the model can hold.
        budget: tokens in a batch of rows, those of the stem counted for every row.
        hidden: width of the model.
        device: where the model is.
        pass_cost: see `prefix_tree.arrange`.

    Raises:
        InvalidInput: see `distinct_inputs`.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        max_length: int,
        *,
        budget: int,
        hidden: int,
        device: torch.device,
        pass_cost: int = PASS_COST,
    ) -> None:
        inputs = sorted(distinct_inputs(pairs, max_length).items())
        tree = arrange([tokens for tokens, _ in inputs], hidden, pass_cost=pass_cost)
        targets = _targets(tree, inputs)
        self._count = len(pairs)
        self._order: list[tuple[int, int]] = []  # request and a number of its scored tokens, as the passes score them
        steps = schedule(tree, budget, most=CPU_TOKENS if device.type == "cpu" else None, pass_cost=pass_cost)
        self._passes = [self._prepare(step, tree, targets, device) for step in steps]
        self._last_use = {each.stem: at for at, each in enumerate(self._passes)}
        self.tokens = sum(each.tokens.numel() for each in self._passes)
        self.distinct = distinct_tokens(tokens for tokens, _ in inputs)

    @property
    def passes(self) -> Sequence[int]:
        return [each.scored.shape[1] for each in self._passes]

    def run(self, model: PreTrainedModel, reset: Callable[[], None]) -> list[Loglikelihood]:
        return run_through(self.by_passes(model, reset, ScoredTokens()))

    def by_passes(
        self, model: PreTrainedModel, reset: Callable[[], None], scored: ScoredTokens
    ) -> Generator[None, None, list[Loglikelihood]]:
        answers = Answers(self._count, self._order, scored)
        stems: dict[int, KeysValues] = {}
        finished = scored.passes
        again = stems_behind(self._passes, finished)
        for at, each in enumerate(self._passes):
            if at < finished and at not in again:
                continue
            reset()
            logits, computed = _forward(model, each, [] if each.stem is None else stems[each.stem])
            if each.keeps is not None:
                stems[each.keeps] = computed
            if each.stem is not None and self._last_use[each.stem] == at:
                del stems[each.stem]
            if at >= finished:
                answers.add(logits, each.scored)
                yield
        return answers.results()

    def _prepare(
        self, step: TreePass, tree: PrefixTree, targets: dict[int, list[Target]], device: torch.device
    ) -> _Pass:
        rows = [tree.rows[index] for index in step.rows]
        width = max(len(row.tokens) for row in rows)
        places: dict[int, int] = {}
        scored: list[tuple[int, int]] = []
        for row, index in enumerate(step.rows):
            for request, nodes in targets.get(index, []):
                self._order.append((request, len(nodes)))
                scored += [(places.setdefault(row * width + node, len(places)), target) for node, target in nodes]

        def tensor(values: Any) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.long, device=device)

        return _Pass(
            stem=step.stem,
            keeps=step.keeps,
            tokens=tensor([_padded(row.tokens, width) for row in rows]),
            positions=tensor([_padded(row.positions, width) for row in rows]),
            # Padding sees itself alone.
            ends=tensor([[*row.ends, *range(len(row.ends) + 1, width + 1)] for row in rows]),
            wanted=tensor(list(places)),
            scored=tensor(scored).reshape(-1, 2).T.contiguous(),
        )


def _targets(tree: PrefixTree, inputs: Sequence[tuple[Tokens, list[ScoredSuffix]]]) -> dict[int, list[Target]]:
    """For every row what is scored there. A request whose tokens are in several rows has a part in each."""
    targets: dict[int, list[Target]] = {}
    for sequence, (tokens, requests) in enumerate(inputs):
        for request, continuation in requests:
            parts: dict[int, list[tuple[int, int]]] = {}
            for position, target in enumerate(continuation, start=len(tokens) - len(continuation)):
                row, node = tree.place(sequence, position)
                parts.setdefault(row, []).append((node, target))
            for row, part in parts.items():
                targets.setdefault(row, []).append((request, part))
    return targets


def _padded(values: list[int], width: int) -> list[int]:
    return [*values, *[0] * (width - len(values))]


def _forward(model: PreTrainedModel, batch: _Pass, stem: KeysValues) -> tuple[torch.Tensor, KeysValues]:
    """Logits [places, vocabulary] where they are wanted, and the keys and values if the pass is to keep them."""
    layers = [_StemLayer(keys, values, batch.tokens.shape[0], batch.keeps is not None) for keys, values in stem]
    cache = Cache(layers=layers) if stem else DynamicCache() if batch.keeps is not None else None
    behind = stem[0][0].shape[-2] if stem else 0
    with torch.no_grad(), only_at(model, batch.wanted):
        logits = model(
            batch.tokens,
            attention_mask=tree_mask(batch.ends, behind, model.dtype),
            position_ids=batch.positions,
            past_key_values=cache,
            use_cache=cache is not None,
        ).logits
    kept = [] if cache is None or batch.keeps is None else [(each.keys, each.values) for each in cache.layers]
    return logits[0], kept


class _StemLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of a stem for a number of rows; those of the rows themselves are held only if they are kept."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, rows: int, keeps: bool) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = (each.expand(rows, -1, -1, -1) for each in (keys, values))
        self._keeps = keeps

    def update(self, key_states: Any, value_states: Any, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
        keys = torch.cat([self.keys, key_states], dim=-2)
        values = torch.cat([self.values, value_states], dim=-2)
        if self._keeps:
            self.keys, self.values = keys, values
        return keys, values


def tree_mask(ends: torch.Tensor, behind: int, dtype: torch.dtype) -> torch.Tensor:
    """Terms added to the attention scores: 0 for the stem, a node's ancestors and the node itself.

    Args:
        ends: [rows, width], where the descendants of each token end.
        behind: length of the stem.
        dtype: the model's.

    Returns:
        [rows, 1, width, behind + width], the lowest number where a token must not look.
    """
    rows, width = ends.shape
    node = torch.arange(width, device=ends.device)
    hidden = (node[None, :] > node[:, None]) | (node[:, None] >= ends[:, None, :])
    mask = torch.zeros(rows, width, behind + width, dtype=dtype, device=ends.device)
    mask[:, :, behind:].masked_fill_(hidden, torch.finfo(dtype).min)
    return mask[:, None]


@contextmanager
def only_at(model: PreTrainedModel, wanted: torch.Tensor) -> Iterator[None]:
    """Within it the model computes logits [1, places, vocabulary] at some places only.

    Args:
        model: a causal model.
        wanted: [places], indices into its flattened [rows, width] tokens.
    """

    def pick(_: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        states, *others = inputs
        return (states.flatten(0, 1)[wanted][None], *others)

    handle = model.get_output_embeddings().register_forward_pre_hook(pick)
    try:
        yield
    finally:
        handle.remove()

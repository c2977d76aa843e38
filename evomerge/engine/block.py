"""A block of items, prepared to be run on one live model: its requests as tokens, and where the responses belong."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from evomerge.engine.batching import Scoring, Writing
from evomerge.engine.flat import FlatLoglikelihoods
from evomerge.engine.greedy import GreedyTexts, Prompt, Reader, end_tokens
from evomerge.engine.protocol import Loglikelihoods, Pair, check_pair
from evomerge.engine.tree import TreeLoglikelihoods
from evomerge.errors import InvalidInput

SHORTEST = 128  # tokens that a sequence of a batch may have in any case: shorter ones come in larger batches

Requests = Mapping[str, Mapping[int, list[Any]]]  # task -> item -> lm-eval's instances


class Encoder(Protocol):
    """lm-eval's view of the live model: what its requests mean as tokens, and its own way of generating."""

    max_length: int
    batch_size: int
    device: torch.device
    reader: Reader

    def pairs(self, instance: Any) -> list[Pair]: ...
    def prompt(self, instance: Any) -> Prompt: ...
    def write(self, instances: list[Any], batch_size: int) -> list[str]: ...


@dataclass
class Block:
    """A block of items, ready to be run.

    Attributes:
        items: its requests.
        scored: the log-likelihoods among them.
        slots: for each of their instances the pairs that it is made of.
        texts: the texts that we write ourselves.
        written: their instances.
        left: instances of texts that are left to lm-eval.
        left_batch: how many of them it writes at once.
    """

    items: Requests
    scored: Loglikelihoods
    slots: list[tuple[Any, slice]]
    texts: GreedyTexts | None
    written: list[Any]
    left: list[Any]
    left_batch: int

    def respond(self, encoder: Encoder, model: Any, reset: Callable[[], None]) -> None:
        """Run all requests and leave the responses where lm-eval's filters look for them.

        Args:
            reset: see `Loglikelihoods.run`.

        Raises:
            MergeError: the model's logits are not numbers.
        """
        results = self.scored.run(model, reset)
        for instance, where in self.slots:
            found = results[where]
            rolling = instance.request_type == "loglikelihood_rolling"
            instance.resps = [sum(value for value, _ in found) if rolling else found[0]] * instance.repeats
        texts = self.texts.run(model, reset) if self.texts else []
        responses = dict(zip(map(id, self.written), texts, strict=True))
        # What lm-eval lets depend on the other texts of a batch is what it gives in a batch of one.
        odd = [instance for instance in self.written if responses[id(instance)] is None]
        for instances, batch_size in ((odd, 1), (self.left, self.left_batch)):
            responses.update(zip(map(id, instances), encoder.write(instances, batch_size), strict=True))
        for instance in (*self.written, *self.left):
            instance.resps = [responses[id(instance)]] * instance.repeats

    @property
    def tokens(self) -> int:
        """Tokens that the last run forwarded, padding among them, but for those of texts that were left to lm-eval."""
        return self.scored.tokens + (self.texts.tokens if self.texts else 0)


def prepare_block(encoder: Encoder, wanted: Requests, model: Any, scoring: Scoring, writing: Writing) -> Block:
    """Encode and arrange the requests of a block.

    Args:
        encoder: lm-eval's view of the model.
        wanted: the requests.
        model: the live model; its weights do not matter.
        scoring, writing: how log-likelihoods and texts may share forward passes.

    Raises:
        InvalidInput: see `encode`.
    """
    requests = encode(encoder, wanted)
    lengths = lengths_of(requests, encoder.max_length)
    ours = [(instance, prompt) for instance, prompt in requests.prompts if prompt.plain and writing.prefixes]
    others = [instance for instance, prompt in requests.prompts if not (prompt.plain and writing.prefixes)]
    budget = encoder.batch_size * max(lengths.longest, SHORTEST)
    return Block(
        wanted,
        _loglikelihoods(encoder, requests.pairs, model, scoring, budget),
        requests.slots,
        _texts(encoder, [prompt for _, prompt in ours], model, budget),
        [instance for instance, _ in ours],
        others,
        encoder.batch_size if writing.padding else 1,
    )


@dataclass(frozen=True)
class Encoded:
    """Requests as tokens.

    Attributes:
        pairs: what log-likelihoods are asked of.
        slots: for each of their instances the pairs that it is made of.
        prompts: the instances of texts, with their prompts.
    """

    pairs: list[Pair]
    slots: list[tuple[Any, slice]]
    prompts: list[tuple[Any, Prompt]]


@dataclass(frozen=True)
class Lengths:
    """Distinct lengths in tokens: of scored inputs, and of prompts alone and with all that may be written."""

    scored: frozenset[int]
    written: frozenset[tuple[int, int]]

    @property
    def read(self) -> frozenset[int]:
        """Lengths of the inputs that a model is first given: scored ones and prompts."""
        return self.scored | {prompt for prompt, _ in self.written}

    @property
    def shortest(self) -> int:
        return min(self.read, default=1)

    @property
    def longest(self) -> int:
        return max([*self.scored, *(text for _, text in self.written)], default=1)


def encode(encoder: Encoder, wanted: Requests) -> Encoded:
    """Requests as lm-eval encodes them.

    Raises:
        InvalidInput: one cannot be run; names its task and item.
    """
    encoded = Encoded([], [], [])
    for task, by_item in wanted.items():
        for item, instances in by_item.items():
            try:
                for instance in instances:
                    _add(encoder, encoded, instance)
            except InvalidInput as error:
                raise InvalidInput(f"task {task!r}, item {item}: {error}") from error
    return encoded


def _add(encoder: Encoder, encoded: Encoded, instance: Any) -> None:
    if instance.request_type == "generate_until":
        encoded.prompts.append((instance, encoder.prompt(instance)))
        return
    pairs = encoder.pairs(instance)
    for pair in pairs:
        check_pair(pair, encoder.max_length)
    start = len(encoded.pairs)
    encoded.pairs.extend(pairs)
    encoded.slots.append((instance, slice(start, len(encoded.pairs))))


def lengths_of(requests: Encoded, max_length: int) -> Lengths:
    """The distinct lengths of requests for a model that holds `max_length` tokens."""
    scored = (min(len(context) + len(rest) - 1, max_length) for context, rest in requests.pairs)
    written = ((len(prompt.tokens), len(prompt.tokens) + prompt.limit) for _, prompt in requests.prompts)
    return Lengths(frozenset(scored), frozenset(written))


def _loglikelihoods(
    encoder: Encoder, pairs: Sequence[Pair], model: Any, scoring: Scoring, budget: int
) -> Loglikelihoods:
    if scoring.prefixes:
        hidden = model.config.get_text_config().hidden_size
        return TreeLoglikelihoods(pairs, encoder.max_length, budget, hidden, encoder.device)
    batch_size = encoder.batch_size if scoring.company else 1
    return FlatLoglikelihoods(pairs, encoder.max_length, batch_size, encoder.device, padding=scoring.padding)


def _texts(encoder: Encoder, prompts: Sequence[Prompt], model: Any, budget: int) -> GreedyTexts | None:
    if not prompts:
        return None
    return GreedyTexts(prompts, encoder.reader, end_tokens(model), budget, encoder.device)

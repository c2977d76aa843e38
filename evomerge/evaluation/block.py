"""A block of items, prepared to be run on one live model: its requests as tokens, and where the responses belong."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from evomerge.evaluation.engine import FlatLoglikelihoods, Loglikelihoods, Pair
from evomerge.evaluation.generation import GreedyTexts, Prompt, Reader, end_tokens
from evomerge.evaluation.tree_engine import TreeLoglikelihoods

SHORTEST = 128  # tokens that a sequence of a batch may have in any case: shorter ones come in larger batches

Requests = Mapping[str, Mapping[int, list[Any]]]  # task -> item -> lm-eval's instances


class Encoder(Protocol):
    """lm-eval's view of the live model: what its requests mean as tokens, and its own way of generating."""

    max_length: int
    batch_size: int
    device: torch.device
    reader: Reader

    def pairs(self, instance: Any) -> list[Pair]: ...
    def prompt(self, instance: Any) -> Prompt | None: ...
    def generate_until(self, instances: list[Any], disable_tqdm: bool = ...) -> list[str]: ...


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
    """

    items: Requests
    scored: Loglikelihoods
    slots: list[tuple[Any, slice]]
    texts: GreedyTexts | None
    written: list[Any]
    left: list[Any]

    def respond(self, encoder: Encoder, model: Any) -> None:
        """Run all requests and leave the responses where lm-eval's filters look for them.

        Raises:
            MergeError: the model's logits are not numbers.
        """
        results = self.scored.run(model)
        for instance, where in self.slots:
            found = results[where]
            rolling = instance.request_type == "loglikelihood_rolling"
            instance.resps = [sum(value for value, _ in found) if rolling else found[0]] * instance.repeats
        texts: Sequence[str | None] = self.texts.run(model) if self.texts else []
        if None in texts:  # texts of lm-eval that depend on their batch take its own batches
            texts = encoder.generate_until(self.written, disable_tqdm=True)
        others = encoder.generate_until(self.left, disable_tqdm=True) if self.left else []
        for instance, text in zip([*self.written, *self.left], [*texts, *others], strict=True):
            instance.resps = [text] * instance.repeats

    @property
    def tokens(self) -> int:
        """Tokens that the last run forwarded, padding among them, but for those of texts that were left to lm-eval."""
        return self.scored.tokens + (self.texts.tokens if self.texts else 0)


def all_instances(requests: Requests) -> Iterator[Any]:
    """All instances, task by task and item by item."""
    for by_item in requests.values():
        for each in by_item.values():
            yield from each


def prepare_block(encoder: Encoder, wanted: Requests, model: Any, shares: Callable[[Any, int], bool]) -> Block:
    """Encode and arrange the requests of a block.

    Args:
        encoder: lm-eval's view of the model.
        wanted: the requests.
        model: the live model; its weights do not matter.
        shares: whether the model can share prefixes among requests of up to a number of tokens.
    """
    pairs: list[Pair] = []
    slots: list[tuple[Any, slice]] = []
    generated: list[tuple[Any, Prompt | None]] = []
    for instance in all_instances(wanted):
        if instance.request_type == "generate_until":
            generated.append((instance, encoder.prompt(instance)))
        else:
            start = len(pairs)
            pairs += encoder.pairs(instance)
            slots.append((instance, slice(start, len(pairs))))
    prompts = [(instance, prompt) for instance, prompt in generated if prompt is not None]
    longest = max(
        [
            *(min(len(context) + len(rest), encoder.max_length) for context, rest in pairs),
            *(len(prompt.tokens) + prompt.limit for _, prompt in prompts),
        ],
        default=1,
    )
    if not shares(model, longest):
        scored = FlatLoglikelihoods(pairs, encoder.max_length, encoder.batch_size, encoder.device)
        return Block(wanted, scored, slots, None, [], [instance for instance, _ in generated])
    budget = encoder.batch_size * max(longest, SHORTEST)
    hidden = model.config.get_text_config().hidden_size
    return Block(
        wanted,
        TreeLoglikelihoods(pairs, encoder.max_length, budget, hidden, encoder.device),
        slots,
        _texts(encoder, [prompt for _, prompt in prompts], model, budget),
        [instance for instance, _ in prompts],
        [instance for instance, prompt in generated if prompt is None],
    )


def _texts(encoder: Encoder, prompts: Sequence[Prompt], model: Any, budget: int) -> GreedyTexts | None:
    if not prompts:
        return None
    return GreedyTexts(prompts, encoder.reader, end_tokens(model), budget, encoder.device)

"""Decides how requests may share forward passes of a model without changing each other's scores.

The score of an item is that of its own sequence in a batch of one. Whatever is faster has to give the same numbers, up
to rounding: sequences of one length in a batch, sequences of several lengths, requests that share their prefixes. A
model tells by being run on made-up tokens at the lengths of the requests.

Covered: models in which padding, or the longest sequence of a batch, changes what others compute (LongRoPE beyond its
original length, indices that count padding), and models in which sequences of a batch see each other. Not covered:
differences below the rounding of the model's dtype.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from evomerge.engine.flat import forward
from evomerge.engine.probe import Reset, made_up_tokens, same_numbers
from evomerge.engine.protocol import not_a_number
from evomerge.engine.rotary import changes_within
from evomerge.engine.tree_support import shares_prefixes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_COMPARED = 8  # positions at the end of a sequence whose logits are compared

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scoring:
    """Ways for log-likelihoods to share a forward pass that leave each of them as it is.

    Attributes:
        company: sequences of the same length in one batch.
        padding: sequences of different lengths in one batch, padded on the right.
        prefixes: requests that go on from the same tokens, as a tree.
    """

    company: bool = False
    padding: bool = False
    prefixes: bool = False


@dataclass(frozen=True)
class Writing:
    """Ways for texts to be written together that leave each of them as it is.

    Attributes:
        padding: prompts of different lengths in one batch, padded on the left.
        prefixes: prompts that begin with the same tokens, which are read once.
    """

    padding: bool = False
    prefixes: bool = False


# Where there is nothing to be scored or written.
ANY_SCORING = Scoring(company=True, padding=True, prefixes=True)
ANY_WRITING = Writing(padding=True, prefixes=True)


def find_scoring(model: PreTrainedModel, lengths: Collection[int], reset: Reset) -> Scoring:
    """Try out how a model can score sequences of these lengths.

    Args:
        model: with weights that compute numbers, such as those of the base.
        lengths: of the inputs in tokens, at least one.
        reset: see `Loglikelihoods.run`.

    Raises:
        MergeError: the model computes no numbers.
    """
    ordered = sorted(lengths)
    longest = ordered[-1]
    company = _scores_alike(model, [longest, longest], reset)
    padding = company and not _changes_within(model, ordered[0], longest)
    padding = padding and _scores_alike(model, _spread(ordered), reset)
    if not padding:
        _log.info("%s: sequences of different lengths change each other in a batch", type(model).__name__)
    return Scoring(company, padding, company and shares_prefixes(model, ordered[0], longest, reset))


def find_writing(model: PreTrainedModel, lengths: Collection[tuple[int, int]], reset: Reset) -> Writing:
    """Try out how a model can continue prompts of these lengths.

    Args:
        model: see `find_scoring`.
        lengths: of each prompt, and with all that may be written behind it; in tokens, at least one.
        reset: see `Loglikelihoods.run`.

    Raises:
        MergeError: the model computes no numbers.
    """
    prompts = sorted(prompt for prompt, _ in lengths)
    longest = max(text for _, text in lengths)
    padding = not _changes_within(model, prompts[0], longest)
    # A text that has been written is read as a longer prompt, behind which there is room for one more token to be read.
    written = [max(1, text - 1) for _, text in lengths]
    tried = _spread([min(length, max(written)) for length in [*prompts, *written]])
    padding = padding and _writes_alike(model, tried, reset)
    return Writing(padding, padding and shares_prefixes(model, prompts[0], longest, reset))


def depends_on_order(model: PreTrainedModel, lengths: Collection[int], longest: int, reset: Reset) -> bool:
    """Whether a sequence has other logits after longer ones, as in a run that never resets the model's state.

    Args:
        model: see `find_scoring`.
        lengths: of the inputs in tokens; none depend on nothing.
        longest: of a sequence that may come before, in tokens.
        reset: see `Loglikelihoods.run`.

    Raises:
        MergeError: the model computes no numbers.
    """
    sequences = [made_up_tokens(model, length, length) for length in reversed(_spread(lengths))]
    alone = [_logits(model, [sequence], reset)[0] for sequence in sequences]
    _logits(model, [made_up_tokens(model, longest, longest)], reset)
    after_longer_ones = [_logits(model, [sequence], _no_reset)[0] for sequence in sequences]
    return not _agree(model, after_longer_ones, alone)


def _no_reset() -> None:
    pass


def _agree(model: PreTrainedModel, found: Iterable[torch.Tensor], wanted: Iterable[torch.Tensor]) -> bool:
    return all(same_numbers(mine, theirs, model.dtype) for mine, theirs in zip(found, wanted, strict=True))


def _changes_within(model: PreTrainedModel, shortest: int, longest: int) -> bool:
    return changes_within(model.config.get_text_config(), shortest, longest)


def _spread(lengths: Collection[int]) -> list[int]:
    """The shortest length, the quartiles, and the three longest ones.

    Padded to the longest, the shortest has the most padding; the next to the longest are beyond every threshold that
    any other sequence is beyond, and have so little padding that all of it may count.
    """
    ordered = sorted(set(lengths))
    if not ordered:
        return []
    quartiles = (ordered[len(ordered) * share // 4] for share in (0, 1, 2, 3))
    return sorted({*quartiles, *ordered[-3:]})


def _scores_alike(model: PreTrainedModel, lengths: Sequence[int], reset: Reset) -> bool:
    """Whether sequences of these lengths, padded on the right, have the logits in one batch that each has alone."""
    sequences = [made_up_tokens(model, length, seed) for seed, length in enumerate(lengths)]
    together = _logits(model, sequences, reset)
    alone = [_logits(model, [sequence], reset)[0] for sequence in sequences]
    return _agree(model, together, alone)


def _logits(model: PreTrainedModel, sequences: Sequence[list[int]], reset: Reset) -> list[torch.Tensor]:
    """Logits of the last positions of each sequence of a batch, flattened, in fp64."""
    reset()
    ends = [range(max(0, len(sequence) - _COMPARED), len(sequence)) for sequence in sequences]
    places = sorted({place for end in ends for place in end})
    width = max(map(len, sequences))
    padded = torch.tensor([[*sequence, *[0] * (width - len(sequence))] for sequence in sequences], device=model.device)
    logits = forward(model, padded, torch.tensor(places, device=model.device)).double()
    if bool(logits.isnan().any()):
        raise not_a_number()
    return [row[[places.index(place) for place in end]].flatten() for row, end in zip(logits, ends, strict=True)]


def _writes_alike(model: PreTrainedModel, lengths: Sequence[int], reset: Reset) -> bool:
    """Whether prompts of these lengths have the same logits in one batch of `generate` as each alone.

    Two tokens are compared: there are models that read the padding only when they go on from what they have read.
    """
    prompts = [made_up_tokens(model, length, seed) for seed, length in enumerate(lengths)]
    width = max(lengths)
    padded = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=model.device)
    together = _next_logits(model, padded, mask, reset)
    alone = [
        _next_logits(model, row[None, -len(prompt) :], mask[:1, -1:].expand(1, len(prompt)), reset)[0]
        for row, prompt in zip(padded, prompts, strict=True)
    ]
    return _agree(model, together, alone)


def _next_logits(model: PreTrainedModel, tokens: torch.Tensor, mask: torch.Tensor, reset: Reset) -> torch.Tensor:
    """Logits [prompts, 2 * vocabulary] of the first two tokens that `generate` writes."""
    reset()
    written = model.generate(
        tokens,
        attention_mask=mask,
        min_new_tokens=2,
        max_new_tokens=2,
        do_sample=False,
        num_beams=1,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_logits=True,
    )
    return torch.cat(written.logits, 1).double()

"""Texts whose answers are those of other items of the same source: a control that cannot learn what is right."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from evomerge.errors import InvalidInput
from evomerge.evaluation.evaluator import CalibrationText
from evomerge.seeding import derive


def permuted_answers(texts: Sequence[CalibrationText], source: str, seed: int) -> list[CalibrationText]:
    """The texts of a source in their order, each with the answer of the next item of one random cycle.

    A cycle through all items leaves none of them its own answer, as a permutation drawn freely may.
    An item with several options keeps them: the one that the other item's answer is counts as right, and where it is
    none of them, one that is drawn. The frequency of answers stays what it is.

    Raises:
        InvalidInput: a text that is answer from its start, or fewer than two texts: there is nothing to exchange.
    """
    if len(texts) < 2 or any(text.answer == 0 for text in texts):
        raise InvalidInput(
            f"the answers of source {source!r} cannot be permuted: its calibration needs two items or more, each with "
            "a prompt before its answer; give a task, or a file with prompt and completion"
        )
    generator = torch.Generator().manual_seed(derive(seed, "permuted answers", source))
    cycle = torch.randperm(len(texts), generator=generator).tolist()
    following = dict(zip(cycle, [*cycle[1:], cycle[0]], strict=True))
    drawn = [derive(seed, "drawn option", source, number) for number in range(len(texts))]
    return [_with_answer(text, texts[following[number]], drawn[number]) for number, text in enumerate(texts)]


def _with_answer(text: CalibrationText, other: CalibrationText, draw: int) -> CalibrationText:
    answer = other.tokens[other.answer :]
    if not text.others:
        return CalibrationText(text.tokens[: text.answer] + answer, text.answer)
    options = [CalibrationText(text.tokens, text.answer), *text.others]
    same = [place for place, option in enumerate(options) if option.tokens[option.answer :] == answer]
    right = same[0] if same else draw % len(options)
    rest = (*options[:right], *options[right + 1 :])
    return CalibrationText(options[right].tokens, options[right].answer, rest)

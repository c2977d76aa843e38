"""Figures of one sanity probe: counts of faults and a log-likelihood, as plain data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from evomerge.forms import check_form

VERSION: Final = 2  # raised whenever the same model would have other figures
_LARGEST: Final = 700.0  # nats whose exponential is still a number


@dataclass(frozen=True, kw_only=True)
class SanityFigures:
    """Figures of a model.

    Attributes:
        nats: mean negative log-likelihood of a token of the neutral text; None where the tokenizer cannot write it.
        vocabulary: number of token ids.
        continuations: texts that were continued greedily.
        loops: how many of them repeat themselves, see `written_faults.loops`.
        answers: questions that were answered greedily.
        strays: answers with markers of a chat template or with special tokens before their end; None where the
            tokenizer cannot write the questions.
        endless: answers without an end token; None where there is no chat template, after which one has to come.
        refusals: answers that begin as refusals do; None as `strays`.
        stray: the first marker that was found, "" where there is none.
        tokens: tokens that were read and written.
    """

    nats: float | None
    vocabulary: int
    continuations: int
    loops: int
    answers: int
    strays: int | None
    endless: int | None
    refusals: int | None
    stray: str = ""
    tokens: int = 0

    @property
    def perplexity(self) -> float | None:
        """Of the neutral text, per token."""
        return None if self.nats is None else math.exp(min(self.nats, _LARGEST))

    @property
    def guesses(self) -> bool:
        """Whether the model reads the neutral text no better than who guesses among all tokens."""
        return self.nats is None or self.nats >= math.log(self.vocabulary)

    def to_document(self) -> dict[str, Any]:
        """As JSON; every number in it is finite."""
        return asdict(self)

    @classmethod
    def from_document(cls, content: Mapping[str, Any]) -> SanityFigures:
        """The figures that `to_document` wrote. Raises ValueError where it did not write them."""
        check_form(cls, dict(content))
        return cls(**content)

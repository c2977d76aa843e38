"""Answers of a run that has not ended: what its finished passes gave, as bytes, for another run to continue behind.

The passes of prepared requests and their order are fixed, so that a continued run gives the answers of an uninterrupted
one to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save


@dataclass(kw_only=True)
class ScoredTokens:
    """Scored tokens of the finished passes, in the order in which the passes score them.

    Attributes:
        passes: how many have been finished.
        values: log-probabilities of the tokens, in one tensor or in several.
        hits: whether each was the likeliest one, likewise.
    """

    passes: int = 0
    values: list[torch.Tensor] = field(default_factory=list)
    hits: list[torch.Tensor] = field(default_factory=list)


@dataclass(kw_only=True)
class WrittenTexts:
    """Texts as tokens, complete where their passes have been finished.

    Attributes:
        passes: how many have been finished.
        tokens: of each text; none yet where its pass is still to come.
        forwarded: tokens that the finished passes forwarded, padding among them.
    """

    passes: int = 0
    tokens: list[list[int]]
    forwarded: int = 0


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """The passes of a run, which its answers have to fit.

    Attributes:
        scored: the number of tokens that each pass scores.
        written: number of passes that write texts.
        texts: number of texts that they write.
    """

    scored: Sequence[int]
    written: int
    texts: int

    def nothing(self) -> InterimAnswers:
        """The answers before the first pass."""
        return InterimAnswers(
            plan=self, scored=ScoredTokens(), written=WrittenTexts(tokens=[[] for _ in range(self.texts)])
        )

    def read(self, content: bytes, device: torch.device) -> InterimAnswers | None:
        """The answers that `InterimAnswers.to_bytes` wrote, on a device; None where it did not, or for another plan."""
        try:
            tensors = load(content)
            numbers, tokens, lengths = (tensors[name].tolist() for name in ("numbers", "tokens", "lengths"))
            values, hits = tensors["values"].to(device), tensors["hits"].to(device)
            scored, written, forwarded, *plan = numbers
        except (SafetensorError, KeyError, ValueError):
            return None
        known = sum(self.scored[:scored])
        if plan != self._numbers() or not len(values) == len(hits) == known or sum(lengths) != len(tokens):
            return None
        ends = list(accumulate(lengths))
        texts = [tokens[end - length : end] for end, length in zip(ends, lengths, strict=True)]
        return InterimAnswers(
            plan=self,
            scored=ScoredTokens(passes=scored, values=[values], hits=[hits]),
            written=WrittenTexts(passes=written, tokens=texts, forwarded=forwarded),
        )

    def _numbers(self) -> list[int]:
        return [len(self.scored), sum(self.scored), self.written, self.texts]


@dataclass(frozen=True, kw_only=True)
class InterimAnswers:
    """Answers of the finished passes of a run."""

    plan: RunPlan
    scored: ScoredTokens
    written: WrittenTexts

    @property
    def passes(self) -> int:
        """Passes that have been finished."""
        return self.scored.passes + self.written.passes

    def to_bytes(self) -> bytes:
        """The same as bytes. Waits for the device."""
        scored, written = self.scored, self.written
        numbers = [scored.passes, written.passes, written.forwarded, *self.plan._numbers()]
        return save(
            {
                "values": _joined(scored.values, torch.float32),
                "hits": _joined(scored.hits, torch.bool),
                "tokens": torch.tensor([token for text in written.tokens for token in text], dtype=torch.long),
                "lengths": torch.tensor([len(text) for text in written.tokens], dtype=torch.long),
                "numbers": torch.tensor(numbers, dtype=torch.long),
            }
        )


def _joined(tensors: Sequence[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    return torch.cat([torch.empty(0, dtype=dtype), *(each.cpu() for each in tensors)])

"""Rows of embeddings by token: the row of an expert's that belongs to the token of each row of the base's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from evomerge.checkpoints.digests import tensor_digest
from evomerge.checkpoints.vocabulary import Vocabulary
from evomerge.messages import some
from evomerge.tensors.common_dtype import common_dtype

LEAST_SHARED = 0.5  # of the base's tokens; with fewer, the two vocabularies have little to do with each other


@dataclass(frozen=True, kw_only=True)
class TokenRows:
    """The alignment of an expert's rows to the base's.

    Attributes:
        origins: for each row of the base the row of the expert, -1 where it has none; [rows of the base].
        without: tokens of the base that the expert lacks.
        left_out: tokens of the expert that the base lacks.
        shared: the share of the base's tokens that the expert has.
    """

    origins: torch.Tensor
    without: tuple[str, ...]
    left_out: tuple[str, ...]
    shared: float

    @property
    def in_place(self) -> bool:
        """Whether every row stays where it is."""
        return bool((self.origins == torch.arange(len(self.origins))).all())

    @property
    def digest(self) -> str:
        """Digest of the origins."""
        return tensor_digest(self.origins)

    def aligned(self, theirs: torch.Tensor, ours: torch.Tensor) -> torch.Tensor:
        """The expert's tensor with the rows of the base's; where it has none, those of the base itself.

        Args:
            theirs: of the expert, [its rows, ...].
            ours: of the base, [rows, ...]. The result is in the wider dtype of the two, so that no row is rounded.
        """
        dtype = common_dtype(theirs.dtype, ours.dtype)
        rows = theirs.index_select(0, self.origins.clamp(min=0)).to(dtype)
        missing = self.origins < 0
        rows[missing] = ours[missing].to(dtype)
        return rows

    def sentences(self) -> Iterator[str]:
        yield "its embeddings are in the order of the base's vocabulary, by token"
        if self.without:
            yield f"{len(self.without)} tokens that it lacks have the base's rows: {some([*map(repr, self.without)])}"
        if self.left_out:
            yield f"{len(self.left_out)} tokens that the base lacks are left out: {some([*map(repr, self.left_out)])}"


def token_rows(ours: Vocabulary, theirs: Vocabulary, *, our_rows: int, their_rows: int) -> TokenRows:
    """The rows of an expert's that belong to the tokens of the base's rows.

    Rows without a token, as sizes are rounded up with, keep their places where both have none there.
    """
    origins = torch.full((our_rows,), -1, dtype=torch.int64)
    for row in range(our_rows):
        token = ours.tokens.get(row)
        if token is None:
            if row < their_rows and row not in theirs.tokens:
                origins[row] = row
        elif (number := theirs.ids.get(token, their_rows)) < their_rows:
            origins[row] = number
    without, left_out = _only_in(ours, theirs), _only_in(theirs, ours)
    return TokenRows(
        origins=origins,
        without=without,
        left_out=left_out,
        shared=1 - len(without) / max(len(ours.ids), 1),
    )


def _only_in(one: Vocabulary, other: Vocabulary) -> tuple[str, ...]:
    """The tokens that the other has not, by their ids."""
    return tuple(sorted((token for token in one.ids if token not in other.ids), key=one.ids.__getitem__))

"""An expert in the form of the base: the same names and shapes, so that methods see nothing of the differences.

Two policies of a `ModelRef` allow it. `tokenizer: base`: rows of embeddings go where the base has their tokens; a token
that the expert lacks keeps the base's row, which no merge changes by this expert; tokens that the base lacks are left
out. `missing: base`: a tensor that the expert lacks is the base's, one that the base lacks is left out; the one tensor
of a tied expert stands for both of an untied base. What was done is in the notes of the source.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import replace

import torch

from evomerge.catalogue import build_catalogue
from evomerge.checkpoints.digests import dtype_name
from evomerge.checkpoints.source import Source
from evomerge.checkpoints.vocabulary import read_vocabulary, same_tokenizer, token_tensors
from evomerge.errors import InvalidInput
from evomerge.fitting.token_rows import LEAST_SHARED, TokenRows, token_rows
from evomerge.messages import counted, some
from evomerge.tensors.common_dtype import common_dtype

Making = Callable[[], torch.Tensor]


def fit_source(base: Source, expert: Source) -> Source:
    """The expert in the base's form, as far as its policies allow; the same object where nothing is to be done.

    The fingerprint stays that of the expert's files.

    Raises:
        InvalidInput: a tokenizer cannot be read, or the vocabularies share fewer than half of the base's tokens.
    """
    fitting = _Fitting(base, expert)
    if expert.ref.missing == "base":
        fitting.complete()
    if expert.ref.tokenizer == "base":
        fitting.align_tokens()
    return fitting.result() if fitting.notes else expert


class FittedTensors(Mapping[str, torch.Tensor]):
    """The tensors of an expert, some of them made whenever they are read.

    Attributes:
        aligned: name -> digest of the order of its rows, for those that are copies with other rows; the others are in
            the files of expert or base.
    """

    def __init__(
        self,
        own: Mapping[str, torch.Tensor],
        made: Mapping[str, Making],
        names: Collection[str],
        aligned: Mapping[str, str],
    ) -> None:
        self._own = own
        self._made = made
        self._names = dict.fromkeys(sorted(names))
        self.aligned = dict(aligned)

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._made[name]() if name in self._made else self._own[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def fitted_bytes(experts: Iterable[Source]) -> int:
    """Bytes that a worker holds of experts beside their files: of tensors whose rows are in another order."""
    sizes = [
        (math.prod(expert.header[name][0]), getattr(torch, expert.header[name][1]).itemsize)
        for expert in experts
        if isinstance(expert.tensors, FittedTensors)
        for name in expert.tensors.aligned
    ]
    return sum(count * size for count, size in sizes)


def content_key(source: Source) -> str | None:
    """Name of a source's tensors by content: its fingerprint, and where tokenizers decide the order of rows, that too.

    None for a source without a fingerprint.
    """
    fingerprint, order = source.ref.fingerprint, order_of_tokens(source)
    return fingerprint if fingerprint is None or order is None else f"{fingerprint} {order}"


def order_of_tokens(source: Source) -> str | None:
    """Digest of the order in which an expert's rows of tokens are put; None where they stay as they are stored."""
    if not isinstance(source.tensors, FittedTensors) or not source.tensors.aligned:
        return None
    return hashlib.sha256(json.dumps(source.tensors.aligned, sort_keys=True).encode()).hexdigest()


class _Fitting:
    """The steps from an expert to its form as one of the base's."""

    def __init__(self, base: Source, expert: Source) -> None:
        self._base = base
        self._expert = expert
        self._header = dict(expert.header)
        self._made: dict[str, Making] = {}
        self._of_base: list[str] = []
        self._aligned: dict[str, str] = {}
        self.notes: list[str] = []

    def result(self) -> Source:
        base, expert = self._base, self._expert
        return replace(
            expert,
            catalogue=build_catalogue(self._header, base.tied, language=base.language),
            header=dict(sorted(self._header.items())),
            tensors=FittedTensors(expert.tensors, self._made, names=self._header, aligned=self._aligned),
            tied=base.tied,
            language=base.language,
            notes=(*expert.notes, *self.notes),
        )

    def complete(self) -> None:
        """Give the expert the base's tensors, and no others."""
        base, expert = self._base, self._expert
        lacking = self._of_base
        for name in base.catalogue.names:
            if name in self._header:
                continue
            if (shared := expert.tied.get(name)) in expert.header:
                self._take(name, expert, str(shared))
                self.notes.append(f"{name} is one tensor with {shared} in it, which stands for both")
            else:
                self._take(name, base, name)
                lacking.append(name)
        if lacking:
            self.notes.append(f"of the base, since it lacks them: {counted(len(lacking), 'tensor')}, {some(lacking)}")
        if extra := [name for name in self._header if name not in base.catalogue]:
            self._header = {name: known for name, known in self._header.items() if name in base.catalogue}
            self.notes.append(
                f"left out, since the base has no place for them: {counted(len(extra), 'tensor')}, {some(extra)}"
            )

    def _take(self, name: str, source: Source, stored: str) -> None:
        self._header[name] = source.header[stored]
        self._made[name] = lambda: source.tensors[stored]

    def align_tokens(self) -> None:
        """Put the expert's rows of embeddings in the order of the base's tokens; rows of the base are in it already."""
        base, expert = self._base, self._expert
        names = [name for name in token_tensors(base) if self._is_alignable(name)]
        resized = any(self._header[name][0] != base.header[name][0] for name in names)
        if not names or (not resized and same_tokenizer(base, expert)):
            return
        ours, theirs = read_vocabulary(base), read_vocabulary(expert)
        found: dict[tuple[int, int], TokenRows] = {}
        for name in names:
            sizes = base.header[name][0][0], self._header[name][0][0]
            if sizes not in found:
                found[sizes] = token_rows(ours, theirs, our_rows=sizes[0], their_rows=sizes[1])
            if sizes[0] != sizes[1] or not found[sizes].in_place:
                self._align(name, found[sizes])
        if self._aligned:
            self._say_of_tokens(next(iter(found.values())))

    def _is_alignable(self, name: str) -> bool:
        has_own = name in self._header and name not in self._of_base
        return has_own and self._header[name][0][1:] == self._base.header[name][0][1:]

    def _align(self, name: str, rows: TokenRows) -> None:
        base, own = self._base, self._made.get(name, lambda: self._expert.tensors[name])
        self._aligned[name] = rows.digest
        dtypes = (getattr(torch, header[name][1]) for header in (self._header, base.header))
        self._header[name] = base.header[name][0], dtype_name(common_dtype(*dtypes))
        self._made[name] = lambda: rows.aligned(own(), base.tensors[name])

    def _say_of_tokens(self, rows: TokenRows) -> None:
        if rows.shared < LEAST_SHARED:
            raise InvalidInput(
                f"source {self._expert.name!r}: its vocabulary has {100 * rows.shared:.0f} % of the base's tokens, and "
                f"`tokenizer: base` aligns vocabularies that share {100 * LEAST_SHARED:.0f} % or more"
            )
        self.notes += rows.sentences()

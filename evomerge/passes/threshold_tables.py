"""Threshold tables: any density becomes a threshold without sorting, or reading a weight, per candidate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from evomerge.native.ranked_magnitudes import Expected, Ranked, ranked_magnitudes
from evomerge.passes.magnitude_sorting import SHORT, Desk, fast_table
from evomerge.passes.magnitude_tables import TOLERANCE, Table
from evomerge.passes.table_store import Scope, TableStore, pair_digest, scope_digest

# Elements of task vectors that are computed together. CPU: they stay in the cache until they are counted.
CPU_PIECE = 1 << 17
DEVICE_PIECE = 1 << 24
SAVED_AT_ONCE = 1 << 26  # elements; a worker that is killed has then saved most of what it made


@dataclass(frozen=True, kw_only=True)
class Contents:
    """Names by content of the models whose tables are kept on disk.

    Attributes:
        base: of the base.
        sources: of each source, in source order.
        store: holds the tables.
    """

    base: str
    sources: tuple[str, ...]
    store: TableStore

    @classmethod
    def of(cls, names: Sequence[str | None], store: TableStore) -> Contents | None:
        """The contents by the names of base and sources, None where one of them has none."""
        known = tuple(name for name in names if name is not None)
        return cls(base=known[0], sources=known[1:], store=store) if len(known) == len(names) else None

    def pair(self, source: int) -> str:
        return pair_digest(self.base, self.sources[source])


class ThresholdTables:
    """Order statistics of |source − base| over any scope of tensors, for one fixed list of sources.

    A table is made or read on first use of its scope: once per worker, since the groups of a search do not change. With
    a threshold from it at most one element in 10⁵ of the scope is kept or dropped otherwise than with the exact one; in
    scopes of up to 10⁵ elements none is. The tables hold as many knots as that takes: few for large scopes, whose
    magnitudes are smooth on the scale of the tolerance, most magnitudes for scopes below 2·10⁵ elements, and all for
    the shortest.
    """

    def __init__(
        self,
        base: Mapping[str, torch.Tensor],
        sources: Sequence[Mapping[str, torch.Tensor]],
        contents: Contents | None = None,
    ) -> None:
        """Without `contents` the tables live as long as this object."""
        self._base = base
        self._sources = sources
        self._contents = contents
        self._tables: dict[tuple[int, Scope], Table] = {}
        self._stored: list[dict[str, Table]] = [{} for _ in sources]
        self._unsaved: list[list[Scope]] = [[] for _ in sources]
        self._desk = Desk()

    @property
    def nbytes(self) -> int:
        """Bytes of the tables that were used so far."""
        return sum(table.nbytes for table in self._tables.values())

    def kth_magnitude(self, source: int, scope: Scope, k: int) -> float:
        """A threshold for the k-th smallest (k from 1) of |source − base| over the elements of the scope's tensors.

        Where several elements have that magnitude, all of them are at the threshold.
        """
        return self._table(source, scope).at_rank(k - 1)

    def ties_from(self, source: int, scope: Scope, k: int) -> int | None:
        """The number of elements of the k-th magnitude from the k-th on; None where it is the first of them."""
        first, last = self._table(source, scope).run(k - 1)
        return None if first == k - 1 else last - k + 2

    def exact_magnitudes(self, source: int, name: str, ranks: Sequence[int]) -> list[Ranked] | None:
        """As in `Thresholds`: by the table where it holds all magnitudes, else in one pass around what it says."""
        base, weights = self._base[name].detach(), self._sources[source][name].detach()
        if torch.float64 in (base.dtype, weights.dtype):
            return None
        table, elements = self._table(source, (name,)), base.numel()
        if len(table.ranks) == elements:
            runs = ((rank, *table.run(rank - 1)) for rank in ranks)
            return [Ranked(table.at_rank(rank - 1), first, last + 1 - first) for rank, first, last in runs]
        margin = int(TOLERANCE * elements) + 2
        expected = []
        for rank in ranks:
            low, high = max(rank - 1 - margin, 0), min(rank - 1 + margin, elements - 1)
            expected.append(Expected(rank, table.at_rank(low), table.at_rank(high)))
        return ranked_magnitudes(base, weights, expected)

    def save(self) -> None:
        """Put what was made since the last call into the store, and give back the memory that it was made in."""
        self._desk = Desk()
        for source in range(len(self._sources)):
            self._save(source)

    def _table(self, source: int, scope: Scope) -> Table:
        key = (source, scope)
        table = self._tables.get(key)
        if table is None:
            table = self._tables[key] = self._find(source, scope)
        return table

    def _find(self, source: int, scope: Scope) -> Table:
        elements = self._elements(scope)
        if self._contents is None or elements <= SHORT:
            return self._make(source, scope)
        digest, stored = scope_digest(scope), self._stored[source]
        if digest not in stored:
            stored.update(self._contents.store.new_tables(self._contents.pair(source)))
        if digest in stored:
            return stored[digest]
        table = self._tables[source, scope] = self._make(source, scope)
        self._unsaved[source].append(scope)
        if sum(map(self._elements, self._unsaved[source])) >= SAVED_AT_ONCE:
            self._save(source)
        return table

    def _make(self, source: int, scope: Scope) -> Table:
        return fast_table(lambda: self._magnitudes(source, scope), self._elements(scope), self._desk)

    def _save(self, source: int) -> None:
        scopes, self._unsaved[source] = self._unsaved[source], []
        if self._contents is None or not scopes:
            return
        made = {scope_digest(scope): self._tables[source, scope] for scope in scopes}
        mapped = self._contents.store.save(self._contents.pair(source), made)
        for scope in scopes:  # memory that the workers of a machine share instead of that of this one alone
            self._tables[source, scope] = mapped.get(scope_digest(scope), self._tables[source, scope])

    def _elements(self, scope: Scope) -> int:
        return sum(self._base[name].numel() for name in scope)

    def _magnitudes(self, source: int, scope: Scope) -> Iterator[torch.Tensor]:
        for name in scope:
            base, weights = (model[name].detach().reshape(-1) for model in (self._base, self._sources[source]))
            size = CPU_PIECE if base.device.type == "cpu" else DEVICE_PIECE
            for start in range(0, base.numel(), size):
                piece = slice(start, start + size)
                yield (weights[piece].to(base.device).float() - base[piece].float()).abs_()

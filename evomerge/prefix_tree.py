"""Arranges token sequences so that a prefix that several of them share is computed once. Plain Python, no tensors.

Two ways of sharing are combined. A *stem* is a prefix under which so much branches off that it is worth a forward pass
of its own, whose keys and values serve everything below: the few-shot examples of a task. A *row* is a small tree laid
out flat, node after node, in which every token attends to its ancestors only: a question with its options. Rows spend
attention on nodes that do not see each other, so a sequence joins a row only where it saves more than that.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol

Tokens = tuple[int, ...]

PASS_COST = 100  # what one more forward pass costs, in tokens: reading the weights, and the calls of every layer
WIDEST_ROW = 1024  # tokens in a row that has more than one sequence


@dataclass
class TreeRow:
    """A tree laid out flat, in depth-first order, so that the descendants of a node stand right behind it.

    A stem is a row of one branch, from where its own stem stops to where others go on from it.

    Attributes:
        stem: index of the row that all of it goes on from, None where it starts at the first token.
        start: the position of its first token.
        tokens: one per node.
        positions: the place of each node in its sequence.
        ends: where the descendants of each node end: node i is seen from j if i <= j < ends[i].
    """

    stem: int | None
    start: int
    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)

    def grow(self, branch: Sequence[int], path: list[int]) -> list[int]:
        """Add a branch below the last node of `path`; the way to its own last node. Other branches are closed."""
        below = len(path)
        nodes = range(len(self.tokens), len(self.tokens) + len(branch))
        self.tokens += branch
        self.positions += range(self.start + below, self.start + below + len(branch))
        self.ends += nodes
        way = [*path, *nodes]
        for node in way:
            self.ends[node] = len(self.tokens)
        return way


@dataclass(frozen=True, kw_only=True)
class PrefixTree:
    """Rows that hold all tokens of some sequences.

    Attributes:
        rows: the stems first, each behind the one that it goes on from.
        stems: how many of the rows are stems.
        last_stems: sequence -> the last stem on its way.
        ways: sequence -> the row that it ends in, and the nodes of its tokens there. None if it ends in a stem.
    """

    rows: list[TreeRow]
    stems: int
    last_stems: list[int | None]
    ways: list[tuple[int, list[int]] | None]

    def place(self, sequence: int, position: int) -> tuple[int, int]:
        """The row and the node that hold a token of a sequence."""
        way = self.ways[sequence]
        if way is not None and position >= self.rows[way[0]].start:
            row, nodes = way
            return row, nodes[position - self.rows[row].start]
        stem = self.last_stems[sequence] or 0
        while position < self.rows[stem].start:
            stem = self.rows[stem].stem or 0
        return stem, position - self.rows[stem].start


@dataclass(frozen=True)
class TreePass:
    """Rows that go through the model together: those of one stem, or a stem itself (`keeps` is then its index)."""

    stem: int | None
    keeps: int | None
    rows: list[int]


def arrange(sequences: Sequence[Tokens], hidden: int, *, pass_cost: int = PASS_COST, join: bool = True) -> PrefixTree:
    """Arrange sequences for one model.

    Args:
        sequences: distinct, none empty, in ascending order.
        hidden: width of the model. A token costs 24·hidden² operations and layer in the matrix products and 4·hidden
            for every token that it is compared with, so 6·hidden comparisons cost as much as a token.
        pass_cost: tokens that a stem has to save at least.
        join: whether sequences may share a row; if not, only stems are shared.
    """
    shared = _shared(sequences)
    rows, last_stems = _stems(sequences, shared, hidden=hidden, pass_cost=pass_cost, join=join)
    stems = len(rows)
    ways: list[tuple[int, list[int]] | None] = [None] * len(sequences)
    for stem, run in _runs(last_stems):
        cut = 0 if stem is None else _stop(rows[stem])
        longer = [each for each in run if len(sequences[each]) > cut]
        for members in _rows(sequences, shared, longer, cut=cut, hidden=hidden, join=join):
            row = TreeRow(stem, cut)
            way: list[int] = []
            for each in members:
                kept = shared[each] - cut if way else 0
                way = row.grow(sequences[each][cut + kept :], way[:kept])
                ways[each] = (len(rows), way)
            rows.append(row)
    return PrefixTree(rows=rows, stems=stems, last_stems=last_stems, ways=ways)


def schedule(
    tree: PrefixTree, budget: int, *, most: int | None = None, growth: int = 0, pass_cost: int = PASS_COST
) -> list[TreePass]:
    """The order in which to compute a tree: a stem, its rows in batches, and only then the next stem.

    Args:
        tree: what is to be computed.
        budget: tokens in a batch of rows, those of the stem counted for every row.
        most: tokens in a batch of rows without those of the stem, at most; any number without it.
        growth: tokens that will be added to every row.
        pass_cost: tokens of padding that a further batch has to save at least.
    """
    below: dict[int | None, list[int]] = {}
    for index, row in enumerate(tree.rows):
        below.setdefault(row.stem, []).append(index)
    steps: list[TreePass] = []
    pending: list[int | None] = [None]
    while pending:
        stem = pending.pop()
        if stem is not None:
            steps.append(TreePass(tree.rows[stem].stem, stem, [stem]))
        children = below.get(stem, [])
        pending += [each for each in reversed(children) if each < tree.stems]
        # Widest first, so that memory runs out at once or never.
        rows = sorted((each for each in children if each >= tree.stems), key=lambda each: -len(tree.rows[each].tokens))
        batches = _batches(tree, rows, budget=budget, most=most or budget, growth=growth, pass_cost=pass_cost)
        steps += [TreePass(stem, None, batch) for batch in batches]
    return steps


class StemPass(Protocol):
    """A pass that goes on from a stem, or is one. See `TreePass`."""

    @property
    def stem(self) -> int | None: ...

    @property
    def keeps(self) -> int | None: ...


def stems_behind(passes: Sequence[StemPass], finished: int) -> set[int]:
    """The finished passes that have to be made again for those that follow: the stems from which these go on."""
    places = {each.keeps: at for at, each in enumerate(passes) if each.keeps is not None}
    pending = [each.stem for each in passes[finished:]]
    found: set[int] = set()
    while pending:
        stem = pending.pop()
        if stem is not None and places[stem] < finished and places[stem] not in found:
            found.add(places[stem])
            pending.append(passes[places[stem]].stem)
    return found


def _batches(
    tree: PrefixTree, rows: Sequence[int], *, budget: int, most: int, growth: int, pass_cost: int
) -> Iterator[list[int]]:
    """Divide the rows of a stem, widest first, where the budget ends or narrower ones would be padded too much."""
    batch: list[int] = []
    room = width = 0
    for at, index in enumerate(rows):
        row = tree.rows[index]
        narrower = width - len(row.tokens)
        alike = min(room - len(batch), len(rows) - at)  # rows to come that would be padded by at least as much
        if batch and (alike == 0 or narrower * alike > pass_cost):
            yield batch
            batch = []
        if not batch:
            width = len(row.tokens)
            room = max(1, min(budget // (row.start + width + growth), most // width))
        batch.append(index)
    if batch:
        yield batch


def distinct_tokens(sequences: Iterable[Tokens]) -> int:
    """Tokens of the trie of all sequences: the least that can be computed."""
    ordered = sorted(sequences)
    return sum(map(len, ordered)) - sum(_shared(ordered))


def _shared(sequences: Sequence[Tokens]) -> list[int]:
    """Number of tokens that each of the ordered sequences shares with the one before it."""
    return [0, *map(_common, sequences, sequences[1:])]


def _common(one: Tokens, other: Tokens) -> int:
    """Length of the common prefix of two sequences, in tokens."""
    stop = min(len(one), len(other))
    if one[:stop] == other[:stop]:
        return stop
    return bisect_right(range(stop), False, key=lambda at: one[: at + 1] != other[: at + 1])


def _stems(
    sequences: Sequence[Tokens], shared: Sequence[int], *, hidden: int, pass_cost: int, join: bool
) -> tuple[list[TreeRow], list[int | None]]:
    """Find the prefixes that are worth a pass, from the shortest on; and the longest such prefix of every sequence."""
    stems: list[TreeRow] = []
    last: list[int | None] = [None] * len(sequences)
    pending: list[tuple[range, int, int | None]] = [(range(len(sequences)), 0, None)]
    while pending:
        span, cut, stem = pending.pop()
        rows = sum(1 for _ in _rows(sequences, shared, span, cut=cut, hidden=hidden, join=join))
        if rows > 1:
            branch = min(shared[each] for each in span[1:])
            if (branch - cut) * (rows - 1) > pass_cost:
                stems.append(TreeRow(stem, cut))
                stems[-1].grow(sequences[span[0]][cut:branch], [])
                stem, cut = len(stems) - 1, branch
            borders = [span.start, *(each for each in span[1:] if shared[each] == branch), span.stop]
            children = [range(*border) for border in pairwise(borders)]
            pending += [(child, cut, stem) for child in reversed(children) if len(child) > 1]
        for each in span:
            last[each] = stem
    return stems, last


def _stop(stem: TreeRow) -> int:
    """The position after the last token of a stem."""
    return stem.start + len(stem.tokens)


def _runs(last: Sequence[int | None]) -> Iterator[tuple[int | None, list[int]]]:
    """Neighbouring sequences that go on from the same stem."""
    run: list[int] = []
    for each, stem in enumerate(last):
        if run and stem != last[run[-1]]:
            yield last[run[-1]], run
            run = []
        run.append(each)
    if run:
        yield last[run[-1]], run


def _rows(
    sequences: Sequence[Tokens], shared: Sequence[int], members: Sequence[int], *, cut: int, hidden: int, join: bool
) -> Iterator[list[int]]:
    """Divide neighbouring sequences among rows: one joins the row before it if it saves more than it costs there."""
    row: list[int] = []
    width = 0
    for each in members:
        length = len(sequences[each]) - cut
        saved = shared[each] - cut if row else 0
        wider = width + length - saved
        compared = wider * (wider + cut) - width * (width + cut) - length * (length + cut)
        if join and saved > 0 and saved * 6 * hidden >= compared and wider <= WIDEST_ROW:
            row.append(each)
            width = wider
        else:
            if row:
                yield row
            row, width = [each], length
    if row:
        yield row

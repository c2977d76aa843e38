from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from evomerge.prefix_tree import PrefixTree, Tokens, arrange, distinct_tokens, schedule

sequences = st.sets(st.lists(st.integers(0, 2), min_size=1, max_size=9).map(tuple), min_size=1, max_size=25).map(sorted)
widths = st.sampled_from([0, 1, 64])
costs = st.sampled_from([0, 3, 100])


@given(sequences, widths, costs, st.booleans())
def test_every_token_sees_exactly_the_tokens_before_it(
    sequences: list[Tokens], hidden: int, cost: int, join: bool
) -> None:
    tree = arrange(sequences, hidden, pass_cost=cost, join=join)
    for index, tokens in enumerate(sequences):
        for position in range(len(tokens)):
            assert seen_from(tree, *tree.place(index, position)) == tokens[: position + 1]


def seen_from(tree: PrefixTree, index: int | None, node: int | None = None) -> Tokens:
    """What a node attends to, the stems before it first; all of a stem without a node. Positions must be in order."""
    if index is None:
        return ()
    row = tree.rows[index]
    last = len(row.tokens) - 1 if node is None else node
    seen = [at for at in range(last + 1) if last < row.ends[at]]
    before = seen_from(tree, row.stem)
    assert [row.positions[at] for at in seen] == list(range(len(before), len(before) + len(seen)))
    return before + tuple(row.tokens[at] for at in seen)


@given(sequences, widths, costs, st.integers(1, 40))
def test_stems_come_before_what_goes_on_from_them_and_every_row_comes_once(
    sequences: list[Tokens], hidden: int, cost: int, budget: int
) -> None:
    tree = arrange(sequences, hidden, pass_cost=cost)
    done: list[int] = []
    for step in schedule(tree, budget, pass_cost=cost):
        assert step.stem is None or step.stem in done
        assert {tree.rows[row].stem for row in step.rows} == {step.stem}
        held = max(tree.rows[row].start + len(tree.rows[row].tokens) for row in step.rows)
        assert len(step.rows) == 1 or len(step.rows) * held <= budget
        done += step.rows
    assert sorted(done) == list(range(len(tree.rows)))


@given(sequences)
def test_distinct_tokens_are_the_prefixes(sequences: list[Tokens]) -> None:
    assert distinct_tokens(sequences) == len({each[:stop] for each in sequences for stop in range(1, len(each) + 1)})


def test_few_shot_choices_are_computed_almost_without_repetition() -> None:
    rng = random.Random(0)
    examples = draw(rng, 300)
    questions = [examples + draw(rng, rng.randint(20, 60)) for _ in range(50)]
    ordered = sorted({question + draw(rng, rng.randint(2, 12)) for question in questions for _ in range(4)})
    tree = arrange(ordered, 96)
    steps = schedule(tree, 64 * 400, most=1024)
    padded = sum(len(step.rows) * max(len(tree.rows[row].tokens) for row in step.rows) for step in steps)
    assert padded <= 1.1 * distinct_tokens(ordered)
    assert len(steps) < 12


def test_sequences_that_share_nothing_stay_alone() -> None:
    ordered = sorted(draw(random.Random(seed), 30) for seed in range(20))
    tree = arrange(ordered, 96)
    assert tree.stems == 0
    assert len(tree.rows) == 20


def test_a_nested_prefix_gets_a_stem_of_its_own() -> None:
    rng = random.Random(0)
    instruction = draw(rng, 200)
    subjects = [instruction + draw(rng, 300) for _ in range(3)]
    tree = arrange(sorted(subject + draw(rng, 50) for subject in subjects for _ in range(20)), 96)
    assert [(stem.stem, stem.start, len(stem.tokens)) for stem in tree.rows[: tree.stems]] == [
        (None, 0, 200),
        *[(0, 200, 300)] * 3,
    ]


def draw(rng: random.Random, count: int) -> Tokens:
    return tuple(rng.randrange(50) for _ in range(count))

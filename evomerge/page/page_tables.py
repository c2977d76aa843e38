"""Tables of a page: cells with the text that people read and the number that they are sorted by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from evomerge.jobs import Cost
from evomerge.leaderboard import Line, PartScore
from evomerge.messages import LESS_IS_BETTER, duration, in_bytes, in_thousands, p_value, task_label
from evomerge.verdict.note import COMPARISON_TITLES
from evomerge.verdict.sentences import about, amount
from evomerge.verdict.verdict import Verdict

_NOTHING = "–"


@dataclass(frozen=True)
class Cell:
    """A cell. `sort` is None where the text sorts it, or nothing does."""

    text: str
    sort: float | None = None


@dataclass(frozen=True, kw_only=True)
class PageTable:
    """A table.

    Attributes:
        marks: of each row the class of its style: "best", "trial", "" for others.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    marks: tuple[str, ...] = ()
    text: str = ""

    @property
    def marked_rows(self) -> list[tuple[str, tuple[Cell, ...]]]:
        """The rows with their marks."""
        return list(zip(self.marks or ("",) * len(self.rows), self.rows, strict=True))


def line_name(line: Line) -> str:
    """The name of a row of the leaderboard, as the terminal has it."""
    return f"best found ({line.label})" if line.kind == "best" else line.name


def leaderboard_table(lines: Sequence[Line]) -> PageTable:
    """Sources, baselines and the best trials on both parts of the items."""
    rows = tuple(
        (
            Cell(line_name(line)),
            Cell(line.kind),
            *_score(line.held_out),
            *_score(line.search),
            _number(line.forwards, ",.0f"),
            _number(line.seconds, ".1f"),
        )
        for line in lines
    )
    return PageTable(
        name="leaderboard",
        title="Leaderboard",
        columns=("model", "kind", "held-out", "±", "search", "±", "forwards", "s each"),
        rows=rows,
        marks=tuple(line.kind for line in lines),
        text="The winner was named on the search items alone; other trials are shown, never promoted. ± is one "
        "standard error. Forwards: passes of one item that it took to come by the row. A click on a column sorts.",
    )


def task_table(lines: Sequence[Line], tasks: Sequence[str], part: str) -> PageTable:
    """Every row on every task of one part of the items."""
    scored = [(line, found) for line in lines if (found := part_of_line(line, part)) is not None]
    lower = lower_is_better(lines, part)
    return PageTable(
        name="by-task",
        title=f"Every task, on the {part} items",
        columns=("model", *(task_label(task, task not in lower) for task in tasks)),
        rows=tuple((Cell(line_name(line)), *(_task(found, task) for task in tasks)) for line, found in scored),
        marks=tuple(line.kind for line, _ in scored),
        text=f"{LESS_IS_BETTER}." if lower else "",
    )


def lower_is_better(lines: Sequence[Line], part: str) -> set[str]:
    """The tasks whose lower scores are the better ones."""
    parts = (found for line in lines if (found := part_of_line(line, part)) is not None)
    return {task for found in parts for task, score in found.tasks.items() if not score["higher_is_better"]}


def part_of_line(line: Line, part: str) -> PartScore | None:
    """The scores of a row on the "held-out" or "search" items."""
    return line.held_out if part == "held-out" else line.search


def comparison_table(verdict: Verdict) -> PageTable:
    """The winner against each of what it was compared with."""
    rows = []
    for each in verdict.comparisons:
        interval = _NOTHING
        if each.low is not None and each.high is not None:
            ends = (amount(end, verdict.unit, signed=True) for end in (each.low, each.high))
            interval = " to ".join(ends)
        rows.append(
            (
                Cell(each.name),
                Cell(amount(each.difference, verdict.unit, signed=True), each.difference),
                Cell(interval, each.low),
                Cell(p_value(each.adjusted_p), each.adjusted_p),
                Cell(each.test),
                Cell(f"{each.discordant:,} of {each.items:,}", each.discordant),
                Cell(_NOTHING if each.items_needed is None else about(each.items_needed), each.items_needed),
                Cell("is beaten" if each.worse else each.outcome),
            )
        )
    return PageTable(
        name="comparisons",
        title=f"{verdict.winner.capitalize()} against the others",
        columns=("against", *COMPARISON_TITLES[1:-1]),
        rows=tuple(rows),
        text=f"{verdict.items:,} held-out items, compared one by one. p-values are corrected for all comparisons of "
        "their look and for every look at these items; an interval is of its difference alone.",
    )


def cost_table(lines: Sequence[Line]) -> PageTable:
    """Costs of what was chosen or trained."""
    chosen = [(line, line.cost) for line in lines if line.cost is not None]
    return PageTable(
        name="costs",
        title="What it took to choose it",
        columns=("model", "merges", "tokens", "trained tokens", "time", "GPU", "memory"),
        rows=tuple((Cell(line_name(line)), *cost_cells(cost)) for line, cost in chosen),
        marks=tuple(line.kind for line, _ in chosen),
    )


def cost_cells(cost: Cost) -> tuple[Cell, ...]:
    """Merges, tokens, trained tokens, time, GPU time and memory of a cost."""
    return (
        Cell(f"{cost.candidates:,}", cost.candidates),
        Cell(in_thousands(cost.forward_tokens), cost.forward_tokens),
        Cell(in_thousands(cost.gradient_tokens), cost.gradient_tokens),
        Cell(duration(cost.seconds) if cost != Cost() else _NOTHING, cost.seconds),
        Cell(duration(cost.gpu_seconds) if cost.gpu_seconds else _NOTHING, cost.gpu_seconds),
        Cell(in_bytes(cost.peak_bytes) if cost.peak_bytes else _NOTHING, cost.peak_bytes),
    )


def _score(part: PartScore | None) -> tuple[Cell, Cell]:
    if part is None:
        return Cell(_NOTHING), Cell("")
    return _number(part.value), Cell("") if part.stderr is None else _number(part.stderr)


def _task(part: PartScore, task: str) -> Cell:
    score = part.tasks.get(task)
    if score is None:
        return Cell(_NOTHING)
    error = "" if score["stderr"] is None else f" ± {score['stderr']:.3f}"
    return Cell(f"{score['value']:.3f}{error}", score["value"])


def _number(value: float | None, form: str = ".3f") -> Cell:
    return Cell(_NOTHING) if value is None else Cell(f"{value:{form}}", value)

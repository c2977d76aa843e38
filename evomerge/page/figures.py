"""The figures of a page: leads, scores by task, the course of a search, weights over depth, both parts of the items."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from evomerge.charts.both_parts import BothParts
from evomerge.charts.depth_weights import DepthWeights
from evomerge.charts.search_course import Level, SearchCourse, thinned
from evomerge.messages import LESS_IS_BETTER, counted, in_lines, task_label
from evomerge.page.pictures import COLOURS, Picture, drawn
from evomerge.verdict.verdict import Verdict

_NAME_WIDTH: Final = 20  # characters of a line of a name beside the axes
_LEGEND_WIDTH: Final = 36  # of names above them, or of their own label

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number with the ends of its interval, under a name. A row of a winner, or of one that beats it, is filled."""

    name: str
    value: float
    low: float | None
    high: float | None
    is_winner: bool = False
    beats_winner: bool = False


def leads(verdict: Verdict) -> Picture:
    """The winner's difference to each of what it was compared with, on the held-out items."""
    scale, unit = (1, "") if verdict.unit == "plain" else (100, f" ({verdict.unit})")
    rows = [
        Estimate(
            name=each.name,
            value=each.difference * scale,
            low=None if each.low is None else each.low * scale,
            high=None if each.high is None else each.high * scale,
            is_winner=each.outcome == "beats",
            beats_winner=each.worse,
        )
        for each in sorted(verdict.comparisons, key=lambda each: each.difference)
    ]

    def draw(axes: Axes) -> None:
        axes.axvline(0, color=COLOURS["ink"], linewidth=1)
        _estimates(axes, rows)
        axes.set_xlabel(in_lines(f"{verdict.winner} − the other, held-out items{unit}", _LEGEND_WIDTH))

    text = (
        "Right of 0 the winner is better. An interval that reaches 0 is no evidence. Filled are differences that hold "
        "after the correction for all comparisons: dots where it beats the other, squares where it is beaten."
    )
    return drawn("leads", "By how much it wins", text, _height(len(rows), _labels(rows)), draw)


def task_scores(
    tasks: Sequence[str], rows: Mapping[str, Mapping[str, Estimate]], part: str, lower: Collection[str] = ()
) -> Picture:
    """The scores of a few rows on every task, with two standard errors to each side.

    Perplexities and other scores beyond 1 have no common scale with shares: they are drawn relative to their largest.

    Args:
        rows: name of the row -> task -> its score. The first is the winner.
        lower: tasks whose lower scores are the better ones.
    """
    names = list(rows)
    largest = {task: max((abs(row[task].value) for row in rows.values() if task in row), default=0.0) for task in tasks}
    scales = {task: value for task, value in largest.items() if value > 1}
    labels = [
        in_lines(
            task_label(task, task not in lower) + (f" (of {scales[task]:.3g})" if task in scales else ""), _NAME_WIDTH
        )
        for task in tasks
    ]
    one_column = sum(map(len, names)) > _LEGEND_WIDTH
    colours = [COLOURS["winner"], COLOURS["second"], COLOURS["other"]]

    def draw(axes: Axes) -> None:
        for place, name in enumerate(names):
            shift = (place - (len(names) - 1) / 2) * 0.22
            for line, task in enumerate(tasks):
                if (score := rows[name].get(task)) is not None:
                    shown = _scaled(score, scales.get(task, 1))
                    _estimate(axes, shown, line + shift, colours[place % 3], filled=True)
            axes.plot([], [], "o", color=colours[place % 3], markersize=5, label=in_lines(name, _LEGEND_WIDTH))
        axes.set_yticks(range(len(tasks)), labels)
        axes.set_ylim(len(tasks) - 0.5, -0.5)
        axes.grid(axis="x", color=COLOURS["grid"], linewidth=0.6)
        columns = 1 if one_column else len(names)
        axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=columns, fontsize=8.5, handletextpad=0.2)

    text = f"On the {part} items; bars are two standard errors to each side."
    text += f" {LESS_IS_BETTER}." if set(lower) & set(tasks) else ""
    text += " Scores beyond 1 are drawn as a share of the largest one, which is beside the task." if scales else ""
    height = _height(1.7 * len(tasks), labels) + (0.2 * len(names) if one_column else 0)
    return drawn("tasks", "Scores by task", text, height, draw)


def _scaled(score: Estimate, scale: float) -> Estimate:
    low, high = (None if end is None else end / scale for end in (score.low, score.high))
    return replace(score, value=score.value / scale, low=low, high=high)


def course(found: SearchCourse, others: Mapping[str, SearchCourse] | None = None, left_out: str = "") -> Picture:
    """The values of the trials over what was spent, the best so far as a line, and what costs less as levels.

    Args:
        others: further searches by name, of which only the best so far is drawn.
        left_out: a sentence on a search that cannot be drawn beside this one.
    """

    def draw(axes: Axes) -> None:
        points = thinned(found.points)
        axes.plot(
            [point.spent for point in points],
            [point.value for point in points],
            "o",
            color=COLOURS["other"],
            markersize=3,
            alpha=0.6,
            markeredgewidth=0,
        )
        for level in found.levels:
            axes.axhline(level.value, color=COLOURS["muted"], linewidth=0.9, linestyle=(0, (4, 3)))
        _best_so_far(axes, found, COLOURS["winner"])
        for other in (others or {}).values():
            _best_so_far(axes, other, COLOURS["second"])
        _focus(axes, found, (others or {}).values())
        _level_names(axes, found.levels)
        axes.set_xlabel("forwards spent (passes of one item)" if found.unit == "forwards" else "trials")
        axes.set_ylabel("objective, search items")
        axes.xaxis.set_major_formatter(_in_thousands)

    text = "Each dot is a trial, the line is the best so far; dashed: the best source and the best baselines."
    if others:
        text += f" The second line is {', '.join(others)}."
    text += f" {left_out}" if left_out else ""
    hidden = f" {counted(found.failed, 'trial')} failed." if found.failed else ""
    hidden += f" {found.dropped} were dropped early." if found.dropped else ""
    return drawn("course", "Score over what was spent", text + hidden, 3.2, draw)


def weights(found: DepthWeights, name: str, label: str) -> Picture:
    """The weights over depth of a recipe as a heat map: blue adds a source, orange takes it away."""
    wide = len(found.columns) <= 12
    sources = [in_lines(source, _NAME_WIDTH) for source in found.sources]

    def draw(axes: Axes) -> None:
        from matplotlib.patches import Rectangle

        for line, row in enumerate(found.values):
            for column, value in enumerate(row):
                if not math.isfinite(value):
                    continue
                colour = COLOURS["positive" if value >= 0 else "negative"]
                share = abs(value) / found.largest
                axes.add_patch(Rectangle((column - 0.5, line - 0.5), 1, 1, facecolor=colour, alpha=share, linewidth=0))
                if wide:
                    text = f"{value:.2f}".replace("-", "−")
                    ink = COLOURS["paper"] if share > 0.6 else COLOURS["ink"]
                    axes.text(column, line, text, ha="center", va="center", fontsize=8.5, color=ink)
        axes.set_xlim(-0.5, len(found.columns) - 0.5)
        axes.set_ylim(len(found.sources) - 0.5, -0.5)
        axes.set_yticks(range(len(found.sources)), sources)
        step = math.ceil(len(found.columns) / 12)
        shown = range(0, len(found.columns), step)
        axes.set_xticks(list(shown), [found.columns[column] for column in shown])
        axes.set_xlabel("" if found.columns == ("all",) else "layer")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)

    text = (
        f"Weight of each source in each layer; blue is added, orange taken away, the strongest is "
        f"{found.largest:.2f}. Trained coefficients count by their mean."
    )
    return drawn(name, f"Weights over depth: {label}", text, _height(1.1 * len(sources), sources), draw)


def both_parts(rows: Sequence[BothParts]) -> Picture:
    """Search against held-out scores, the winner marked."""

    def draw(axes: Axes) -> None:
        values = [value for row in rows for value in (row.search, row.held_out)]
        low, high = min(values), max(values)
        room = 0.06 * (high - low) or 0.05
        axes.plot([low - room, high + room], [low - room, high + room], color=COLOURS["muted"], linewidth=0.9)
        for row in rows:
            colour = COLOURS[{"best": "winner", "trial": "second"}.get(row.kind, "other")]
            axes.errorbar(
                row.search,
                row.held_out,
                xerr=row.search_stderr,
                yerr=row.held_out_stderr,
                fmt="o",
                color=colour,
                markersize=7 if row.kind == "best" else 4,
                elinewidth=0.8,
                zorder=3 if row.kind == "best" else 2,
            )
        for kind, colour, label in (
            ("best", "winner", "winner"),
            ("trial", "second", "other trials"),
            ("", "other", "sources and baselines"),
        ):
            if kind == "" or any(row.kind == kind for row in rows):
                axes.plot([], [], "o", color=COLOURS[colour], markersize=5, label=label)
        axes.legend(loc="upper left", fontsize=8.5, handletextpad=0.2)
        axes.set_xlabel("objective, search items")
        axes.set_ylabel("objective, held-out items")

    text = (
        "Below the line a row does worse on items that the search never saw. The winner was picked on the horizontal "
        "axis and is judged on the vertical one; bars are one standard error."
    )
    return drawn("both-parts", "Search against held-out", text, 3.9, draw)


def winners_curse(rows: Sequence[BothParts], verdict: Verdict | None) -> Picture:
    """The gap between search and held-out of every row: what the winner has more than the others is its luck."""
    chosen = [row for row in rows if row.kind == "best"]
    chosen += _best_of(rows, {"trial"}, 3) + _best_of(rows, {"source", "baseline"}, 8)

    def draw(axes: Axes) -> None:
        axes.axvline(0, color=COLOURS["ink"], linewidth=1)
        if verdict is not None and verdict.reference_gap is not None:
            axes.axvline(verdict.reference_gap, color=COLOURS["muted"], linewidth=0.9, linestyle=(0, (4, 3)))
        _estimates(axes, [_gap(row) for row in chosen])
        axes.set_xlabel("search − held-out (objective)")

    height = _height(len(chosen), _labels([_gap(row) for row in chosen]))
    text = "The best of many looks better on the items that it was picked on than it is: the winner's curse. "
    if verdict is not None and verdict.reference_gap is not None:
        text += "Dashed: the mean of rows that these items did not choose. "
    return drawn("curse", "The winner's curse", text + "Bars are two standard errors.", height, draw)


def _best_of(rows: Sequence[BothParts], kinds: Collection[str], count: int) -> list[BothParts]:
    return sorted((row for row in rows if row.kind in kinds), key=lambda row: -row.search)[:count]


def _gap(row: BothParts) -> Estimate:
    low = high = None
    if row.search_stderr is not None and row.held_out_stderr is not None:
        spread = 2 * math.hypot(row.search_stderr, row.held_out_stderr)
        low, high = row.gap - spread, row.gap + spread
    return Estimate(name=row.name, value=row.gap, low=low, high=high, is_winner=row.kind == "best")


def _labels(rows: Sequence[Estimate]) -> list[str]:
    return [in_lines(row.name, _NAME_WIDTH) for row in rows]


def _estimates(axes: Axes, rows: Sequence[Estimate]) -> None:
    for line, row in enumerate(rows):
        role = "winner" if row.is_winner else "second" if row.beats_winner else "other"
        _estimate(axes, row, line, COLOURS[role], filled=role != "other")
    axes.set_yticks(range(len(rows)), _labels(rows))
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(axis="x", color=COLOURS["grid"], linewidth=0.6)


def _estimate(axes: Axes, row: Estimate, line: float, colour: str, *, filled: bool) -> None:
    if row.low is not None and row.high is not None:
        axes.plot([row.low, row.high], [line, line], color=colour, linewidth=1.6, solid_capstyle="round")
    face = colour if filled else COLOURS["paper"]
    marker = "s" if row.beats_winner else "o"
    axes.plot([row.value], [line], marker, color=colour, markersize=6, markerfacecolor=face)


def _best_so_far(axes: Axes, found: SearchCourse, colour: str) -> None:
    if found.best:
        spent = [*(point.spent for point in found.best), found.spent]
        values = [*(point.value for point in found.best), found.best[-1].value]
        axes.step(spent, values, where="post", color=colour, linewidth=2)


def _focus(axes: Axes, found: SearchCourse, others: Iterable[SearchCourse]) -> None:
    """Limits that show the better trials, all levels and what others found: a few poor ones would flatten the rest."""
    values = sorted(point.value for point in found.points)
    if not values:
        return
    kept = [*values[len(values) // 10 :], *(level.value for level in found.levels)]
    kept += [each.best[-1].value for each in others if each.best]
    room = 0.06 * (max(kept) - min(kept)) or 0.05
    axes.set_ylim(min(kept) - room, max(kept) + room)


def _level_names(axes: Axes, levels: Sequence[Level]) -> None:
    """The names of the levels at the right, pushed apart where levels are close."""
    low, high = axes.get_ylim()
    least, top = 0.055 * (high - low), -math.inf
    for level in sorted(levels, key=lambda each: each.value):
        name = in_lines(level.name, _NAME_WIDTH)
        half = least * (name.count("\n") + 1) / 2
        place = max(level.value, top + half)
        top = place + half
        axes.annotate(
            name,
            (1.01, place),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=8.5,
            color=COLOURS["muted"],
            annotation_clip=False,
        )


def _in_thousands(value: float, _: float) -> str:
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:g} {unit}"
    return f"{value:g}"


def _height(rows: float, labels: Sequence[str]) -> float:
    """Inches for so many rows, or for labels of several lines that need more."""
    most = max((label.count("\n") + 1 for label in labels), default=1)
    return 0.95 + max(0.24 * max(rows, 2), 0.17 * len(labels) * most)

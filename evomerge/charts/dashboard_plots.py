"""The plots of a search in Optuna Dashboard, written when it ends and now and then while it runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from textwrap import wrap
from typing import Any, Final

from evomerge.charts.both_parts import BothParts, both_parts
from evomerge.charts.depth_weights import DepthWeights, depth_weights
from evomerge.charts.search_course import CoursePoint, SearchCourse, search_course, thinned
from evomerge.clock import SYSTEM_CLOCK, Clock
from evomerge.object_store.artifact_folder import ArtifactFolder
from evomerge.recipe import Recipe, all_files
from evomerge.storage.opening import in_transaction
from evomerge.study.dashboard import PlotlyFigure, write_plot
from evomerge.study.stored_search import StoredSearch
from evomerge.verdict.headline import headline
from evomerge.verdict.records import read_verdict
from evomerge.verdict.verdict import Verdict

SECONDS: Final = 600.0  # between two writes while a search runs

_TITLE: Final = 64  # characters in a line of a long title
_BLUE, _GREY, _ORANGE = "#1a6fd4", "#8b949e", "#c2571a"


class DashboardPlots:
    """Writes the plots of one study, at rare intervals: each write takes as long as dozens of trials.

    Args:
        stored: the study, by which nothing is written but the plots.
        artifacts: where the files of recipes are.
        check_hold: raises when another controller has taken the study over; called before each write.
    """

    def __init__(
        self,
        stored: StoredSearch,
        artifacts: ArtifactFolder,
        *,
        check_hold: Callable[[], None] = lambda: None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._stored = stored
        self._artifacts = artifacts
        self._check_hold = check_hold
        self._clock = clock
        self._written = clock.monotonic()

    def refresh(self) -> None:
        """Write the plots again where the latest ones are old."""
        if self._clock.monotonic() - self._written >= SECONDS:
            self.write()

    def write(self, best: Recipe | None = None) -> None:
        """Write the plots.

        Args:
            best: the winner's recipe, where it has been named.
        """
        figures = {"search-course": course_figure(search_course(self._stored))}
        if rows := both_parts(self._stored):
            figures |= {"both-parts": parts_figure(rows), "winners-curse": gaps_figure(rows)}
        if (verdict := read_verdict(self._stored.study)) is not None:
            figures["verdict"] = verdict_figure(verdict)
        if best is not None:
            self._artifacts.fetch_files(all_files(best))
            if (weights := depth_weights(best, self._artifacts.files)) is not None:
                figures["weights"] = weights_figure(weights)

        def store() -> None:
            self._check_hold()
            for name, figure in figures.items():
                write_plot(self._stored.study, name, figure)

        in_transaction(self._stored.storage, store)
        self._written = self._clock.monotonic()


def verdict_figure(verdict: Verdict) -> PlotlyFigure:
    """The winner's leads with their intervals on the held-out items, under the verdict in one sentence."""
    scale = 1 if verdict.unit == "plain" else 100
    rows = sorted(verdict.comparisons, key=lambda each: -each.difference)
    shown = _scatter(
        [each.difference * scale for each in rows], [each.name for each in rows], "lead", _BLUE, mode="markers"
    )
    lows = [each.difference if each.low is None else each.low for each in rows]
    highs = [each.difference if each.high is None else each.high for each in rows]
    shown["error_x"] = {
        "type": "data",
        "symmetric": False,
        "array": [(high - each.difference) * scale for each, high in zip(rows, highs, strict=True)],
        "arrayminus": [(each.difference - low) * scale for each, low in zip(rows, lows, strict=True)],
    }
    title = "<br>".join(wrap(headline(verdict).text, _TITLE))
    unit = "" if verdict.unit == "plain" else f" ({verdict.unit})"
    figure = _figure([shown], title, f"{verdict.winner} − the other, held-out items{unit}", "")
    figure.layout["title"]["font"] = {"size": 14}
    figure.layout["xaxis"]["zerolinewidth"] = 2
    return figure


def course_figure(course: SearchCourse) -> PlotlyFigure:
    """Value over what was spent, the best so far as a line, the best source and baselines as levels."""
    points = thinned(course.points)
    end = course.spent or 1.0
    best = [*course.best, *(CoursePoint(trial=each.trial, spent=end, value=each.value) for each in course.best[-1:])]
    data = [
        _scatter([each.spent for each in points], [each.value for each in points], "trials", _GREY, mode="markers"),
        _scatter([each.spent for each in best], [each.value for each in best], "best so far", _BLUE, mode="lines"),
        *(_level(level.name, level.value, end) for level in course.levels),
    ]
    data[1]["line"]["shape"] = "hv"
    return _figure(data, "Score over what was spent", f"{course.unit} spent", "objective, search items")


def parts_figure(rows: Sequence[BothParts]) -> PlotlyFigure:
    """Search against held-out values, with standard errors."""
    ends = [min(min(row.search, row.held_out) for row in rows), max(max(row.search, row.held_out) for row in rows)]
    data = [_scatter(ends, ends, "equal", _GREY, mode="lines")]
    for title, colour, kinds in (
        ("sources and baselines", _GREY, ("source", "baseline")),
        ("other trials", _ORANGE, ("trial",)),
        ("winner", _BLUE, ("best",)),
    ):
        chosen = [row for row in rows if row.kind in kinds]
        shown = _scatter(
            [row.search for row in chosen], [row.held_out for row in chosen], title, colour, mode="markers"
        )
        shown["text"] = [row.name for row in chosen]
        shown["error_x"] = {"type": "data", "array": [row.search_stderr or 0.0 for row in chosen]}
        shown["error_y"] = {"type": "data", "array": [row.held_out_stderr or 0.0 for row in chosen]}
        data.append(shown)
    return _figure(data, "Search against held-out", "objective, search items", "objective, held-out items")


def gaps_figure(rows: Sequence[BothParts]) -> PlotlyFigure:
    """Search − held-out of every row, the winner last."""
    colours = [_BLUE if row.kind == "best" else _GREY for row in rows]
    bars = {
        "type": "bar",
        "orientation": "h",
        "x": [row.gap for row in rows],
        "y": [row.name for row in rows],
        "marker": {"color": colours},
    }
    return _figure([bars], "The winner's curse: search − held-out", "search − held-out (objective)", "")


def weights_figure(weights: DepthWeights) -> PlotlyFigure:
    """Weights over depth of a recipe as a heat map."""
    heat = {
        "type": "heatmap",
        "x": list(weights.columns),
        "y": list(weights.sources),
        "z": [[value if math.isfinite(value) else None for value in row] for row in weights.values],
        "zmid": 0,
        "colorscale": [[0, _ORANGE], [0.5, "#f0f2f4"], [1, _BLUE]],
    }
    figure = _figure([heat], "Weights over depth of the best found", "layer", "")
    figure.layout["yaxis"]["autorange"] = "reversed"
    figure.layout["xaxis"]["type"] = "category"
    return figure


def _scatter(
    x: Sequence[float], y: Sequence[float] | Sequence[str], name: str, colour: str, *, mode: str
) -> dict[str, Any]:
    look = "line" if mode == "lines" else "marker"
    return {"type": "scatter", "mode": mode, "x": list(x), "y": list(y), "name": name, look: {"color": colour}}


def _level(name: str, value: float, end: float) -> dict[str, Any]:
    level = _scatter([0.0, end], [value, value], name, _GREY, mode="lines")
    level["line"]["dash"] = "dash"
    return level


def _figure(data: list[dict[str, Any]], title: str, x: str, y: str) -> PlotlyFigure:
    layout: dict[str, Any] = {
        "title": {"text": title},
        "xaxis": {"title": {"text": x}, "automargin": True},
        "yaxis": {"title": {"text": y}, "automargin": True},
    }
    return PlotlyFigure(data, layout)

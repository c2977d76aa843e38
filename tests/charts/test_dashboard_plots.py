"""The plots of Optuna Dashboard: of a search that ran, as the dashboard reads them, and rarely written."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from optuna_dashboard._custom_plot_data import get_plotly_graph_objects

from evomerge import load_spec, run_search
from evomerge.charts.dashboard_plots import SECONDS, DashboardPlots, course_figure
from evomerge.charts.search_course import search_course, thinned
from evomerge.clock import ManualClock
from evomerge.leaderboard import leaderboard
from evomerge.object_store.artifact_folder import ArtifactFolder
from evomerge.page import figures
from evomerge.storage import attributes
from evomerge.storage.opening import release
from evomerge.study.stored_search import read_search
from evomerge.verdict.headline import headline
from evomerge.verdict.records import read_verdict

FORMAT = Path(__file__).parent.parent.parent / "docs" / "study_format.md"
ITEMS = {"name": "synthetic", "items": 200}


@pytest.fixture
def stored(write_spec):
    spec = load_spec(write_spec())
    run_search(spec, ray="none")
    found = read_search(spec)
    yield found
    release(found.storage)


def plots_of(stored):
    found = stored.storage.get_study_system_attrs(stored.study._study_id)
    return {name: json.loads(text) for name, text in get_plotly_graph_objects(found).items()}


def test_a_finished_search_has_its_plots(stored):
    plots = plots_of(stored)
    assert set(plots) == {"verdict", "search-course", "both-parts", "winners-curse", "weights"}
    [documented] = re.findall(r"`dashboard:plot_data:NAME:…` \((.*?)\)", FORMAT.read_text(encoding="utf-8"))
    assert {name.strip("`") for name in documented.split(", ")} == set(plots)
    assert all(set(plot) == {"data", "layout"} for plot in plots.values())
    lines = {line.label: line for line in leaderboard(stored) if line.kind in ("source", "baseline")}
    levels = {each["name"]: each["y"] for each in plots["search-course"]["data"][2:]}
    assert levels
    assert levels == {name: [lines[name].search.value] * 2 for name in levels}
    heat = plots["weights"]["data"][0]
    assert heat["y"] == ["reverse", "sort"]
    verdict, [leads] = read_verdict(stored.study), plots["verdict"]["data"]
    assert plots["verdict"]["layout"]["title"]["text"].replace("<br>", " ") == headline(verdict).text
    assert dict(zip(leads["y"], leads["x"], strict=True)) == {
        each.name: pytest.approx(100 * each.difference) for each in verdict.comparisons
    }
    ends = zip(leads["y"], leads["x"], leads["error_x"]["arrayminus"], strict=True)
    assert {name: value - below for name, value, below in ends} == {
        each.name: pytest.approx(100 * each.low) for each in verdict.comparisons
    }


def test_the_course_spends_what_the_leaderboard_says_and_never_gets_worse(stored):
    course = search_course(stored)
    best = next(line for line in leaderboard(stored) if line.kind == "best")
    assert (course.unit, course.points[-1].spent) == ("forwards", best.forwards)
    values = [point.value for point in course.best]
    assert values == sorted(set(values))
    assert course.best[-1].value == best.search.value == max(point.value for point in course.points)


def test_the_line_of_the_best_goes_on_to_all_that_was_spent(write_spec):
    spec = load_spec(write_spec(budget={"trials": 12}, evaluator=ITEMS, fidelity={"name": "hyperband", "minimum": 8}))
    run_search(spec, ray="none")
    stored = read_search(spec)
    course, status = search_course(stored), stored.study.user_attrs[attributes.STATUS]
    assert course.dropped > 0
    assert course.points[-1].spent < course.spent == status["forwards"]
    [line] = [each for each in course_figure(course).data if each["name"] == "best so far"]
    assert line["x"][-1] == course.spent
    release(stored.storage)


def test_the_picture_of_a_comparison_shows_what_the_other_search_found(stored, monkeypatch):
    axes = Figure().add_subplot()
    monkeypatch.setattr(figures, "drawn", lambda name, title, text, height, draw: draw(axes))
    mine = search_course(stored)
    better = tuple(replace(point, value=point.value + 9) for point in mine.best)
    figures.course(mine, {"other": replace(mine, best=better)})
    assert axes.get_ylim()[1] > better[-1].value


def test_plots_are_written_again_only_when_they_are_old(stored, monkeypatch):
    writes = []
    monkeypatch.setattr(
        "evomerge.charts.dashboard_plots.write_plot",
        lambda study, name, figure: writes.append((name, figure.to_json())),
    )
    clock = ManualClock()
    plots = DashboardPlots(stored, ArtifactFolder(stored.artifacts), clock=clock)
    for _ in range(100):
        plots.refresh()
    assert writes == []
    clock.advance(SECONDS)
    for _ in range(100):
        plots.refresh()
    assert [name for name, _ in writes] == ["search-course", "both-parts", "winners-curse", "verdict"]


@pytest.mark.parametrize(("count", "kept"), [(0, 0), (1, 1), (10, 10), (25, 9)])
def test_a_chart_has_room_for_so_many_points_the_last_one_among_them(count, kept):
    points = thinned(range(count), 10)
    assert len(points) == kept
    assert list(points[-1:]) == list(range(count))[-1:]

"""The content of a page: the answer, then tables and pictures, all from leaderboard, verdict and charts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from evomerge.baselines.freshness import current_baselines
from evomerge.charts.both_parts import both_parts
from evomerge.charts.depth_weights import depth_weights
from evomerge.charts.search_course import SearchCourse, search_course
from evomerge.checkpoints.location import is_hub_id
from evomerge.errors import InvalidInput
from evomerge.leaderboard import Line, leader_of, leaderboard
from evomerge.licenses import read_license
from evomerge.object_store.artifact_folder import ArtifactFolder
from evomerge.page import figures
from evomerge.page.page_tables import (
    Cell,
    PageTable,
    comparison_table,
    cost_table,
    leaderboard_table,
    line_name,
    lower_is_better,
    part_of_line,
    task_table,
)
from evomerge.page.pictures import Picture
from evomerge.page.study_state import answer, state, warnings
from evomerge.recipe import Recipe, all_files
from evomerge.report.paths import exported_digest, exports
from evomerge.spec import SourceSpec
from evomerge.study.rows import Record, read_records
from evomerge.study.snapshot import snapshot_of
from evomerge.study.stored_search import StoredSearch
from evomerge.verdict import Verdict, read_winner
from evomerge.verdict.headline import Headline
from evomerge.verdict.records import read_verdict
from evomerge.verdict.sentences import amount

TOP = 10  # trials in the leaderboard
LEARNED = ("learned", "learned-groups", "learned-tensor", "learned-column", "dam", "adamerging", "adamerging-task")


@dataclass(frozen=True, kw_only=True)
class Fact:
    """A number that is shown large, with what it is."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class PageContent:
    """All that a page shows of one study.

    Attributes:
        headline: the answer in one sentence.
        sentence: the verdict in full; empty before there is one.
        state: of the search, in one line.
    """

    name: str
    headline: Headline
    sentence: str
    state: str
    facts: tuple[Fact, ...]
    warnings: tuple[str, ...]
    tables: Mapping[str, PageTable]
    pictures: Mapping[str, Picture]
    course: SearchCourse
    lines: tuple[Line, ...]
    verdict: Verdict | None


def page_content(
    stored: StoredSearch, others: Mapping[str, SearchCourse] | None = None, left_out: str = ""
) -> PageContent:
    """The content of the page of a study, finished or not.

    Args:
        others: the courses of further searches, drawn beside this one's.
        left_out: a sentence on a course that is not drawn there.
    """
    drawn_beside = (others or {}, left_out)
    lines, verdict, course = leaderboard(stored, TOP), read_verdict(stored.study), search_course(stored)
    found = answer(stored, lines, verdict)
    return PageContent(
        name=stored.spec.name,
        headline=found,
        sentence="" if verdict is None else verdict.sentence,
        state=state(stored, course),
        facts=tuple(_facts(lines, verdict, found)),
        warnings=tuple(warnings(stored, lines, verdict)),
        tables={table.name: table for table in _tables(stored, lines, verdict)},
        pictures={picture.name: picture for picture in _pictures(stored, lines, verdict, course, drawn_beside)},
        course=course,
        lines=tuple(lines),
        verdict=verdict,
    )


def _facts(lines: Sequence[Line], verdict: Verdict | None, found: Headline) -> list[Fact]:
    best = next((line for line in lines if line.kind == "best"), None)
    facts = []
    if best is not None and best.held_out is not None:
        error = "" if best.held_out.stderr is None else f"± {best.held_out.stderr:.3f}"
        facts.append(Fact(name="held-out score", value=f"{best.held_out.value:.3f}", note=error))
    if verdict is not None and found.against is not None:
        unit = "" if verdict.unit == "plain" else f"{verdict.unit} "
        lead = amount(found.against.difference, verdict.unit, signed=True).removesuffix(" points")
        facts.append(Fact(name=f"{unit}over {found.against.name}", value=lead))
    if best is not None and best.forwards is not None:
        facts.append(Fact(name="forwards spent", value=f"{best.forwards:,.0f}"))
    return facts


def _tables(stored: StoredSearch, lines: Sequence[Line], verdict: Verdict | None) -> list[PageTable]:
    part = _part(lines)
    tables = [leaderboard_table(lines), task_table(lines, _tasks(lines, part), part), cost_table(lines)]
    if verdict is not None and verdict.comparisons:
        tables.append(comparison_table(verdict))
    return [*tables, _source_table(stored)]


def _source_table(stored: StoredSearch) -> PageTable:
    rows = [
        (Cell(source.name), Cell(source.location if is_hub_id(source.location) else "local"), Cell(_license(source)))
        for source in stored.spec.sources
    ]
    return PageTable(
        name="sources",
        title="Sources and their licences",
        columns=("source", "model", "licence"),
        rows=tuple(rows),
        text="As the README of each source declares it, where that is on this machine. A merge has to respect all.",
    )


def _license(source: SourceSpec) -> str:
    folder = Path(source.location).expanduser()
    if is_hub_id(source.location):
        cached = try_to_load_from_cache(source.location, "README.md", revision=source.revision)
        if not isinstance(cached, str):
            return "not known here"
        folder = Path(cached).parent
    return read_license(folder).label or "not declared"


def _part(lines: Sequence[Line]) -> str:
    return "held-out" if any(line.held_out for line in lines) else "search"


def _tasks(lines: Sequence[Line], part: str) -> list[str]:
    return list(next((found.tasks for line in lines if (found := part_of_line(line, part)) is not None), {}))


def _pictures(
    stored: StoredSearch,
    lines: Sequence[Line],
    verdict: Verdict | None,
    course: SearchCourse,
    beside: tuple[Mapping[str, SearchCourse], str],
) -> list[Picture]:
    found = []
    if verdict is not None and verdict.comparisons:
        found.append(figures.leads(verdict))
    part = _part(lines)
    if chosen := _rows_by_task(lines, part, leader_of(stored, lines)):
        found.append(figures.task_scores(_tasks(lines, part), chosen, part, lower_is_better(lines, part)))
    if course.points:
        found.append(figures.course(course, *beside))
    artifacts = ArtifactFolder(stored.artifacts)
    drawn = set()
    for name, label, recipe in _drawn_recipes(stored):
        artifacts.fetch_files(all_files(recipe))
        weights = depth_weights(recipe, artifacts.files)
        if weights is not None and repr(weights) not in drawn:  # a winner may be a baseline itself; NaN equals nothing
            drawn.add(repr(weights))
            found.append(figures.weights(weights, name, label))
    if rows := both_parts(stored):
        found += [figures.both_parts(rows), figures.winners_curse(rows, verdict)]
    return found


def _rows_by_task(lines: Sequence[Line], part: str, leader: Line | None) -> dict[str, dict[str, figures.Estimate]]:
    """The winner or leader, the best baseline and the best source with their scores by task."""
    scored = sorted(
        ((line, found) for line in lines if (found := part_of_line(line, part)) is not None),
        key=lambda each: -each[1].value,
    )
    best = [each for each in scored if each[0] is leader] or [each for each in scored if each[0].kind == "trial"]
    shown = {line.recipe for line, _ in best[:1]}  # the winner may be a baseline itself
    baselines = [
        each for each in scored if each[0].kind == "baseline" and not each[0].models and each[0].recipe not in shown
    ]
    sources = [each for each in scored if each[0].kind == "source"]
    return {
        line_name(line): {
            task: figures.Estimate(
                name=task,
                value=score["value"],
                low=None if score["stderr"] is None else score["value"] - 2 * score["stderr"],
                high=None if score["stderr"] is None else score["value"] + 2 * score["stderr"],
            )
            for task, score in found.tasks.items()
        }
        for line, found in (*best[:1], *baselines[:1], *sources[:1])
    }


def _drawn_recipes(stored: StoredSearch) -> list[tuple[str, str, Recipe]]:
    """(name, label, recipe) of the winner, where the study or an export has it, and of the first learned baseline."""
    rows = [] if stored.baselines is None else read_records(stored.baselines)
    baselines = current_baselines(rows, stored.spec, snapshot_of(stored.study))
    found = []
    winner = read_winner(stored.study.user_attrs)
    if winner is not None and (recipe := _recipe_of(stored, winner.digest, baselines)) is not None:
        found.append(("weights-best", f"the best found ({winner.label})", recipe))
    learned = {row.label: row for row in baselines if row.label in LEARNED and row.model_count == 1}
    for label in LEARNED:
        if label in learned:
            return [*found, ("weights-learned", label, learned[label].recipe)]
    return found


def _recipe_of(stored: StoredSearch, digest: str, baselines: Sequence[Record]) -> Recipe | None:
    rows = [] if stored.held_out is None else read_records(stored.held_out)
    for row in (*rows, *baselines):
        if row.digest == digest and row.model_count == 1:
            try:
                return row.recipe
            except InvalidInput:  # a row that keeps none
                continue
    for directory in exports(stored):
        if exported_digest(directory) == digest:
            return Recipe.from_json((directory / "recipe.json").read_text(encoding="utf-8"))
    return None

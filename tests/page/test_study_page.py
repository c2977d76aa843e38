"""The page of a study: the verdict first, every number that of the leaderboard, one file that needs nothing else."""

import dataclasses
import html
import json
import re
import shutil
import sys
from pathlib import Path

import optuna
import pytest
import yaml
from browser import page_of
from optuna.trial import TrialState

from evomerge import load_spec, run_search
from evomerge.charts.depth_weights import DepthWeights
from evomerge.charts.search_course import CoursePoint, Level, SearchCourse
from evomerge.cli import run_command
from evomerge.leaderboard import Line, PartScore, leaderboard
from evomerge.page import figures, pictures
from evomerge.page.page_content import _facts, page_content
from evomerge.page.page_tables import task_table
from evomerge.page.study_comparison import study_comparison
from evomerge.page.study_page import rendered, write_report
from evomerge.storage import attributes
from evomerge.storage.attributes import read_text, write_text
from evomerge.storage.opening import release
from evomerge.study.stored_search import read_search
from evomerge.verdict.headline import headline
from evomerge.verdict.records import read_verdict
from evomerge.verdict.verdict import Comparison, Verdict

TOY = Path(__file__).parents[2] / "examples" / "toy" / "models"
CONTENT = {
    "name": "sim",
    "sources": [{"name": name, "location": str(TOY / name)} for name in ("base", "reverse", "sort")],
    "space": "task-arithmetic-per-block",
    "evaluator": {"name": "synthetic", "items": 40},
    "budget": {"trials": 6},
    "workers": {"count": 1},
    "baselines": ["uniform-soup"],
    "seed": 1,
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a search with its verdict."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "search.yaml").write_text(yaml.safe_dump(CONTENT))
    run_search(load_spec(folder / "search.yaml"), ray="none")
    return folder


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of that folder, to be changed."""
    shutil.copytree(finished, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture
def opened():
    """A function that opens the study of a folder for reading."""
    found = []

    def opened_in(folder):
        found.append(read_search(load_spec(folder / "search.yaml")))
        return found[-1]

    yield opened_in
    for stored in found:
        release(stored.storage)


def text_of(page):
    """The text that a reader sees, tags left out."""
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", page)))


def without_verdict(folder):
    """Make the study one that has not named its winner yet; returns it for more changes."""
    url = f"sqlite:///{folder}/runs/sim/study.db"
    optuna.delete_study(study_name="sim/held-out", storage=url)
    study = optuna.load_study(study_name="sim", storage=url)
    for key in (attributes.WINNER, attributes.VERDICT):
        study.set_user_attr(key, None)
    study.set_user_attr(attributes.PHASE, "searching")
    return study


def test_the_page_says_first_what_won_by_how_much_and_whether_to_believe_it(finished, opened):
    stored = opened(finished)
    page = rendered(page_content(stored))
    verdict = read_verdict(stored.study)
    found = headline(verdict)
    first = text_of(page[page.index("<main>") :])[: len(found.belief) + len(found.text) + 8]
    assert found.belief in first
    assert found.text in first
    assert verdict.sentence in text_of(page)


def test_every_row_of_the_leaderboard_is_on_the_page_with_its_numbers(finished, opened):
    stored = opened(finished)
    text = text_of(rendered(page_content(stored)))
    lines = leaderboard(stored, 10)
    assert len(lines) > 6
    for line in lines:
        assert line.label in text
        for part in (line.search, line.held_out):
            assert part is None or f"{part.value:.3f}" in text


def test_the_page_needs_no_network(finished, opened):
    page = rendered(page_content(opened(finished)))
    assert "default-src 'none'" in page
    assert not re.search(r"<(link|img|iframe|object|embed)\b|\bsrc=|@import|url\((?!#)", page)
    assert set(re.findall(r"https?://[^\"' <]+", page)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }


def test_no_id_is_given_twice(finished, opened):
    ids = re.findall(r'\bid="([^"]+)"', rendered(page_content(opened(finished))))
    assert len(ids) > 20
    assert len(ids) == len(set(ids))


def test_names_are_text_and_never_markup(finished, opened):
    content = page_content(opened(finished))
    odd = "<script>alert(1)</script>"
    page = rendered(dataclasses.replace(content, name=odd, sentence=odd, warnings=(odd,)))
    assert odd not in page
    assert page.count("<script>") == 1


def test_a_search_that_still_runs_is_not_to_be_believed_yet(copied, opened):
    study = without_verdict(copied)
    study.tell(study.ask(), state=TrialState.FAIL)
    content = page_content(opened(copied))
    page = text_of(rendered(content))
    best = max(value for value in (trial.value for trial in study.trials) if value is not None)
    assert content.headline.belief == "not known yet"
    assert f"leads with {best:.3f} on the search items" in page
    assert "Do not believe it yet" in page
    assert "1 failed" in page
    assert "both-parts" not in content.pictures
    assert {"tasks", "course"} <= set(content.pictures)


@pytest.mark.parametrize(
    ("state", "says"), [("interrupted", "interrupted while searching"), ("running", "2 in flight")]
)
def test_a_search_that_was_broken_off_has_nothing_in_flight(copied, opened, state, says):
    study = without_verdict(copied)
    study.set_user_attr(attributes.STATUS, {**study.user_attrs[attributes.STATUS], "state": state, "running": 2})
    found = page_content(opened(copied)).state
    assert says in found
    assert ("in flight" in found) == (state == "running")


def missing_constraints(study, like, value):
    """Add a trial like another one, with a value, whose merge misses a constraint."""
    study.add_trial(
        optuna.trial.create_trial(
            value=value,
            params=like.params,
            distributions=like.distributions,
            user_attrs={**like.user_attrs, attributes.VIOLATIONS: [0.1]},
        )
    )


def test_no_trial_leads_that_misses_a_constraint_while_another_meets_all(copied, opened):
    study = without_verdict(copied)
    best = max(study.trials, key=lambda trial: trial.value)
    missing_constraints(study, best, 0.99)
    content = page_content(opened(copied))
    assert f"Trial {best.number} leads with {best.value:.3f}" in content.headline.text
    assert content.course.best[-1].trial == best.number
    assert "0.990" in text_of(rendered(content))


def test_where_every_trial_misses_a_constraint_the_page_says_so_of_the_leader(copied, opened):
    study = without_verdict(copied)
    attrs, like = study.user_attrs, study.trials[0]
    url = f"sqlite:///{copied}/runs/sim/study.db"
    optuna.delete_study(study_name="sim", storage=url)
    study = optuna.create_study(study_name="sim", storage=url, direction="maximize")
    for key, value in attrs.items():
        study.set_user_attr(key, value)
    missing_constraints(study, like, 0.5)
    assert "leads with 0.500" in page_content(opened(copied)).headline.text
    assert "but no trial meets all constraints" in page_content(opened(copied)).headline.text


def test_a_comparison_that_was_interrupted_is_not_called_one_that_has_not_begun(finished, copied, opened):
    study = optuna.load_study(study_name="sim", storage=f"sqlite:///{copied}/runs/sim/study.db")
    winner = read_verdict(opened(finished).study).winner
    study.set_user_attr(attributes.VERDICT, None)
    text = page_content(opened(copied)).headline.text
    assert text.startswith(f"{winner.capitalize()} leads with")
    assert "not all held-out items have been scored" in text


def test_a_study_without_a_trial_has_won_nothing(copied, opened):
    study = without_verdict(copied)
    url = f"sqlite:///{copied}/runs/sim/study.db"
    attrs = study.user_attrs
    for name in ("sim", "sim/baselines"):
        optuna.delete_study(study_name=name, storage=url)
    empty = optuna.create_study(study_name="sim", storage=url, direction="maximize")
    for key, value in attrs.items():
        empty.set_user_attr(key, value)
    page = rendered(page_content(opened(copied)))
    assert "Nothing has won: no trial of sim has a score yet." in page
    assert "<figure" not in page


def test_two_studies_stand_side_by_side(finished, copied, capsys):
    out = copied / "page.html"
    arguments = ["report", str(finished / "search.yaml"), "--compare", str(copied / "search.yaml")]
    assert run_command([*arguments, "--out", str(out)]) == 0
    text = text_of(out.read_text())
    assert "Compared with sim (the other)" in text
    assert "On the same held-out items the best of sim is 0.000 above that of sim" in text


def changed(folder, key, change):
    """Let the study store another document under a key."""
    study = optuna.load_study(study_name="sim", storage=f"sqlite:///{folder}/runs/sim/study.db")
    content = json.loads(read_text(study, key))
    change(content)
    write_text(study, key, json.dumps(content))


def comparison_of(*stored):
    pages = [page_content(each) for each in stored]
    return study_comparison(*stored, *pages).text


def test_no_course_is_drawn_over_one_that_it_cannot_be_compared_with(copied, finished, tmp_path, opened):
    def caption(stored, other):
        write_report(stored, tmp_path / "page.html", compare=other)
        return text_of((tmp_path / "page.html").read_text())

    assert "The second line is sim (the other)." in caption(opened(finished), opened(copied))
    changed(copied, attributes.SPEC, lambda spec: spec["objective"].update(normalise="sources"))
    text = caption(opened(finished), opened(copied))
    assert "The second line" not in text
    assert "sim (the other) has no line here. The two have different objectives" in text


def test_evaluators_are_compared_by_what_determines_their_scores(finished, copied, opened):
    changed(copied, attributes.SPEC, lambda spec: spec["evaluator"].update(noise=0.0))
    assert "On the same held-out items" in comparison_of(opened(finished), opened(copied))
    changed(copied, attributes.IDENTITY, lambda identity: identity.update(evaluator="another pack of the same path"))
    assert "by different evaluators" in comparison_of(opened(finished), opened(copied))


def test_scores_between_other_sources_are_no_common_scale(finished, copied, opened, tmp_path):
    shutil.copytree(finished, tmp_path / "one")
    for folder in (tmp_path / "one", copied):
        changed(folder, attributes.SPEC, lambda spec: spec["objective"].update(normalise="sources"))
    assert "On the same held-out items" in comparison_of(opened(tmp_path / "one"), opened(copied))
    changed(copied, attributes.IDENTITY, lambda identity: identity["sources"].update(sort="another model"))
    assert "compare tasks, not the objective" in comparison_of(opened(tmp_path / "one"), opened(copied))


def test_the_figures_are_written_as_png_too(finished, tmp_path, capsys):
    assert run_command(["report", str(finished / "search.yaml"), "--png", str(tmp_path / "png"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    written = sorted(Path(path).name for path in document["pictures"])
    assert written == sorted(
        f"{name}.png" for name in ("leads", "tasks", "course", "weights-best", "both-parts", "curse")
    )
    assert all(Path(path).read_bytes().startswith(b"\x89PNG") for path in document["pictures"])
    assert document["page"] is None


def test_what_is_missing_is_named_with_the_extra_that_brings_it(finished, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run_command(["report", str(finished / "search.yaml"), "--out", str(tmp_path / "a.html")]) == 2
    assert "pip install 'evomerge[report]'" in capsys.readouterr().err
    assert run_command(["report", str(finished / "search.yaml")]) == 2
    assert "--out FILE.html" in capsys.readouterr().err


def test_a_browser_shows_the_page_and_makes_its_tables_sortable(finished, opened, tmp_path):
    content = page_content(opened(finished))
    (tmp_path / "page.html").write_text(rendered(content))
    page = page_of(f"file://{tmp_path}/page.html", tmp_path, "--window-size=390,900")
    sortable = [table for name, table in content.tables.items() if name != "sources"]
    assert page.count('<button type="button">') == sum(len(table.columns) for table in sortable)
    assert content.headline.text in text_of(page)


def verdict_of(*comparisons, unit="points"):
    return Verdict(
        winner="trial 4", trial=4, search_value=None, held_out_value=0.6, gap=None, reference_gap=None, luck=None,
        lead=None, comparisons=comparisons, items=100, looks=1, unit=unit,
    )  # fmt: skip


def compared(baseline, difference, *, p=None, outcome="cannot be told"):
    return Comparison(
        baseline=baseline, difference=difference, low=None, high=None, stderr=None, p=p, adjusted_p=p,
        test="none", items=100, discordant=20, items_needed=None, outcome=outcome,
    )  # fmt: skip


def test_a_loss_that_holds_is_filled_and_has_another_mark_than_a_win(monkeypatch):
    marks = {}

    def seen(axes, row, line, colour, *, filled):
        place = len(axes.lines)
        drawn_row(axes, row, line, colour, filled=filled)
        dot = axes.lines[place]
        marks[row.name] = (dot.get_marker(), dot.get_markerfacecolor() == colour)

    drawn_row = figures._estimate
    monkeypatch.setattr(figures, "_estimate", seen)
    figures.leads(
        verdict_of(
            compared("won", 0.1, p=0.001, outcome="beats"),
            compared("lost", -0.1, p=0.001, outcome="does not beat"),
            compared("open", -0.01, p=0.6),
        )
    )
    assert marks == {"won": ("o", True), "lost": ("s", True), "open": ("o", False)}


def scored(**values):
    return {
        task: figures.Estimate(name=task, value=value, low=value * 0.9, high=None) for task, value in values.items()
    }


def test_a_task_whose_lower_scores_are_better_is_marked_in_the_table():
    scores = {
        task: {"value": 0.5, "stderr": None, "higher_is_better": task == "arc_easy"}
        for task in ("arc_easy", "wikitext")
    }
    part = PartScore(0.5, 0.01, scores)
    line = Line(label="trial 1", kind="best", trial=1, recipe="x", search=part, held_out=part, seconds=1.0)
    table = task_table([line], ["arc_easy", "wikitext"], "held-out")
    assert (table.columns, table.text) == (("model", "arc_easy", "wikitext ↓"), "↓: less is better.")


def test_perplexities_are_drawn_relative_to_the_largest_so_that_shares_can_be_told_apart(monkeypatch):
    drawn = []
    monkeypatch.setattr(pictures, "_png", lambda figure: drawn.append(figure) or b"")
    rows = {"best": scored(arc_easy=0.7, wikitext=12.0), "ties": scored(arc_easy=0.6, wikitext=18.0)}
    text = figures.task_scores(["arc_easy", "wikitext"], rows, "held-out", {"wikitext"}).text
    [axes] = drawn[0].axes
    assert axes.get_xlim()[1] < 1.1
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["arc_easy", "wikitext ↓ (of 18)"]
    assert "↓: less is better. Scores beyond 1 are drawn as a share of the largest one" in text


LONG = "leaderboard_bbh_logical_deduction_seven_objects_generative_cot"
MODEL = "smollm2-135m-instruct-finetuned-on-mathematics-and-code-v2-final"


@pytest.mark.parametrize("tasks", [["arc_easy"], ["arc_easy", "hellaswag", "gsm8k"], [LONG], [LONG, "hellaswag"]])
@pytest.mark.parametrize(
    "names",
    [
        ["best found (trial 12)", "ties", "math"],
        ["best found (trial 12)", "uniform-soup", "math-instr"],
        ["best found (trial 112)", "adamerging-from-best", "mistral-7b-openorca-math"],
        ["best found (trial 112)", "learned-groups", MODEL],
    ],
)
def test_every_name_lies_in_the_picture_however_long_it_is(tasks, names, monkeypatch):
    pictured = []
    monkeypatch.setattr(pictures, "_png", lambda figure: pictured.append(figure) or b"")
    figures.task_scores(tasks, {name: scored(**dict.fromkeys(tasks, 0.5)) for name in names}, "held-out")
    figures.leads(verdict_of(*(compared(name, 0.1) for name in names)))
    points = tuple(CoursePoint(trial=place, spent=float(place), value=0.5 + place / 10) for place in range(3))
    levels = tuple(Level(name, 0.5) for name in names)
    figures.course(
        SearchCourse(unit="trials", points=points, best=points, levels=levels, dropped=0, failed=0, spent=3.0)
    )
    weights = DepthWeights(sources=tuple(names), columns=("all",), values=((0.5,),) * len(names))
    figures.weights(weights, "weights", "ties")
    for figure in pictured:
        figure.draw_without_rendering()
        drawn, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
        assert 0 <= drawn.x0 <= drawn.x1 <= width
        assert 0 <= drawn.y0 <= drawn.y1 <= height
        assert figure.axes[0].get_position().width > 0.3


def test_the_lead_of_a_plain_objective_is_three_digits_even_where_it_is_as_large_as_numbers_get():
    verdict = verdict_of(compared("soup", sys.float_info.max), unit="plain")
    (fact,) = _facts([], verdict, headline(verdict))
    assert (fact.name, fact.value) == ("over soup", "+1.8e+308")

"""docs/python.md, run as it is written: its blocks, one after the other, in a folder with the examples."""

from __future__ import annotations

import re
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from transformers import AutoModelForCausalLM

from evomerge import build_spec
from evomerge.evaluation import EVALUATORS
from evomerge.methods import METHODS

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
SECTIONS = {
    part.partition("\n")[0]: "".join(re.findall(r"^```python\n(.*?)^```", part, re.MULTILINE | re.DOTALL))
    for part in PAGE.split("\n## ")[1:]
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The working directory of the blocks."""
    return tmp_path_factory.mktemp("page")


@pytest.fixture(scope="module")
def printed(folder):
    """Section -> what its block has printed. The names of a block are there for the next one."""
    (folder / "examples").symlink_to(ROOT / "examples")
    names: dict[str, object] = {"__name__": "page"}
    found: dict[str, list[str]] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for title, block in SECTIONS.items():
            found[title] = lines = []
            names["print"] = lambda *words, lines=lines: lines.append(" ".join(map(str, words)))
            exec(compile(block, title, "exec"), names)
        yield found
    EVALUATORS.pop("likelihood")
    METHODS.pop("median")


def trials_of(folder, name):
    storage = f"sqlite:///{folder}/runs/{name}/study.db"
    return optuna.load_study(study_name=name, storage=storage).trials


def test_the_first_search_has_ten_lines():
    block = SECTIONS["Ten lines"]
    assert len([line for line in block.splitlines() if line.strip()]) <= 11  # with the import


def test_a_spec_takes_paths_wherever_it_takes_texts():
    places = {name: ROOT / "examples" / "toy" / "models" / name for name in ("base", "reverse")}
    given = {"name": "first", "space": ROOT / "search_spaces" / "ties-per-block.yaml", "baselines": ["uniform-soup"]}
    given["evaluator"] = ROOT / "examples" / "private_task" / "words"
    texts = {**{key: str(value) for key, value in given.items()}, "baselines": ["uniform-soup"]}
    as_list = [{"name": name, "location": place} for name, place in places.items()]
    expected = build_spec(**texts, sources={name: str(place) for name, place in places.items()})
    assert build_spec(**given, sources=places) == expected
    assert build_spec(**given, sources=as_list, warm_start={"recipes": (ROOT / "a.json",)}).warm_start.recipes


def test_the_search_prints_its_best_trial_and_goes_on(printed, folder):
    assert len(printed["Ten lines"]) == 1
    assert [trial.state for trial in trials_of(folder, "first")] == [TrialState.COMPLETE] * 6


def test_the_callback_prints_the_new_trials(printed):
    assert [line.partition(",")[0] for line in printed["A callback for each trial"]] == [
        "trial 4: COMPLETE",
        "trial 5: COMPLETE",
    ]


def test_the_leaderboard_is_printed_with_a_sentence_and_the_export_loads(printed, folder):
    kinds = [line.split()[0] for line in printed["What was found"]]
    assert {"best", "source", "baseline"} <= set(kinds)
    assert "held-out" in printed["What was found"][-1]
    AutoModelForCausalLM.from_pretrained(folder / "first-best")


@pytest.mark.parametrize(
    ("title", "name"), [("An evaluator as one class", "likely"), ("A merge method as one function", "medians")]
)
def test_code_of_ones_own_scores_every_candidate(printed, folder, title, name):
    assert [line.partition(",")[0] for line in printed[title]] == [f"trial {number}: COMPLETE" for number in range(3)]
    values = [trial.value for trial in trials_of(folder, name)]
    assert len(set(values)) > 1
    assert all((value < 0) == (name == "likely") for value in values)

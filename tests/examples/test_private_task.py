"""The example with a task file of one's own, by the commands of its README."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from evomerge.cli import run_command
from evomerge.errors import OtherSpec
from evomerge.packs.pack import load_pack
from evomerge.spec import load_spec, override

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "private_task"


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """The example beside the toy models, in another folder."""
    folder = tmp_path / "examples" / "private_task"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("runs"))
    (tmp_path / "examples" / "toy").symlink_to(ROOT / "examples" / "toy")
    monkeypatch.chdir(folder)
    return folder


def test_the_commands_of_the_readme_end_with_a_verdict_on_held_out_items(copy, capsys):
    text = (copy / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    commands = [line.split() for line in block.splitlines()]
    assert [words[:2] for words in commands] == [["cd", "examples/private_task"]] + [
        ["evomerge", name] for name in ("check", "run", "leaderboard")
    ]
    for words in commands[1:]:
        further = ["--ray", "none", "--trials", "3"] if words[1] == "run" else []
        assert run_command([*words[1:], *further]) == 0
    capsys.readouterr()
    assert run_command(["leaderboard", "search.yaml", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    rows = {row["label"]: row for row in document["rows"]}
    assert {"base", "reverse", "sort", "swap", "uniform-soup", "task-arithmetic"} <= set(rows)
    assert all(set(row["held_out"]["tasks"]) == {"private_words"} for row in rows.values() if row["held_out"])
    assert document["verdict"]["items"] > 100
    assert "private_words" in rows["reverse"]["command"]


def test_changed_items_are_refused_once_the_study_has_begun(copy):
    from evomerge import run_search

    spec = load_spec(copy / "search.yaml").model_copy(update={"baselines": ()})
    run_search(override(spec, trials=1), ray="none")
    items = copy / "words" / "words.jsonl"
    items.write_text(items.read_text().replace('"nsqcqi"', '"nsqcqx"').replace("nsqcqi=", "nsqcqa="), encoding="utf-8")
    with pytest.raises(OtherSpec):
        run_search(override(spec, trials=2), ray="none")


def test_the_items_are_those_of_the_readme_and_none_of_the_shipped_ones():
    items = [json.loads(line) for line in (EXAMPLE / "words" / "words.jsonl").read_text().splitlines()]
    assert len(items) == len({item["prompt"] for item in items}) == 240
    shipped = "".join(path.read_text() for path in (ROOT / "evaluators" / "toy-skills" / "items").iterdir())
    assert [item["prompt"] for item in items if f'"{item["prompt"]}"' in shipped] == []
    pack = load_pack(EXAMPLE / "words")
    task = yaml.safe_load((EXAMPLE / "words" / "private_words.yaml").read_text())
    assert [each.task for each in pack.tasks] == [task["task"]]

"""`--push` of the commands, end to end: a search, its export, and the hub's API over HTTP."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_hub import TOKEN, FakeHub
from huggingface_hub import ModelCard

from evomerge.cli import run_command

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=")


TOY = Path(__file__).parents[2] / "examples" / "toy" / "models"


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The search.yaml of a finished search, whose winner alone was scored on the held-out items."""
    spec = tmp_path_factory.mktemp("searched") / "search.yaml"
    content = {
        "name": "sim",
        "sources": [{"name": name, "location": str(TOY / name)} for name in ("base", "reverse", "sort")],
        "space": "task-arithmetic-per-block",
        "evaluator": {"name": "synthetic", "items": 40},
        "budget": {"trials": 2},
        "baselines": ["uniform-soup"],
        "verdict": {"best": 1},
    }
    spec.write_text(yaml.safe_dump(content), encoding="utf-8")
    assert run_command(["run", str(spec), "--ray", "none"]) == 0
    return spec


def _run(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    capsys.readouterr()
    assert run_command([str(each) for each in (*arguments, "--json")]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def test_the_winner_goes_to_the_hub_with_a_complete_card(
    hub: FakeHub, searched: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exported = _run(capsys, "export", searched, "--out", tmp_path / "out", "--push", "me/merge", "--private")
    assert exported["pushed"]["url"] == f"{hub.url}/me/merge"
    found = hub.repositories["me/merge"]
    assert found.private
    files = {path.relative_to(tmp_path / "out").as_posix(): path for path in (tmp_path / "out").rglob("*.*")}
    assert set(found.files) == {".gitattributes", *files}
    assert all(found.files[name] == path.read_bytes() for name, path in files.items())
    data = ModelCard(found.files["README.md"].decode()).data
    best = next(row for row in _run(capsys, "leaderboard", searched)["rows"] if row["kind"] == "best")
    values = {result.task_name: result.metric_value for result in data.eval_results}
    assert values == {task: round(score["value"], 6) for task, score in best["held_out"]["tasks"].items()}
    assert [result.metric_args["items"] for result in data.eval_results] == [
        score["items"] for score in best["held_out"]["tasks"].values()
    ]
    assert data.license == "other"
    assert "mergekit-compatible" in data.tags


def test_what_was_not_scored_on_held_out_items_has_no_results(
    hub: FakeHub, searched: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best = next(row for row in _run(capsys, "leaderboard", searched)["rows"] if row["kind"] == "best")["trial"]
    _run(capsys, "export", searched, "--trial", 1 - best, "--out", tmp_path / "out")
    assert ModelCard((tmp_path / "out" / "README.md").read_text()).data.eval_results is None
    assert hub.requests == []  # nothing is sent without --push


def test_the_text_says_the_address_and_what_licences_ask_for(
    hub: FakeHub, searched: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["export", str(searched), "--out", str(tmp_path / "out"), "--push", "me/merge"]) == 0
    printed = capsys.readouterr()
    assert f"pushed to {hub.url}/me/merge (commit " in printed.out
    assert "note: the licence of all sources is unknown" in printed.err
    assert f"to {hub.url}/me/merge" in printed.err
    assert TOKEN not in printed.out + printed.err


def test_without_a_token_no_export_is_made(
    hub: FakeHub,
    searched: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    assert run_command(["export", str(searched), "--out", str(tmp_path / "out"), "--push", "me/merge"]) == 2
    assert "set HF_TOKEN, or run `hf auth login`; nothing was made" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert run_command(["export", str(searched), "--out", str(tmp_path / "out"), "--private"]) == 2
    assert "add --push OWNER/NAME" in capsys.readouterr().err


def test_a_broken_network_leaves_the_export_and_the_same_command_goes_on(
    hub: FakeHub, searched: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["export", str(searched), "--out", str(tmp_path / "out"), "--push", "me/merge"]
    hub.broken = "PUT /lfs/"
    assert run_command(command) == 3
    error = capsys.readouterr().err
    assert f"the export is in {tmp_path / 'out'}. Run the same command again" in error
    assert (tmp_path / "out" / "model.safetensors").exists()
    assert set(hub.repositories["me/merge"].files) == {".gitattributes"}
    hub.broken = None
    assert run_command(command) == 0
    assert "model.safetensors" in hub.repositories["me/merge"].files
    assert run_command(command) == 0
    assert len(hub.uploads) == 1
    hub.refuse["commit"] = (403, "no")
    hub.organisations["other"] = "contributor"
    assert run_command([*command[:-1], "other/merge"]) == 2
    assert "give it write access to 'other'" in capsys.readouterr().err


def test_check_says_what_the_licences_mean(
    write_spec: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = yaml.safe_load(write_spec().read_text())["sources"]
    for source, license_ in zip(sources, ("llama3.2", "apache-2.0", None), strict=True):
        folder = tmp_path / source["name"]
        folder.mkdir()
        for file in Path(source["location"]).iterdir():
            (folder / file.name).symlink_to(file)
        if license_ is not None:
            (folder / "README.md").unlink(missing_ok=True)
            (folder / "README.md").write_text(f"---\nlicense: {license_}\n---\n")
        source["location"] = str(folder)
    spec = write_spec(sources=sources)
    licenses = _run(capsys, "check", spec)["licenses"]
    assert [each["license"] for each in licenses["sources"]] == ["llama3.2", "apache-2.0", None]
    assert licenses["result"]["kind"] == "unknown"
    assert len(licenses["result"]["problems"]) == 2
    assert run_command(["check", str(spec)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "licences: llama3.2 (README.md) of base; apache-2.0 (README.md) of reverse; unknown of sort" in text
    assert "of the merge: other (licenses-of-the-sources); 'sort' has an unknown licence: nothing is known" in text
    assert "show “Built with Llama”" in text
    assert "no legal advice" in text


def test_a_merge_without_a_search_is_pushed(hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = [{"model": str(TOY / name), "parameters": {"weight": 0.5}} for name in ("reverse", "sort")]
    merge = tmp_path / "merge.yml"
    merge.write_text(yaml.safe_dump({"models": models, "merge_method": "linear", "dtype": "float32"}))
    made = _run(capsys, "merge", merge, "--out", tmp_path / "out", "--push", "me/merge")
    assert made["pushed"]["url"] == f"{hub.url}/me/merge"
    found = hub.repositories["me/merge"].files
    assert set(found) > {"model.safetensors", "recipe.json", "README.md", "mergekit.yaml"}
    assert ModelCard(found["README.md"].decode()).data.tags == ["merge", "evomerge", "mergekit-compatible"]


def test_endpoint_and_token_are_those_of_the_environment(hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    code = "import sys; from pathlib import Path; from evomerge.hub import HubRepository; " + (
        "print(HubRepository('me/merge').push(Path(sys.argv[1])).url)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env={**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == f"{hub.url}/me/merge", done.stderr
    assert hub.repositories["me/merge"].files["README.md"] == b"---\nlicense: mit\n---\n"

"""A search whose best merge repeats one token for ever: the fault goes wherever the winner is named."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from evomerge import export_probe, load_spec, run_search
from evomerge.cli import run_command
from evomerge.export import export_merge
from evomerge.leaderboard import leaderboard, leaderboard_document
from evomerge.page.page_content import page_content
from evomerge.page.study_page import rendered
from evomerge.sanity import probed_merge
from evomerge.sanity.probe_records import read_sanity
from evomerge.storage import attributes
from evomerge.storage.opening import release
from evomerge.study.stored_search import read_search
from evomerge.verdict.headline import headline
from evomerge.verdict.records import read_verdict

TOY = Path(__file__).parents[2] / "examples" / "toy" / "models"
LOOPS = "Trial 0 fails the sanity probe: it loops in 8 of 8 continuations, no source in more than"


@pytest.fixture(scope="module")
def searched(tmp_path_factory, pack):
    """The folder of a search whose first trial, the mean of a model and its mirror, has silent layers."""
    folder = tmp_path_factory.mktemp("looping")
    shutil.copytree(TOY / "base", folder / "mirror")
    weights = load_file(folder / "mirror" / "model.safetensors")
    silent = {name: -tensor if "o_proj" in name or "down_proj" in name else tensor for name, tensor in weights.items()}
    save_file(silent, folder / "mirror" / "model.safetensors", metadata={"format": "pt"})
    spec = {
        "name": "looping",
        "sources": [{"name": "base", "location": str(TOY / "base")}, {"name": "mirror", "location": "mirror"}],
        "space": {
            "name": "halves",
            "groups": {"depth": "global"},
            "methods": {"task_arithmetic": {"parameters": {"weight": {"low": 0, "high": 1}}}},
        },
        "evaluator": str(pack),
        "budget": {"trials": 1},
        "workers": {"count": 1},
        "baselines": ["uniform-soup"],
        "dtype": "float32",
        "seed": 1,
    }
    (folder / "search.yaml").write_text(yaml.safe_dump(spec))
    run_search(load_spec(folder / "search.yaml"), ray="none")
    return folder


@pytest.fixture
def stored(searched):
    found = read_search(load_spec(searched / "search.yaml"))
    yield found
    release(found.storage)


def test_n42_a_winner_that_loops_is_nowhere_named_without_that(searched, stored, tmp_path, capsys):
    verdict = read_verdict(stored.study)
    assert verdict.sentence.startswith(LOOPS)
    found = headline(verdict)
    assert found.text.startswith(LOOPS)
    assert found.belief == "not sane"
    lines = leaderboard(stored)
    sanity = leaderboard_document(stored, lines)["sanity"]
    assert sanity["says"].startswith(LOOPS)
    assert [check["name"] for check in sanity["checks"] if check["sane"] is False] == ["loops"]
    assert LOOPS in rendered(page_content(stored))
    for command in ("leaderboard", "status"):
        assert run_command([command, str(searched / "search.yaml")]) == 0
        assert LOOPS in " ".join(capsys.readouterr().out.split()), command
    export = ["export", str(searched / "search.yaml"), "--out", str(tmp_path / "best"), "--json"]
    assert run_command(export) == 0
    assert json.loads(capsys.readouterr().out)["sanity"]["says"].startswith(LOOPS)
    card = (tmp_path / "best" / "README.md").read_text()
    assert f"**Warning:** {LOOPS}" in card
    assert card.index(LOOPS) < card.index("## Scores")


def test_a_resumed_search_shows_the_same_probe_and_takes_none_again(searched, stored, monkeypatch):
    before = stored.study.user_attrs[attributes.SANITY]

    def refuse(*args, **kwargs):
        raise AssertionError("probed again")

    monkeypatch.setattr(probed_merge, "probe_merge", refuse)
    study = run_search(load_spec(searched / "search.yaml"), ray="none")
    assert study.user_attrs[attributes.SANITY] == before
    assert [label for label, _ in read_sanity(study).models.values()] == ["base", "mirror", "trial 0"]


def test_what_no_run_has_probed_is_probed_by_its_export(searched, tmp_path, capsys):
    export = ["export", str(searched / "search.yaml"), "--trial", "uniform-soup", "--out", str(tmp_path / "soup")]
    assert run_command([*export, "--json"]) == 0
    sanity = json.loads(capsys.readouterr().out)["sanity"]
    assert "fails" not in sanity["says"]
    assert sanity["says"] in (tmp_path / "soup" / "README.md").read_text()


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no room\nfor it"), NotImplementedError("no such kernel")])
def test_an_export_is_written_though_its_probe_ends_in_an_error(searched, tmp_path, capsys, monkeypatch, error):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(export_probe, "probe_merge", fail)
    export = ["export", str(searched / "search.yaml"), "--trial", "uniform-soup", "--out", str(tmp_path / "soup")]
    assert run_command([*export, "--json"]) == 0
    sanity = json.loads(capsys.readouterr().out)["sanity"]
    reason = f"No sanity probe: it cannot be run here ({type(error).__name__}: {str(error).splitlines()[0]} (in fail"
    assert sanity["says"].startswith(reason)
    assert sanity["models"] == {}
    assert reason in (tmp_path / "soup" / "README.md").read_text()
    assert (tmp_path / "soup" / "model.safetensors").is_file()


def test_an_interrupt_still_ends_an_export_during_its_probe(stored, monkeypatch, tmp_path):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(export_probe, "probe_merge", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export_merge(stored, "uniform-soup", tmp_path / "soup")


def test_a_search_that_runs_no_model_says_so(write_spec):
    study = run_search(load_spec(write_spec()), ray="none")
    assert read_sanity(study).reason == "the evaluator of this search runs no model"

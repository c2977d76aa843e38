"""What a run writes, beside what is free."""

import json
import shutil
import tempfile
from collections import namedtuple

import yaml

from evomerge import run_search
from evomerge.cli import run_command
from evomerge.opening.disk import disk_warnings, planned_writing
from evomerge.opening.inputs import open_inputs
from evomerge.spec import load_spec

Usage = namedtuple("Usage", "total used free")


def test_check_names_each_folder_and_warns_where_too_little_is_free(write_spec, tmp_path, monkeypatch, capsys):
    path = write_spec(budget={"trials": 1000})
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(10**9, 10**9, 3_000_000))
    assert run_command(["check", str(path)]) == 0
    said = "".join(capsys.readouterr().out.split())  # long paths are wrapped anywhere
    for line in (
        f"study: 8.2 MB to {tmp_path}/runs/sim (3.0 MB free)",
        f"items: 4.4 MB to {tmp_path}/runs/sim/artifacts (3.0 MB free)",
        "a run writes up to 12.6 MB there (study 8.2 MB, items 4.4 MB)",
    ):
        assert "".join(line.split()) in said


def test_statistics_and_their_checkpoints_are_counted_where_they_are_written(write_spec, tmp_path, capsys):
    path = write_spec(evaluator="toy-skills", baselines=["fisher"], artifacts="elsewhere", workers={"count": 1})
    content = yaml.safe_load(path.read_text())
    for source in content["sources"][1:]:
        source["calibration"] = {"task": f"toy_{source['name']}", "items": 4}
    path.write_text(yaml.safe_dump(content))
    assert run_command(["check", str(path), "--json"]) == 0
    checked = json.loads(capsys.readouterr().out)
    first, second = checked["statistics"]
    [files] = [each for each in checked["cost"]["writes"] if each["what"] == "files"]
    assert files["folder"] == str(tmp_path / "elsewhere")
    assert files["bytes"] == first["file_bytes"] + second["file_bytes"] + first["checkpoint_bytes"]


def test_a_study_grows_by_less_than_is_planned_however_many_params_it_has(write_spec, tmp_path):
    layered = {
        "groups": {"depth": {"layers": 1}, "parts": ["attention", "mlp", "norm"]},
        "methods": {
            "ties": {"parameters": {"weight": {"low": 0.0, "high": 2.0}, "density": {"low": 0.1, "high": 1.0}}}
        },
    }
    grown, planned = [], []
    for trials in (4, 24):
        name = f"sim{trials}"
        spec = load_spec(
            write_spec(name=name, space={"name": "layered", **layered}, sampler="random", budget={"trials": trials})
        )
        inputs = open_inputs(spec)
        assert inputs.space.active_dimensions > 50
        planned += [each.bytes for each in planned_writing(inputs, items=40, files=0) if each.what == "study"]
        run_search(spec, ray="none")
        grown.append(sum(file.stat().st_size for file in (tmp_path / "runs" / name).glob("study.db*")))
    assert 0.3 < (grown[1] - grown[0]) / (planned[1] - planned[0]) < 1


def test_a_study_on_a_server_takes_no_room_here(write_spec, tmp_path, monkeypatch):
    monkeypatch.setenv("STUDY", "postgresql://u:p@h/d")
    inputs = open_inputs(load_spec(write_spec(storage="env:STUDY")))
    writing = planned_writing(inputs, items=100, files=7, shared=8)
    assert [(each.what, each.folder) for each in writing] == [
        ("items", f"{tmp_path}/runs/sim/artifacts"),
        ("files", f"{tmp_path}/runs/sim/artifacts"),
        ("shared", tempfile.gettempdir()),
    ]
    assert disk_warnings(writing) == []

"""Searches whose artifacts are on an object store: killed, gone on with elsewhere, copied, collected, exported."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import uuid
from pathlib import Path

import optuna
import pytest
import yaml
from object_servers import SECRET

sys.path.append(str(Path(__file__).parent))

import killer

from evomerge import load_spec, run_search
from evomerge.cli import run_command
from evomerge.errors import Interrupted
from evomerge.object_store.artifact_folder import ArtifactFolder
from evomerge.object_store.optuna_store import optuna_store
from evomerge.object_store.scratch_folder import ScratchFolder
from evomerge.orphans import collect_orphans
from evomerge.search.run import Listener, run_baselines
from evomerge.study.rows import read_records, read_scores
from evomerge.study.stored_search import read_search
from evomerge.study_copy import copy_search

TRIALS = 6
STEPS = 12
DAM = {"name": "dam", "steps": STEPS, "batch_size": 2, "learning_rate": 0.01, "checkpoint_every": 2}


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """elsewhere() -> on a machine that has none of the artifacts."""

    def move():
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"cache-{uuid.uuid4()}"))

    return move


def killed(arguments, point, trial):
    process = multiprocessing.get_context("spawn").Process(target=killer.run, args=(arguments, point, trial))
    process.start()
    process.join(timeout=300)
    return process.exitcode


def artifact_ids(stored):
    studies = (stored.study, stored.baselines, stored.held_out)
    metas = (
        optuna.artifacts.get_all_artifact_meta(trial, storage=stored.storage)
        for study in studies
        for trial in study.trials
    )
    return {meta.artifact_id for each in metas for meta in each}


def tasks_of(stored, trial):
    return read_scores(stored.artifacts, stored.storage, trial).tasks


def test_a_search_that_is_killed_goes_on_elsewhere_as_if_it_had_not_been(
    bucket, write_spec, tmp_path, monkeypatch, elsewhere
):
    whole = load_spec(write_spec("whole.yaml", storage="sqlite:///whole/study.db"))
    run_search(whole, ray="none")
    path = write_spec(artifacts=bucket.url)
    arguments = ["run", str(path), "--ray", "none"]
    assert killed(arguments, "before the object is put", 2) == -9
    elsewhere()
    assert killed(arguments, "after the object is put", 4) == -9
    elsewhere()
    spec = load_spec(path)
    run_search(spec, ray="none")

    elsewhere()
    stored, expected = read_search(spec), read_search(whole)
    assert [trial.params for trial in stored.study.trials] == [trial.params for trial in expected.study.trials]
    assert [trial.values for trial in stored.study.trials] == [trial.values for trial in expected.study.trials]
    assert [tasks_of(stored, trial) for trial in stored.study.trials] == [
        tasks_of(expected, trial) for trial in expected.study.trials
    ]
    assert len(stored.study.trials) == TRIALS
    assert artifact_ids(stored) < bucket.names()
    (orphan,) = collect_orphans(stored)["orphans"]
    assert {orphan["path"]} == bucket.names() - artifact_ids(stored)  # of the second kill
    assert not (tmp_path / "runs" / "sim" / "artifacts").exists()
    assert (tmp_path / "runs" / "sim" / "logs" / "sim").is_dir()
    assert stored.spec.artifacts == bucket.url
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or SECRET.encode() not in file.read_bytes()


@pytest.fixture
def searched(bucket, write_spec):
    """A small search whose artifacts are on a store."""
    spec = load_spec(write_spec(artifacts=bucket.url, budget={"trials": 2}))
    run_search(spec, ray="none")
    return spec


def test_optuna_dashboard_finds_the_artifacts(searched, bucket, elsewhere):
    elsewhere()
    stored = read_search(searched)
    (meta,) = optuna.artifacts.get_all_artifact_meta(stored.study.trials[0], storage=stored.storage)
    store = optuna_store(ArtifactFolder(stored.artifacts))
    with store.open_reader(meta.artifact_id) as reader:
        assert reader.read(4) == b"PAR1"
    bucket.delete(meta.artifact_id)
    elsewhere()
    store = optuna_store(ArtifactFolder(read_search(searched).artifacts))
    with pytest.raises(optuna.artifacts.exceptions.ArtifactNotFound):
        store.open_reader(meta.artifact_id)


def test_a_lost_object_is_scored_again_where_it_is_needed(searched, bucket, elsewhere):
    before = bucket.names()
    for name in before:
        bucket.delete(name)
    elsewhere()
    stored = read_search(searched)
    assert read_scores(stored.artifacts, stored.storage, stored.study.trials[0]) is None
    run_baselines(searched, ["uniform-soup"], ray="none")
    assert bucket.names()
    assert not bucket.names() & before


def test_orphans_are_found_and_deleted_on_the_store(searched, bucket):
    named = bucket.names()
    orphan = str(uuid.uuid4())
    bucket.put(orphan, b"PAR1")
    bucket.put(f"files/{'a' * 64}.safetensors", b"lost")
    bucket.put(f"statistics/{'b' * 64}.json", b'{"digest": "c"}')
    bucket.put("of-somebody-else.txt", b"kept")
    document = collect_orphans(read_search(searched))
    assert {each["kind"] for each in document["orphans"]} == {"items", "file", "statistics"}
    assert document["folder"] == bucket.url
    assert bucket.names() > named
    collect_orphans(read_search(searched), delete=True, alone=True)
    assert bucket.names() == {*named, "of-somebody-else.txt"}


def test_a_copy_of_the_study_refers_to_the_same_store(searched, bucket, tmp_path, elsewhere):
    document = copy_search(searched.storage_url, f"sqlite:///{tmp_path}/copy/study.db")
    assert (document["artifacts"], document["copied"]) == (bucket.url, None)
    elsewhere()
    copied = read_search(searched.model_copy(update={"storage": f"sqlite:///{tmp_path}/copy/study.db"}))
    assert copied.spec.artifacts == bucket.url
    assert all(read_scores(copied.artifacts, copied.storage, trial) for trial in copied.study.trials)


def test_commands_say_where_the_artifacts_are(searched, bucket, capsys):
    for command in ("check", "status", "leaderboard"):
        assert run_command([command, "search.yaml"]) == 0
    assert f"items: {bucket.url}" in capsys.readouterr().out


def test_a_bucket_that_is_not_there_ends_a_run_before_anything_is_done(bucket, write_spec, tmp_path, capsys):
    path = write_spec(artifacts="s3://no-such-bucket/runs")
    for command in ("check", "run"):
        assert run_command([command, str(path)]) == 2
        assert "there is no such bucket" in capsys.readouterr().err


def with_texts(path):
    """The file of a spec, with calibration texts of every expert."""
    content = yaml.safe_load(path.read_text())
    for source in content["sources"][1:]:
        source["calibration"] = {"task": f"toy_{source['name']}", "items": 16}
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize("learning_rate", [0.05, 1e-12], ids=["trained", "the-start"])
def test_a_choice_leaves_no_file_of_its_own_and_reads_none_of_other_trainings(
    bucket, write_spec, pack, monkeypatch, learning_rate
):
    other = f"training/dam-{'e' * 32}.safetensors"
    bucket.put(other, b"of another training")
    learned = {"name": "learned", "steps": 2, "trial_steps": 2, "granularities": ["global"], "penalties": [0]}
    learned |= {"batch_size": 4, "stop_every": 1, "folds": 2, "learning_rate": learning_rate}
    path = write_spec(evaluator=str(pack), dtype="float32", baselines=[learned], artifacts=bucket.url)
    fetch, asked = ScratchFolder.fetch, []

    def seen(self, names):
        asked.extend(names := list(names))
        fetch(self, names)

    monkeypatch.setattr(ScratchFolder, "fetch", seen)
    run_baselines(load_spec(with_texts(path)), ["learned"], ray="none")
    assert asked == []
    assert [name for name in bucket.names() if name.startswith("training/")] == [other]


def test_a_training_goes_on_on_another_machine_and_is_exported_from_a_third(
    bucket, write_spec, pack, tmp_path, elsewhere, monkeypatch
):
    path = with_texts(write_spec(evaluator=str(pack), dtype="float32", baselines=[DAM], artifacts=bucket.url))
    spec = load_spec(path)

    def kill(progress):
        if progress.step == STEPS // 2 + 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        run_baselines(spec, ["dam"], ray="none", listener=Listener(on_progress=kill))
    (checkpoint,) = (name for name in bucket.names() if name.startswith("training/"))
    elsewhere()
    fetch, found = ScratchFolder.fetch, []

    def seen(self, names):
        fetch(self, names)
        found.extend(path.name for path in self.path.iterdir())

    monkeypatch.setattr(ScratchFolder, "fetch", seen)
    run_baselines(spec, ["dam"], ray="none")
    assert found == [checkpoint.removeprefix("training/")]
    row = next(row for row in read_records(read_search(spec).baselines) if row.label == "dam")
    names = bucket.names()
    assert f"files/{row.recipe.files['coefficients']}.safetensors" in names
    assert not [name for name in names if name.startswith("training/")]

    elsewhere()
    assert run_command(["export", str(path), "--trial", "dam", "--out", str(tmp_path / "model")]) == 0
    assert list((tmp_path / "model" / "recipe-files").glob("*.safetensors"))

"""Copies of a search in another storage: the same in every respect, and they go on with the same proposals."""

import json
import os
import shutil
import socket
import subprocess
import sys

import optuna
import pytest
from optuna.trial import TrialState
from servers import without_studies

from evomerge import study_copy
from evomerge.cli import run_command
from evomerge.evaluation.synthetic import SyntheticEvaluator
from evomerge.leases.lock import hold
from evomerge.loop import steering
from evomerge.requests.steering_requests import RequestBook
from evomerge.storage import attributes
from evomerge.storage.opening import open_storage, release

WAYS = [
    ("sqlite:///here.db", "journal:///there/study.journal"),
    ("journal:///here.journal", "sqlite:///there/study.db"),
]


def run(spec, url, *options):
    return run_command(["run", str(spec), "--ray", "none", "--storage", url, *options])


def content(url, name="sim"):
    """All that a storage holds of a study, without the ids of its trials."""
    storage = open_storage(url)
    study = optuna.load_study(study_name=name, storage=storage)
    trials = [{key: value for key, value in vars(trial).items() if key != "_trial_id"} for trial in study.get_trials()]
    numbers = {str(trial._trial_id): trial.number for trial in study.get_trials()}
    system = {}
    for key, value in storage.get_study_system_attrs(study._study_id).items():
        first, _, rest = key.partition(":")
        trial, _, part = rest.partition(":")
        note = first == "dashboard" and trial in numbers  # the dashboard keeps notes of trials under their ids
        system[f"note of {numbers[trial]}: {part}" if note else key] = value
    found = study.directions, study.user_attrs, system, trials
    release(storage)
    return found


@pytest.fixture
def interrupted(write_spec, monkeypatch):
    """A function that runs a search until trial 5 is being scored, with an enqueued trial and one that is running."""

    def until_trial_5(url, **changes):
        spec = write_spec(budget={"trials": 12}, **changes)
        score = SyntheticEvaluator.score

        def scored(self, candidate, items):
            if candidate.key == "sim/5":
                storage = open_storage(url)
                RequestBook(storage, "sim").stop(socket.gethostname(), os.getpid())
                release(storage)
            return score(self, candidate, items)

        with monkeypatch.context() as patched:
            patched.setattr(steering, "POLL_SECONDS", 0.0)
            patched.setattr(SyntheticEvaluator, "score", scored)
            assert run(spec, url) == 3
        storage = open_storage(url)
        study = optuna.load_study(study_name="sim", storage=storage)
        study.enqueue_trial(study.trials[0].params | {next(iter(study.trials[0].params)): 0.25})
        release(storage)
        return spec

    return until_trial_5


@pytest.mark.parametrize(("here", "there"), WAYS)
def test_a_copy_is_the_same_with_its_siblings(interrupted, here, there):
    spec = interrupted(here)
    assert run_command(["study", "copy", here, there]) == 0
    for name in ("sim", "sim/baselines", "sim/held-out", "sim/requests"):
        assert content(there, name) == content(here, name)
    states = [trial["_state"] if "_state" in trial else trial["state"] for trial in content(there)[3]]
    assert {TrialState.COMPLETE, TrialState.RUNNING, TrialState.WAITING} == set(states)
    assert {f"note of {number}: note_str:0" for number in range(5)} <= set(content(there)[2])
    assert spec.exists()


@pytest.mark.parametrize("kind", ["postgres", "mariadb", "redis"])
def test_a_copy_on_a_server_is_the_same_and_goes_on_with_the_same_proposals(request, interrupted, kind):
    server = without_studies(request.getfixturevalue(kind))
    spec = interrupted("sqlite:///here.db")
    command("study", "copy", "sqlite:///here.db", server)
    assert without_times(content(server)) == without_times(content("sqlite:///here.db"))
    command("study", "copy", server, "sqlite:///back/study.db", "--study", "sim")
    assert without_times(content("sqlite:///back/study.db")) == without_times(content("sqlite:///here.db"))
    urls = ("sqlite:///here.db", server, "sqlite:///back/study.db")
    for url in urls:
        command("run", str(spec), "--ray", "none", "--storage", url)
    one, two, three = ([(trial["_params"], trial["_values"]) for trial in content(url)[3]] for url in urls)
    assert one == two == three


def command(*arguments):
    """A command in a process of its own, which leaves no connection behind."""
    subprocess.run([sys.executable, "-m", "evomerge.cli", *arguments], check=True, capture_output=True)


def without_times(found):
    """Without the lease of a server, the folder of artifacts that its spec names, and times, which MySQL rounds."""
    directions, attrs, system, trials = found
    own = (attributes.WRITER, attributes.SPEC)
    kept = {key: value for key, value in attrs.items() if not key.startswith(own)}
    times = ("datetime_start", "_datetime_start", "datetime_complete")
    return directions, kept, system, [{key: trial[key] for key in trial if key not in times} for trial in trials]


@pytest.mark.parametrize("sampler", ["cma", "tpe", {"name": "nsgaii", "population_size": 4}])
@pytest.mark.parametrize(("here", "there"), WAYS)
def test_a_copy_goes_on_with_the_same_proposals(interrupted, tmp_path, here, there, sampler):
    dimensions = {"objective": {"aggregate": "pareto"}} if isinstance(sampler, dict) else {}
    spec = interrupted(here, sampler=sampler, **dimensions)
    other = open_storage("sqlite:///there/study.db" if "there/study.db" in there else there)
    optuna.create_study(storage=other, study_name="earlier").ask()  # so that ids of trials differ
    release(other)
    assert run_command(["study", "copy", str(spec), there, "--study", "sim"]) == 2  # the spec's own storage has none
    assert run_command(["study", "copy", here, there, "--study", "sim"]) == 0
    assert run(spec, here) == 0
    assert run(spec, there) == 0
    one, other = ([(trial["_params"], trial["_values"]) for trial in content(url)[3]] for url in (here, there))
    assert len(one) == 12
    assert one == other


def test_artifacts_lie_beside_a_copy_in_a_file(interrupted, tmp_path, capsys):
    interrupted("sqlite:///one/study.db")
    capsys.readouterr()
    assert run_command(["study", "copy", "sqlite:///one/study.db", "sqlite:///two/study.db", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["artifacts"] == str(tmp_path / "two" / "artifacts")
    names = {path.name for path in (tmp_path / "one" / "artifacts").iterdir() if path.is_file()}
    assert names
    assert {path.name for path in (tmp_path / "two" / "artifacts").iterdir() if path.is_file()} == names
    shutil.rmtree(tmp_path / "one")
    assert run_command(["run", "--storage", "sqlite:///two/study.db", "--study", "sim", "--ray", "none"]) == 0


def test_a_file_that_another_search_reads_in_the_folder_is_never_there_in_part(tmp_path, room_for):
    here, there = tmp_path / "here", tmp_path / "there"
    names = ["files/kept", "files/torn"]
    for folder, torn in ((here, 9000), (there, 10)):
        (folder / "files").mkdir(parents=True)
        for name, size in zip(names, (9000, torn), strict=True):
            (folder / name).write_bytes(b"x" * size)
    kept = (there / "files" / "kept").stat()
    with room_for(100), pytest.raises(OSError, match="File too large"):
        study_copy._copy_files(names, here, there)
    assert [(there / name).stat().st_size for name in names] == [9000, 10]
    study_copy._copy_files(names, here, there)
    assert [(there / name).read_bytes() for name in names] == [b"x" * 9000] * 2
    assert (there / "files" / "kept").stat().st_ino == kept.st_ino
    assert (there / "files" / "torn").stat().st_mtime == (here / "files" / "torn").stat().st_mtime
    assert len(list((there / "files").iterdir())) == 2


def test_what_is_outside_of_the_folder_of_artifacts_is_neither_read_nor_written(interrupted, tmp_path, capsys):
    interrupted("sqlite:///one/here/study.db")
    artifacts, mine = tmp_path / "one" / "here" / "artifacts", tmp_path / "two" / "there"
    mine.mkdir(parents=True)
    (artifacts / "files").mkdir(exist_ok=True)
    (artifacts / "files" / "inner").symlink_to(tmp_path / "one" / "here" / "search.txt")
    for path in (tmp_path / "one" / "victim", tmp_path / "one" / "here" / "search.txt", tmp_path / "absolute"):
        path.write_text("theirs")
    for path in (tmp_path / "two" / "victim", mine / "search.txt"):
        path.write_text("mine")
    names = {"../../victim", f"../../here/artifacts/{next(artifacts.glob('*-*')).name}", str(tmp_path / "absolute")}
    storage = open_storage("sqlite:///one/here/study.db")
    sibling = storage.get_study_id_from_name("sim/baselines")
    for name in names:
        storage.set_study_system_attr(sibling, f"artifacts:{name}", "{}")
    release(storage)
    before = {path for path in tmp_path.rglob("*") if not path.is_relative_to(mine)}
    capsys.readouterr()
    url = "sqlite:///two/there/study.db"
    assert run_command(["study", "copy", "sqlite:///one/here/study.db", url, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert set(document["left_out"]) == {*names, "files/inner"}
    copies = {path for path in (mine / "artifacts").rglob("*") if path.is_file()}
    assert len(copies) == document["copied"] > 0
    assert not any(path.is_symlink() or path.read_bytes() == b"theirs" for path in copies)
    assert {path for path in tmp_path.rglob("*") if not path.is_relative_to(mine)} == before
    assert {(tmp_path / "two" / "victim").read_text(), (mine / "search.txt").read_text()} == {"mine"}


def test_a_folder_of_artifacts_of_the_users_choice_stays(interrupted, tmp_path, capsys):
    interrupted("sqlite:///one/study.db", artifacts="kept")
    capsys.readouterr()
    assert run_command(["study", "copy", "sqlite:///one/study.db", "sqlite:///two/study.db", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["artifacts"], document["copied"]) == (str(tmp_path / "kept"), None)


def test_a_storage_that_has_the_study_is_refused(interrupted, capsys):
    interrupted("sqlite:///one.db")
    assert run_command(["study", "copy", "sqlite:///one.db", "sqlite:///one.db"]) == 2
    assert "already" in capsys.readouterr().err
    before = content("sqlite:///one.db")
    assert run_command(["study", "copy", "sqlite:///one.db", "sqlite:///two.db", "--study", "smi"]) == 2
    assert "did you mean 'sim'" in capsys.readouterr().err
    assert content("sqlite:///one.db") == before


def test_a_study_that_a_controller_holds_is_not_copied_and_nothing_is_left(interrupted, capsys):
    interrupted("sqlite:///one.db")
    with hold("sqlite:///one.db", "sim"):
        assert run_command(["study", "copy", "sqlite:///one.db", "sqlite:///two.db"]) == 6
    assert "held by" in capsys.readouterr().err
    storage = open_storage("sqlite:///two.db")
    assert storage.get_all_studies() == []
    release(storage)


def test_a_copy_that_was_cut_short_is_no_study_and_is_begun_again(interrupted, monkeypatch):
    interrupted("sqlite:///one.db")

    class Killed(BaseException):
        pass

    def die(*arguments, **named):
        raise Killed

    with monkeypatch.context() as dying:
        dying.setattr(study_copy, "check_same", die)
        dying.setattr(study_copy, "_clear", lambda storage, name, url: None)
        with pytest.raises(Killed):
            run_command(["study", "copy", "sqlite:///one.db", "sqlite:///two.db"])
    assert run_command(["study", "copy", "sqlite:///one.db", "sqlite:///two.db"]) == 0
    assert content("sqlite:///two.db") == content("sqlite:///one.db")
    assert attributes.SCHEMA in content("sqlite:///two.db")[1]


@pytest.mark.parametrize("there", ["sqlite:///two.db", "journal:///two.journal"])
def test_a_copy_that_died_with_its_last_step_undone_is_a_study_that_the_next_copy_refuses(interrupted, capsys, there):
    interrupted("sqlite:///one.db")
    assert run_command(["study", "copy", "sqlite:///one.db", there]) == 0
    storage = open_storage(there)
    optuna.create_study(storage=storage, study_name="sim/copying")
    release(storage)
    before = content(there)
    capsys.readouterr()
    assert run_command(["study", "copy", "sqlite:///one.db", there]) == 2
    assert "has a study 'sim' already" in " ".join(capsys.readouterr().err.split())
    assert content(there) == before
    storage = open_storage(there)
    assert "sim/copying" not in [study.study_name for study in storage.get_all_studies()]
    release(storage)


def test_what_a_copy_leaves_is_not_deleted_while_somebody_holds_it(interrupted, capsys):
    interrupted("sqlite:///one.db")
    storage = open_storage("sqlite:///two.db")
    optuna.create_study(storage=storage, study_name="sim/copying")
    optuna.create_study(storage=storage, study_name="sim").ask()
    release(storage)
    with hold("sqlite:///two.db", "sim"):
        assert run_command(["study", "copy", "sqlite:///one.db", "sqlite:///two.db"]) == 6
    assert "held by" in capsys.readouterr().err
    assert len(content("sqlite:///two.db")[3]) == 1
    assert run_command(["study", "copy", "sqlite:///one.db", "sqlite:///two.db"]) == 0
    assert content("sqlite:///two.db") == content("sqlite:///one.db")

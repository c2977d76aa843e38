"""`evomerge gc` lists and deletes what no study names, and touches nothing else."""

import json
import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import optuna
import pytest

from evomerge.cli import run_command
from evomerge.leases.lock import hold
from evomerge.storage import attributes
from evomerge.storage.attributes import write_text

URL = "sqlite:///runs/sim/study.db"
HOUR = 3600
ORPHANS = {  # path -> kind
    "1b9d6bcd-bbfd-4b2d-9b5d-ab8dfbbd4bed": "items",
    f"files/{'a' * 64}.safetensors": "file",
    f"statistics/{'c' * 64}.json": "statistics",
    f"statistics/{'d' * 64}.safetensors": "statistics",
    f"training/choice-{'e' * 32}.json": "checkpoint",
    f"training/dam-{'e' * 32}.safetensors": "checkpoint",
    f"training/fine-tune-{'e' * 32}.safetensors": "checkpoint",
    f"evaluations/{'7' * 64}": "evaluation",
    "files/.b.safetensors.writing-0123abcd": "temporary",
    "logs/gone": "logs",
}
KEPT = (
    f"files/{'b' * 64}.safetensors",  # an attribute names it
    f"statistics/{'1' * 64}.json",  # its file is there
    "files/.c.safetensors.writing-0123abcd",  # it may be being written
    "thesis.txt",
    "files/notes.safetensors",
    "training/mine.safetensors",
    f"training/notes-{'e' * 32}.json",
    "evaluations/mine",
    "logs/sim/controller.log",
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with a search that has ended."""
    import yaml

    toy = Path(__file__).parent.parent / "examples" / "toy" / "models"
    folder = tmp_path_factory.mktemp("finished")
    content = {
        "name": "sim",
        "sources": [{"name": name, "location": str(toy / name)} for name in ("base", "reverse", "sort")],
        "space": "linear-global",
        "evaluator": {"name": "synthetic", "items": 40},
        "budget": {"trials": 2},
        "baselines": ["uniform-soup"],
        "verdict": {"best": 1},
    }
    spec = folder / "search.yaml"
    spec.write_text(yaml.safe_dump(content), encoding="utf-8")
    assert run_command(["run", str(spec), "--ray", "none"]) == 0
    return folder


@pytest.fixture
def littered(finished, tmp_path, monkeypatch):
    """Its copy, with everything that crashes leave behind, and the folder of its artifacts."""
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    monkeypatch.chdir(folder)
    artifacts = folder / "runs" / "sim" / "artifacts"
    for name in (*ORPHANS, *KEPT):
        path = artifacts / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name == "logs/gone":
            path.mkdir()
            path = path / "worker-0.log"
        if not path.exists():
            path.write_text("x" * 10)
    (artifacts / "statistics" / f"{'c' * 64}.json").write_text(json.dumps({"digest": "f" * 64}))
    (artifacts / "statistics" / f"{'1' * 64}.json").write_text(json.dumps({"digest": "b" * 64}))
    old = (artifacts / "files" / ".b.safetensors.writing-0123abcd").stat().st_mtime - 2 * HOUR
    os.utime(artifacts / "files" / ".b.safetensors.writing-0123abcd", (old, old))
    (artifacts / "2b9d6bcd-bbfd-4b2d-9b5d-ab8dfbbd4bed").symlink_to(folder / "search.yaml")
    study = optuna.load_study(study_name="sim", storage=URL)
    write_text(study, "evomerge:more", "x" * 1470 + "b" * 64)  # across two chunks
    return artifacts


def gc(capsys, *options):
    code = run_command(["gc", "search.yaml", *options])
    return code, capsys.readouterr()


def contents(artifacts):
    return {str(path.relative_to(artifacts)) for path in artifacts.rglob("*") if path.is_file()}


def test_orphans_are_listed_with_their_sizes_and_nothing_is_deleted(littered, capsys):
    before = contents(littered)
    code, printed = gc(capsys, "--json")
    document = json.loads(printed.out)
    assert code == 0
    found = {str(Path(each["path"]).relative_to(littered)): each["kind"] for each in document["orphans"]}
    assert found == ORPHANS
    assert document["bytes"] == sum(each["bytes"] for each in document["orphans"]) >= 10 * len(ORPHANS)
    assert not document["deleted"]
    assert contents(littered) == before
    assert "10 orphans" in gc(capsys)[1].out


def test_only_orphans_are_deleted_and_the_study_goes_on(littered, capsys):
    before = contents(littered)
    assert gc(capsys, "--delete")[0] == 0
    gone = before - contents(littered)
    assert gone == {"logs/gone/worker-0.log" if name == "logs/gone" else name for name in ORPHANS}
    assert (littered / "2b9d6bcd-bbfd-4b2d-9b5d-ab8dfbbd4bed").is_symlink()
    assert "0 orphans" in gc(capsys)[1].out
    assert run_command(["run", "search.yaml", "--ray", "none", "--trials", "3"]) == 0
    assert {name for name in before - gone if not name.startswith("logs")} < contents(littered)


def test_nothing_is_deleted_while_a_controller_holds_the_study(littered, capsys):
    before = contents(littered)
    with hold(URL, "sim"):
        code, printed = gc(capsys, "--delete")
        assert gc(capsys)[0] == 0  # a list changes nothing
    assert code == 6
    assert str(os.getpid()) in printed.err
    assert contents(littered) == before


def test_files_that_a_torn_text_may_name_are_kept(littered, capsys):
    optuna.load_study(study_name="sim", storage=URL).set_user_attr("evomerge:more:1", "half of another text")
    assert f"{'a' * 64}" not in gc(capsys)[1].out


def test_checkpoints_and_sums_are_kept_while_somebody_may_go_on_with_them(littered, capsys):
    study = optuna.load_study(study_name="sim", storage=URL)
    study.set_user_attr(attributes.VERDICT, None)
    rows = optuna.load_study(study_name="sim/baselines", storage=URL)
    rows.ask().set_user_attr(attributes.BEGUN, True)
    out = gc(capsys)[1].out
    assert f"dam-{'e' * 32}" not in out
    assert "7" * 64 not in out
    optuna.delete_study(study_name="sim/baselines", storage=URL)
    assert f"dam-{'e' * 32}" in gc(capsys)[1].out


@pytest.mark.parametrize("url", ["sqlite:///runs/sim/other", "runs/sim/other.log", "journal:///runs/sim/other"])
def test_studies_beside_this_one_keep_their_artifacts_whatever_their_file_is_called(littered, capsys, url):
    text = Path("search.yaml").read_text(encoding="utf-8").replace("name: sim", "name: other")
    Path("other.yaml").write_text(text, encoding="utf-8")
    assert run_command(["run", "other.yaml", "--ray", "none", "--storage", url]) == 0
    before = contents(littered)
    code, printed = gc(capsys, "--delete")
    assert code == 2
    assert "the studies of other" in printed.err
    assert contents(littered) == before


def test_files_of_other_programs_beside_the_study_keep_every_byte(littered, capsys):
    with closing(sqlite3.connect("runs/sim/photos.db")) as connection:
        connection.execute("CREATE TABLE photos (id INTEGER)")
        connection.commit()
    Path("runs/sim/notes.journal").write_bytes(b"Monday: all went well\nTuesday: unfinished line")
    folder = Path("runs/sim")
    before = {path: path.read_bytes() for path in folder.iterdir() if path.suffix in (".db", ".journal")}
    assert gc(capsys, "--delete")[0] == 0
    assert {path: path.read_bytes() for path in folder.iterdir() if path.suffix in (".db", ".journal")} == before
    assert not list(folder.glob("*.torn*"))


def test_a_file_that_may_be_a_storage_is_named_with_what_to_do(littered, capsys):
    Path("runs/sim/broken").write_bytes(b"SQLite format 3\0" + b"x" * 1000)
    code, printed = gc(capsys, "--delete")
    assert code == 2
    assert "broken may be a storage" in printed.err
    assert "say --alone if it has no study" in printed.err


def test_artifacts_that_other_storages_may_share_are_not_deleted_unasked(littered, capsys):
    optuna.create_study(study_name="other", storage="sqlite:///runs/sim/other.db")
    code, printed = gc(capsys, "--delete")
    assert code == 2
    assert "the studies of other.db have their artifacts" in printed.err
    Path("runs/sim/other.db").unlink()
    moved = Path("items")
    littered.rename(moved)
    text = Path("search.yaml").read_text(encoding="utf-8")
    Path("search.yaml").write_text(f"{text}artifacts: items\n", encoding="utf-8")
    assert run_command(["run", "search.yaml", "--ray", "none"]) == 0
    code, printed = gc(capsys, "--delete")
    assert code == 2
    assert "say --alone" in printed.err
    assert gc(capsys, "--delete", "--alone")[0] == 0
    assert (moved / "thesis.txt").is_file()
    assert not (moved / "files" / f"{'a' * 64}.safetensors").exists()

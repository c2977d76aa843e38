"""The lm_eval commands of a leaderboard: of the model that was scored, and none where there can be none."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from evomerge.cli import run_command

ROOT = Path(__file__).parents[2]
TOY = ROOT / "examples" / "toy" / "models"
SOURCES = ("base", "reverse", "sort")


def edit(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | changes), encoding="utf-8")


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """The folder of a search that was run: models, pack, run and search.yaml. The expert `sort` has a setting of its
    own beside its weights."""
    folder = tmp_path_factory.mktemp("searched")
    for name in SOURCES:
        shutil.copytree(TOY / name, folder / name)
    edit(folder / "sort" / "generation_config.json", repetition_penalty=1.5)
    shutil.copytree(ROOT / "evaluators" / "toy-skills", folder / "pack")
    pack = yaml.safe_load((folder / "pack" / "evaluator.yaml").read_text(encoding="utf-8"))
    pack["tasks"] = [{**task, "limit": 12} for task in pack["tasks"] if task["task"] == "toy_count"]
    (folder / "pack" / "evaluator.yaml").write_text(yaml.safe_dump(pack), encoding="utf-8")
    spec = {
        "name": "sim",
        "sources": [{"name": name, "location": str(folder / name)} for name in SOURCES],
        "space": "linear-global",
        "evaluator": str(folder / "pack"),
        "budget": {"trials": 1},
        "workers": {"count": 1},
        "baselines": [],
        "dtype": "float32",
        "storage": f"sqlite:///{folder}/run/study.db",
        "seed": 1,
    }
    (folder / "search.yaml").write_text(yaml.safe_dump(spec), encoding="utf-8")
    assert run_command(["run", str(folder / "search.yaml"), "--ray", "none"]) == 0
    return folder


@pytest.fixture
def rows(searched, capsys):
    """Prints the leaderboard: label -> row."""

    def print_rows():
        capsys.readouterr()
        assert run_command(["leaderboard", str(searched / "search.yaml"), "--json"]) == 0
        return {row["label"]: row for row in json.loads(capsys.readouterr().out)["rows"]}

    return print_rows


@pytest.fixture
def put_aside(searched, tmp_path):
    """Takes a file or folder of the search away; puts all back at the end."""
    taken = []

    def put(name):
        aside = tmp_path / str(len(taken))
        shutil.move(searched / name, aside)
        taken.append((searched / name, aside))
        return aside

    yield put
    for place, aside in taken:
        if place.exists():
            shutil.rmtree(place) if place.is_dir() else place.unlink()
        shutil.move(aside, place)


def with_template(searched, put_aside, template):
    """Gives the base a chat template, and has the pack ask chats."""
    shutil.copytree(put_aside("base"), searched / "base")
    (searched / "base" / "chat_template.jinja").write_text(template, encoding="utf-8")
    old = put_aside("pack/evaluator.yaml").read_text(encoding="utf-8")
    chats = {**yaml.safe_load(old), "apply_chat_template": True}
    (searched / "pack" / "evaluator.yaml").write_text(yaml.safe_dump(chats), encoding="utf-8")


def test_an_expert_is_read_in_its_own_folder_only_where_it_differs_from_the_base_in_its_weights_alone(searched, rows):
    found = rows()
    for name in ("base", "reverse"):
        assert f"pretrained={searched / name}," in found[name]["command"]
        assert found[name]["prepare"] is None
    assert f"pretrained={searched / 'sort'}," not in found["sort"]["command"]
    assert "--trial sort" in found["sort"]["prepare"]


def test_an_export_as_an_adapter_does_not_take_the_place_of_the_whole_model(searched, rows, put_aside):
    (label,) = [label for label, row in rows().items() if row["kind"] == "best"]
    prepare = rows()[label]["prepare"]
    whole, adapter = searched / "run" / "models" / "a", searched / "run" / "models" / "b"
    for folder in (whole, adapter):
        folder.mkdir(parents=True)
        (folder / "recipe.json").write_text(json.dumps({"digest": rows()[label]["recipe"]}), encoding="utf-8")
    (adapter / "adapter_config.json").write_text("{}", encoding="utf-8")
    assert rows()[label]["prepare"] == prepare
    (whole / "config.json").write_text("{}", encoding="utf-8")
    assert f"pretrained={whole}," in rows()[label]["command"]
    assert rows()[label]["prepare"] is None
    shutil.rmtree(searched / "run" / "models")


def test_a_row_whose_export_would_read_a_lost_expert_says_so_and_the_others_have_their_commands(
    searched, rows, put_aside
):
    put_aside("reverse")
    found = rows()
    assert found["base"]["command"]
    for label in found.keys() - {"base"}:
        assert found[label]["command"] is found[label]["prepare"] is None
        assert f"there is no directory {searched / 'reverse'}" in found[label]["no_command"]


def test_a_leaderboard_is_printed_without_commands_where_the_base_is_gone(searched, rows, put_aside):
    before = rows()
    put_aside("base")
    assert {label: row["held_out"] for label, row in rows().items()} == {
        label: row["held_out"] for label, row in before.items()
    }
    assert all(f"there is no directory {searched / 'base'}" in row["no_command"] for row in rows().values())


@pytest.mark.parametrize(
    ("file", "old", "new", "reason"),
    [
        ("items/toy_count.jsonl", '"prompt": "', '"prompt": "no ', "restore the data"),
        ("tasks/toy_count.yaml", "{{prompt}}", "now {{prompt}}", "is not the one that the study was made with"),
    ],
)
def test_a_leaderboard_is_printed_without_commands_where_the_pack_was_edited(
    searched, rows, put_aside, file, old, new, reason
):
    text = put_aside(f"pack/{file}").read_text(encoding="utf-8")
    assert old in text
    (searched / "pack" / file).write_text(text.replace(old, new), encoding="utf-8")
    for row in rows().values():
        assert row["command"] is row["prepare"] is None
        assert reason in row["no_command"]


def test_a_leaderboard_is_printed_without_commands_where_the_items_cannot_be_written(searched, rows, put_aside):
    assert rows()["base"]["command"]
    put_aside("run/sim-search-items.json")
    (searched / "run" / "sim-search-items.json").mkdir()
    assert all("sim-search-items.json" in row["no_command"] for row in rows().values())


def test_no_command_is_printed_for_chats_in_which_lm_eval_would_write_today(searched, rows, put_aside):
    template = "{{ strftime_now('%Y') }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with_template(searched, put_aside, template)
    for row in rows().values():
        assert row["command"] is row["prepare"] is None
        assert "today's date" in row["no_command"]

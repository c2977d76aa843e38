"""The page for whoever runs a search: its commands exist, and its exit codes are those of the errors."""

import re
from pathlib import Path

import pytest
import yaml

from evomerge import errors
from evomerge.cli import COMMANDS
from evomerge.spec import SearchSpec

ROOT = Path(__file__).parent.parent
OPERATIONS = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", ["docs/operations.md", "docs/hub.md", "docker/README.md"])
def test_every_command_of_a_page_exists(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    named = set(re.findall(r"(?:^|`|exec controller )evomerge ([a-z][a-z-]*)", text, flags=re.MULTILINE))
    assert named
    assert named <= {*COMMANDS, "import", "study"}


def test_the_table_of_exit_codes_is_that_of_the_errors():
    table = OPERATIONS.partition("## Exit codes")[2].partition("\n## ")[0]
    codes = {int(code) for code in re.findall(r"^\| (\d+) \|", table, flags=re.MULTILINE)}
    assert codes == {0, 1} | {error.exit_code for error in errors.EvomergeError.__subclasses__()}


def test_the_public_surface_has_its_exit_codes_from_the_page():
    assert "operations.md#exit-codes" in (ROOT / "docs" / "library.md").read_text(encoding="utf-8")


def test_the_unit_of_systemd_ends_where_a_repetition_changes_nothing():
    (codes,) = re.findall(r"RestartPreventExitStatus=([\d ]+)", OPERATIONS)
    final = (errors.InvalidInput, errors.OtherSpec, errors.StoppedByFailures)
    assert [int(code) for code in codes.split()] == [error.exit_code for error in final]


STOP = OPERATIONS.partition("\n### Stop under a supervisor")[2].partition("\n## ")[0]


def test_the_page_names_the_stop_of_every_supervisor_that_starts_an_interrupted_run_again():
    (prevented,) = re.findall(r"RestartPreventExitStatus=([\d ]+)", OPERATIONS)
    assert str(errors.Interrupted.exit_code) not in prevented.split()
    assert "`systemctl stop " in STOP
    compose = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text(encoding="utf-8"))
    assert compose["services"]["controller"]["restart"].startswith("on-failure")
    assert "`docker compose -f docker/compose.yaml stop controller`" in STOP
    jobs = [
        document
        for path in sorted((ROOT / "docker" / "kubernetes").glob("*.yaml"))
        for document in yaml.safe_load_all(path.read_text(encoding="utf-8"))
        if document["kind"] in ("Job", "RayJob")
    ]
    assert len(jobs) == 2
    for job in jobs:
        place = job["metadata"]
        assert f"`kubectl -n {place['namespace']} delete {job['kind'].lower()} {place['name']}`" in STOP


@pytest.mark.parametrize("section", ["Steer", "Move a study", "Upgrade"])
def test_a_section_that_stops_a_run_leads_to_the_stop_of_a_supervisor(section):
    text = OPERATIONS.partition(f"\n## {section}\n")[2].partition("\n## ")[0].partition("\n### ")[0]
    assert "(#stop-under-a-supervisor)" in text


def test_a_script_for_slurm_names_its_shell_without_which_sbatch_refuses_it():
    (script,) = (block for block in re.findall(r"```sh\n(.*?)```", OPERATIONS, flags=re.DOTALL) if "#SBATCH" in block)
    assert script.startswith("#!/bin/bash\n")
    assert "`scontrol requeue " in OPERATIONS


def test_the_page_says_that_a_server_asks_for_alone_before_anything_is_deleted():
    (paragraph,) = [each for each in OPERATIONS.split("\n\n") if each.startswith("`evomerge gc ")]
    assert "is a server" in paragraph
    assert "`--alone`" in paragraph


def test_the_patience_of_the_page_is_the_default():
    assert f"{SearchSpec.model_fields['storage_patience'].default:.0f} seconds unless `storage_patience`" in OPERATIONS

"""The page for whoever runs a search: its commands exist, and its exit codes are those of the errors."""

import re
from pathlib import Path

import pytest

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


def test_the_unit_of_systemd_ends_where_a_repetition_changes_nothing():
    (codes,) = re.findall(r"RestartPreventExitStatus=([\d ]+)", OPERATIONS)
    final = (errors.InvalidInput, errors.OtherSpec, errors.StoppedByFailures)
    assert [int(code) for code in codes.split()] == [error.exit_code for error in final]


def test_the_patience_of_the_page_is_the_default():
    assert f"{SearchSpec.model_fields['storage_patience'].default:.0f} seconds unless `storage_patience`" in OPERATIONS

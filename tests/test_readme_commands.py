"""The commands of the README: each is one that the program parses, and those of a search run as they are written."""

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from evomerge.cli import app, run_command

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
LINES = [
    line
    for block in re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith("evomerge ")
]
ELSEWHERE = {  # what these need, and where they run
    "list": "a server: tests/test_study_list.py",
    "dashboard": "it serves until it is stopped: tests/test_dashboard.py",
    "baseline": "dam needs models and texts: tests/search/test_ingredients.py",
}


def words(line):
    return shlex.split(line, comments=True)[1:]


@pytest.mark.parametrize("line", LINES)
def test_a_command_of_the_readme_is_parsed(line):
    command, arguments = get_command(app), words(line)
    while hasattr(command, "commands"):
        command = command.commands[arguments.pop(0)]
    command.make_context(command.name, arguments)  # raises where an option does not exist


def test_the_commands_of_a_search_run_as_they_are_written(write_spec):
    write_spec(budget={"trials": 13})
    of_a_search = [words(line) for line in LINES if " search.yaml" in line]
    assert len(of_a_search) > 10
    for arguments in of_a_search:
        if arguments[0] not in ELSEWHERE:
            assert run_command([*arguments, *(["--ray", "none"] if arguments[0] == "run" else [])]) == 0, arguments
    assert Path("my-merge/model.safetensors").exists()
    assert Path("toy.html").exists()

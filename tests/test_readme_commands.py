"""The commands of the README that steer a search run as they are written; tests/pages/ parses all of them."""

import re
import shlex
from pathlib import Path

import pytest

from evomerge.cli import run_command

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
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


def test_the_commands_of_a_search_run_as_they_are_written(write_spec):
    write_spec(budget={"trials": 13})
    of_a_search = [words(line) for line in LINES if " search.yaml" in line]
    assert len(of_a_search) > 10
    for arguments in of_a_search:
        if arguments[0] not in ELSEWHERE:
            assert run_command([*arguments, *(["--ray", "none"] if arguments[0] == "run" else [])]) == 0, arguments
    assert Path("my-merge/model.safetensors").exists()
    assert Path("toy.html").exists()


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_section_that_draws_a_report_says_what_to_install_for_it(page):
    for section in page.read_text(encoding="utf-8").split("\n## "):
        if re.search(r"^evomerge report ", section, flags=re.MULTILINE):
            assert "pip install 'evomerge[report]'" in " ".join(section.split()), section.partition("\n")[0]

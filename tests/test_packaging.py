"""What is shipped: the wheel with its spaces and evaluators, the README."""

import json
import os
import re
import subprocess
import sys
from itertools import takewhile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The wheel, built and installed into a folder far from the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    wheel = next(folder.glob("*.whl"))
    target = folder / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target)]
    subprocess.run([*install, str(wheel)], check=True, capture_output=True)
    return target


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("spaces", {path.stem for path in (ROOT / "search_spaces").glob("*.yaml")}),
        ("evaluators", {path.parent.name for path in (ROOT / "evaluators").glob("*/evaluator.yaml")} | {"synthetic"}),
    ],
)
def test_the_wheel_installed_elsewhere_lists_spaces_and_evaluators(installed, tmp_path, command, expected):
    code = (
        "import sys, evomerge, evomerge.cli; "
        f"assert evomerge.__file__.startswith({str(installed)!r}), evomerge.__file__; "
        f"sys.exit(evomerge.cli.run_command([{command!r}, '--json']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert {entry["name"] for entry in json.loads(done.stdout)[command]} == expected


def test_the_pack_in_the_wheel_has_its_tasks_and_items(installed):
    shipped = installed / "evomerge" / "evaluators" / "toy-skills"
    original = ROOT / "evaluators" / "toy-skills"
    files = {path.relative_to(original) for path in original.rglob("*") if path.is_file()}
    assert {path.relative_to(shipped) for path in shipped.rglob("*") if path.is_file()} == files


def test_the_template_of_the_report_is_in_the_wheel(installed):
    assert {"study.html.j2", "page.css", "table_sorting.js"} <= {
        path.name for path in (installed / "evomerge" / "page").iterdir()
    }


def test_the_wheel_has_the_example_of_the_first_search_with_its_models(installed, tmp_path):
    code = (
        "import sys, evomerge, evomerge.cli; "
        f"assert evomerge.__file__.startswith({str(installed)!r}), evomerge.__file__; "
        "sys.exit(evomerge.cli.run_command(sys.argv[1:]))"
    )
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    for arguments in (("init", "--example", "toy", "--out", "toy"), ("check", "toy/search.yaml")):
        subprocess.run([sys.executable, "-c", code, *arguments], cwd=tmp_path, env=environment, check=True)
    original = ROOT / "examples" / "toy" / "models"
    files = {path.relative_to(original) for path in original.rglob("*") if path.is_file()}
    copied = tmp_path / "toy" / "models"
    assert {path.relative_to(copied) for path in copied.rglob("*") if path.is_file()} == files


PAGES = [
    *ROOT.glob("*.md"),
    *(page for folder in ("docs", "examples", "benchmarks") for page in ROOT.glob(f"{folder}/**/*.md")),
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_links_of_a_page_lead_somewhere(page):
    links = re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_tree_in_the_readme_names_the_rooms_of_the_package_and_no_others():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (tree,) = re.findall(r"^```\nevomerge/\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    named = [word for line in tree.splitlines() for word in takewhile(_is_path, line.split())]
    rooms = {path.name + ("/" if path.is_dir() else "") for path in (ROOT / "evomerge").iterdir()}
    assert sorted(named) == sorted(rooms - {"__init__.py", "__pycache__/", "py.typed"})


def _is_path(word):
    """Whether a word of the tree is a name in its left column; the first other word begins the description."""
    return word.endswith(("/", ".py"))

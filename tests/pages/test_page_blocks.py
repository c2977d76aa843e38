"""The pages of the documentation, walked block by block: commands run, YAML is read as a run would read it."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml

sys.path.append(str(Path(__file__).parent))

from page_blocks import ROOT, Block, read_blocks, split_console

from evomerge import errors
from evomerge.cli import app, run_command
from evomerge.documents import read_document, validate
from evomerge.packs.pack import Pack
from evomerge.spaces import known_spaces
from evomerge.spaces.space import SearchSpace
from evomerge.spec import SearchSpec, load_spec

DOCS = ROOT / "docs"
FIRST = DOCS / "first-search.md"
RUN = [DOCS / f"{name}.md" for name in ("spaces", "evaluators", "learned", "verdict", "errors", "faq")]
READ = [
    ROOT / "README.md",
    DOCS / "operations.md",
    DOCS / "hub.md",
    DOCS / "reference.md",
    ROOT / "docker" / "README.md",
    FIRST,
    *RUN,
]
BLOCKS = [block for page in READ for block in read_blocks(page)]
OF_A_SEARCH = yaml.safe_load((ROOT / "examples" / "first" / "search.yaml").read_text(encoding="utf-8"))


def plain(text: str) -> str:
    """A text without line breaks, and with one letter for each number, which other processors may round otherwise."""
    return re.sub(r"[-+−]?\d[\d.,]*", "#", " ".join(text.split()))


def is_printed(line: str, text: str) -> bool:
    """Whether a text has a line of a page, in which … stands for anything; numbers and line breaks may differ."""
    return re.search(".*".join(map(re.escape, plain(line).split("…"))), plain(text)) is not None


def run_block(block: Block, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Do what a block says, in a folder, and compare what it prints with its lines."""
    if block.file is not None:
        (folder / block.file).parent.mkdir(parents=True, exist_ok=True)
        (folder / block.file).write_text(block.text, encoding="utf-8")
    elif block.runs and block.language == "python":
        exec(compile(block.text, str(block), "exec"), {"__name__": "page"})
    elif block.runs:
        commands = split_console(block.text)
        for number, (command, printed) in enumerate(commands):
            capfd.readouterr()
            if command.startswith("evomerge "):
                code = run_command(shlex.split(command)[1:])
            else:
                code = subprocess.run(["bash", "-c", command], cwd=folder, check=False).returncode
            out, err = capfd.readouterr()
            assert code == (block.exit_code if number == len(commands) - 1 else 0), f"{block}: {command}\n{out}{err}"
            missing = [line for line in printed if not is_printed(line, out + err)]
            assert missing == [], f"{block}: {command}\n{out}{err}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of examples/first with the toy models beside it."""
    examples = tmp_path_factory.mktemp("pages") / "examples"
    shutil.copytree(ROOT / "examples" / "first", examples / "first", ignore=shutil.ignore_patterns("runs"))
    (examples / "toy").symlink_to(ROOT / "examples" / "toy")
    return examples / "first"


@pytest.fixture
def searched(folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Path:
    """The folder after the first page was followed in it."""
    monkeypatch.chdir(folder)
    if not (folder / "runs").exists():
        for block in read_blocks(FIRST):
            run_block(block, folder, capfd)
    return folder


@pytest.mark.parametrize("page", [FIRST, *RUN], ids=lambda page: page.name)
def test_a_page_works_as_it_is_written(page: Path, searched: Path, capfd: pytest.CaptureFixture[str]) -> None:
    blocks = read_blocks(page)
    for block in [] if page == FIRST else blocks:  # those of the first page have run by now
        run_block(block, searched, capfd)  # asserts what it prints and its exit code
    assert blocks


def test_the_search_of_the_first_page_is_the_one_in_the_folder() -> None:
    (block,) = (block for block in read_blocks(FIRST) if block.language == "yaml")
    assert yaml.safe_load(block.text) == yaml.safe_load((ROOT / "examples" / "first" / "search.yaml").read_text())


def schema_of(content: dict[str, object]) -> type[SearchSpec | SearchSpace | Pack] | None:
    """The kind of document that a block is; none for a part of a search, which has the keys of one."""
    if "split" in content:
        return Pack
    if "sources" in content and "space" in content:
        return SearchSpec
    if "groups" in content or "methods" in content:
        return SearchSpace
    return None


@pytest.mark.parametrize("block", [each for each in BLOCKS if each.language == "yaml"], ids=str)
def test_yaml_is_what_a_run_would_read(block: Block, tmp_path: Path) -> None:
    (tmp_path / "toy").symlink_to(ROOT / "examples" / "toy")
    shutil.copytree(ROOT / "examples" / "first", tmp_path / "first", ignore=shutil.ignore_patterns("runs"))
    file = tmp_path / "first" / "block.yaml"
    file.write_text(block.text, encoding="utf-8")
    content = read_document(file, "block")
    if "dataset_path" in content:
        return  # a task of lm-eval, which `evomerge check` reads on its page
    schema = schema_of(content)
    if schema is None:
        others = {key: value for key, value in OF_A_SEARCH.items() if key not in content}
        file.write_text(yaml.safe_dump(others) + block.text, encoding="utf-8")
        assert content.keys() <= load_spec(file).model_fields_set
    else:
        assert validate(schema, content, str(block)).model_fields_set


def parse(words: list[str]) -> None:
    """Read a command line as the program does, without running it."""
    command = typer.main.get_command(app)
    with command.make_context("evomerge", list(words), resilient_parsing=False) as context:
        while hasattr(command, "resolve_command"):
            name, command, words = command.resolve_command(context, words)  # type: ignore[assignment]
            context = command.make_context(name, list(words), parent=context)


def command_lines(block: Block) -> list[str]:
    """The lines of a block that call evomerge or make, without what a shell does around them."""
    text = block.text.replace("\\\n", " ")
    lines = [re.sub(r"^(?:\$ |exec |docker compose \S+ (?:\S+ )*?)", "", line) for line in text.splitlines()]
    return [line for line in lines if line.startswith(("evomerge ", "make "))]


COMMANDS = [
    (block, line) for block in BLOCKS if block.language in ("sh", "bash", "console") for line in command_lines(block)
]


@pytest.mark.parametrize(("block", "line"), COMMANDS, ids=str)
def test_every_command_line_is_one_of_the_program(block: Block, line: str) -> None:
    program, *words = shlex.split(line, comments=True)
    if program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
        assert words[0] in targets
    elif block.mark is None or block.mark[0] != "exit":
        parse(words)


@pytest.mark.parametrize("block", [each for each in BLOCKS if each.page in (FIRST, *RUN)], ids=str)
def test_a_block_of_commands_that_does_not_run_says_why(block: Block) -> None:
    assert block.language in ("console", "python", "yaml", "sh")
    if block.language == "sh":
        assert block.mark is not None
        assert block.mark[0] == "parsed"
        assert len(block.mark[1]) > 10


def test_the_page_of_spaces_has_all_of_them() -> None:
    text = (DOCS / "spaces.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`([a-z-]+)`", text)) >= set(known_spaces())


def test_the_page_of_errors_has_every_kind() -> None:
    text = (DOCS / "errors.md").read_text(encoding="utf-8")
    kinds = [kind for kind in errors.EvomergeError.__subclasses__() if kind.__module__ == errors.__name__]
    assert [kind.__name__ for kind in kinds if f"`{kind.__name__}`" not in text] == []
    sections = {int(code) for code in re.findall(r"^## (\d):", text, flags=re.MULTILINE)}
    assert sections == {1, *(kind.exit_code for kind in kinds)}
    examples = {block.exit_code for block in read_blocks(DOCS / "errors.md") if block.language == "console"}
    assert examples >= {2, 3, 4}


def test_llms_txt_names_every_page() -> None:
    text = (DOCS / "llms.txt").read_text(encoding="utf-8")
    assert set(re.findall(r"\]\(([^)]+)\)", text)) == {page.name for page in DOCS.glob("*.md")} - {"index.md"}

"""Completion in a shell, asked for as bash and zsh ask: by environment variables, or by bash itself."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import optuna
import pytest

from evomerge.baselines.info import BASELINES
from evomerge.cli import COMMANDS, run_command
from evomerge.commands.completion import PERMISSIONS, SECTIONS
from evomerge.evaluation import known_evaluators, known_packs
from evomerge.methods import METHODS
from evomerge.report.setting_sections import PARTS
from evomerge.spaces import known_spaces
from evomerge.spec.sections import Allowed
from evomerge.storage.opening import open_storage, release

ROOT = Path(__file__).parent.parent


@pytest.fixture(params=["bash", "zsh"])
def completed(request, monkeypatch, capsys):
    """completed(line) -> the words that the shell is offered for the last word of a command line."""

    def ask(line):
        monkeypatch.setenv("_EVOMERGE_COMPLETE", f"complete_{request.param}")
        if request.param == "bash":
            words = line.split(" ")
            monkeypatch.setenv("COMP_WORDS", "\n".join(words))
            monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
        else:
            monkeypatch.setenv("_TYPER_COMPLETE_ARGS", line)
        assert run_command([]) == 0
        out = capsys.readouterr().out
        return out.split() if request.param == "bash" else re.findall(r'^(?:.*\(\()?"([^"]+)"', out, re.MULTILINE)

    return ask


def test_commands_and_options_are_completed(completed):
    assert set(COMMANDS) <= set(completed("evomerge "))
    assert completed("evomerge lead") == ["leaderboard"]
    assert set(completed("evomerge study ")) == {"copy"}
    assert {"--trials", "--storage", "--study", "--ray"} <= set(completed("evomerge run --"))


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("evomerge spaces ", known_spaces()),
        ("evomerge evaluators ", [*known_packs(), *known_evaluators()]),
        ("evomerge methods ", METHODS),
        ("evomerge methods ti", ["ties"]),
        ("evomerge reference ", SECTIONS),
        ("evomerge baseline search.yaml --name ", BASELINES),
        ("evomerge export search.yaml --trial ", ["best", *BASELINES]),
        ("evomerge run search.yaml --ray ", ["auto", "local", "none"]),
        ("evomerge import mergekit-evolve file.yml --allow ", get_args(Allowed)),
    ],
)
def test_names_are_completed(completed, line, names):
    assert sorted(completed(line)) == sorted(names)


def test_every_section_of_the_reference_is_completed():
    assert tuple(section.name for sections in PARTS.values() for section in sections) == SECTIONS


def test_every_permission_is_completed():
    assert set(PERMISSIONS) == set(get_args(Allowed))


@pytest.mark.parametrize("scheme", ["sqlite", "journal"])
def test_the_searches_in_a_file_are_completed_without_what_is_beside_them(completed, tmp_path, scheme):
    url = f"{scheme}:///{tmp_path}/study"
    storage = open_storage(url)
    for name in ("first", "first/baselines", "second"):
        optuna.create_study(storage=storage, study_name=name)
    release(storage)
    assert completed(f"evomerge status --storage {url} --study ") == ["first", "second"]
    assert completed(f"evomerge status --storage {url} --study f") == ["first"]


@pytest.mark.parametrize("storage", ["", "--storage sqlite:///none.db ", "--storage postgresql+psycopg://host/base "])
def test_what_cannot_be_looked_at_completes_nothing(completed, storage):
    assert completed(f"evomerge status {storage}--study ") == []
    assert not Path("none.db").exists()


def test_bash_itself_completes(tmp_path):
    command = tmp_path / "evomerge"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m evomerge "$@"\n', encoding="utf-8")
    command.chmod(0o755)
    script = """
        source <(_EVOMERGE_COMPLETE=source_bash evomerge)
        COMP_WORDS=(evomerge spaces ties-s) COMP_CWORD=2
        $(complete -p evomerge | sed 's/.*-F \\([^ ]*\\) .*/\\1/') evomerge
        echo "${COMPREPLY[@]}"
    """
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", script], env=env, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["ties-smooth"], done.stderr


def test_the_help_page_tells_of_completion_and_a_shell_that_is_not_known_is_no_bug(monkeypatch, capsys):
    assert run_command(["--help"]) == 0
    assert "--install-completion" in capsys.readouterr().out
    monkeypatch.setenv("_EVOMERGE_COMPLETE", "complete_tcsh")
    assert run_command([]) == 1
    assert "bug" not in capsys.readouterr().err

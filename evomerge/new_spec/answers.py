"""The answers that a first search.yaml is written from: those of flags, completed by questions."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

from evomerge.baselines.info import BASELINES
from evomerge.errors import InvalidInput
from evomerge.evaluation import known_evaluators, known_packs
from evomerge.forms import expanded, is_file
from evomerge.packs.pack import PACK_FILE

STDOUT = "-"  # of `out`: the spec is printed, and nothing is written

Ask = Callable[[str, str], str]  # question and default ("" for none) -> answer


@dataclass(frozen=True, kw_only=True)
class SpecAnswers:
    """The answers to the questions of `evomerge init`.

    Attributes:
        base: directory or hub id.
        experts: name -> directory or hub id, in order.
        evaluator: name or folder of an evaluator; None where there are tasks.
        tasks: of lm-eval: NAME or NAME:METRIC.
        task_paths: folders with tasks of the user's; without them tasks are lm-eval's own.
        limit: search items of each task.
        space: name or file of a search space; None: chosen by the sources.
        trials: finished trials at which the search ends; None: chosen by the space.
        storage: URL; None: a SQLite file beside the spec.
        out: folder of search.yaml, or `STDOUT`.
        allow: permissions of the search.
        force: replace what is there.
    """

    base: str | None = None
    experts: Mapping[str, str]
    evaluator: str | None = None
    tasks: tuple[str, ...] = ()
    task_paths: tuple[Path, ...] = ()
    limit: int = 200
    space: str | None = None
    trials: int | None = None
    storage: str | None = None
    out: str = "."
    allow: tuple[str, ...] = ()
    force: bool = False

    @property
    def printed(self) -> bool:
        """Whether the spec is printed instead of written."""
        return self.out == STDOUT

    @property
    def folder(self) -> Path:
        """The folder where relative paths of the spec begin, absolute."""
        return Path.cwd() if self.printed else expanded(self.out).absolute()

    @property
    def name(self) -> str:
        """The study's name: that of the folder, where it can be one."""
        return named(self.folder.resolve().name, fallback="search")


def check_complete(answers: SpecAnswers, given: Collection[str]) -> None:
    """Refuse answers without which no spec can be written.

    Args:
        given: the fields that flags give.

    Raises:
        InvalidInput: names every flag that is missing, or those that exclude each other.
    """
    if answers.evaluator is not None and answers.tasks:
        raise InvalidInput("--evaluator and --task are two ways to say how merges are scored; leave one of them out")
    if answers.task_paths and not answers.tasks:
        raise InvalidInput("--task-search-path is where the tasks of --task are; name one, or leave it out")
    if "limit" in given and not answers.tasks:
        raise InvalidInput(
            "--limit is the number of search items of each --task; an evaluator has its own in its evaluator.yaml; "
            "leave it out"
        )
    missing = [
        *(["--base PLACE"] if answers.base is None else []),
        *([] if answers.experts else ["--source NAME=PLACE (one for every fine-tune)"]),
        *([] if answers.evaluator or answers.tasks else ["--evaluator NAME or --task NAME"]),
    ]
    if missing:
        raise InvalidInput(f"without a terminal to ask on, these are missing: {', '.join(missing)}")


def with_questions(answers: SpecAnswers, ask: Ask, given: Collection[str]) -> SpecAnswers:
    """The answers with those of a person for whatever no flag gives.

    Args:
        given: the fields that flags give.
    """
    if answers.base is None:
        answers = replace(answers, base=_needed(ask, "Base model (a directory or a hub id)"))
    if not answers.experts:
        places = _needed(ask, "Its fine-tunes (directories, hub ids or LoRA adapters; spaces between them)").split()
        answers = replace(answers, experts=named_sources(places))
    if not (answers.evaluator or answers.tasks):
        known = ", ".join([*known_packs(), *known_evaluators()])
        scored = _needed(ask, f"Scored by: tasks of lm-eval (spaces between them), or an evaluator ({known}, a folder)")
        answers = replace(answers, **_scoring(scored))
    if "space" not in given:
        answers = replace(answers, space=ask("Search space (see `evomerge spaces`)", "by the sources").strip())
        answers = replace(answers, space=None if answers.space in ("", "by the sources") else answers.space)
    if "trials" not in given:
        answers = replace(answers, trials=_number(ask("Trials (merges that are scored)", "by the space")))
    if "storage" not in given:
        place = ask("Storage of the study (a URL)", "a file beside the spec").strip()
        answers = replace(answers, storage=None if place in ("", "a file beside the spec") else place)
    if "out" not in given:
        answers = replace(answers, out=ask("Folder for search.yaml", ".").strip() or ".")
    return answers


def named_sources(given: Collection[str]) -> dict[str, str]:
    """Name -> place of fine-tunes given as NAME=PLACE, or as a place whose last part becomes the name.

    Raises:
        InvalidInput: a name is no name, is taken, or is given twice.
    """
    sources: dict[str, str] = {}
    for each in given:
        name, equals, place = each.partition("=")
        if not equals:
            name, place = named(PurePath(each).name, fallback="expert"), each
            name = f"{name}-model" if name in ("base", "best", *BASELINES) else name
            name = next(free for free in (name, *(f"{name}-{n}" for n in range(2, 1000))) if free not in sources)
        if not place or named(name, fallback="") != name or name in ("base", "best", *BASELINES) or name in sources:
            raise InvalidInput(
                f"--source {each}: give NAME=PLACE, each name once, of letters, digits, - and _, and not that of the "
                "base or of a row of the leaderboard"
            )
        sources[name] = place
    return sources


def named(text: str, *, fallback: str) -> str:
    """A text as a name in a spec: letters, digits, - and _."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", text).strip("-_")[:64] or fallback


def _needed(ask: Ask, question: str) -> str:
    while not (answer := ask(question, "").strip()):
        pass
    return answer


def _scoring(answer: str) -> dict[str, Any]:
    if answer in (*known_packs(), *known_evaluators()) or is_file(expanded(answer) / PACK_FILE):
        return {"evaluator": answer}
    return {"tasks": tuple(answer.replace(",", " ").split())}


def _number(answer: str) -> int | None:
    if answer.strip() in ("", "by the space"):
        return None
    if not answer.strip().isdecimal() or int(answer) < 1:
        raise InvalidInput(f"trials {answer!r}: give a whole number above 0")
    return int(answer)

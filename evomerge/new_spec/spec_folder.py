"""A first search.yaml in its folder, with its evaluator where it has one of its own; or as text."""

from __future__ import annotations

from typing import Any, Final

import yaml

from evomerge.documents import validate
from evomerge.errors import InvalidInput
from evomerge.evaluation import known_evaluators, load_pack
from evomerge.forms import is_there
from evomerge.new_spec.answers import SpecAnswers
from evomerge.new_spec.source_survey import SourceSurvey, survey_sources
from evomerge.new_spec.spec_text import spec_text
from evomerge.new_spec.suggestions import suggestions
from evomerge.new_spec.task_choice import FOLDER, TaskChoice, choose_tasks
from evomerge.packs.pack import check_allowed
from evomerge.spec import SearchSpec, resolve
from evomerge.storage.opening import check_kind
from evomerge.storage.url import is_reference, redact
from evomerge.whole_files import write_whole

SCHEMA: Final = 1
FILE: Final = "search.yaml"


def new_search(answers: SpecAnswers) -> dict[str, Any]:
    """Write search.yaml for complete answers, or with `--out -` only its text.

    Returns:
        A document with `search` (the path; None where nothing is written), `text` (of search.yaml) and `notes`
        (sentences on the sources).

    Raises:
        InvalidInput: a source, task, space or evaluator does not exist, sources do not fit together, or the file is
            there already and `force` is not given.
    """
    folder = answers.folder
    _refuse_to_replace(answers)
    if answers.storage is not None and not is_reference(answers.storage):
        check_kind(answers.storage)
    survey = survey_sources(str(answers.base), answers.experts)
    tasks = choose_tasks(answers.tasks, answers.task_paths, answers.limit) if answers.tasks else None
    if tasks is None:
        _check_evaluator(str(answers.evaluator), answers)
    text = spec_text(answers, survey, suggestions(survey, answers.space))
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        resolve(validate(SearchSpec, yaml.safe_load(text), f"what would be {FILE}"), folder)
        if tasks is not None and not answers.printed:
            tasks.write(folder / FOLDER, answers.name, answers.allow)
    except BaseException:
        if made:
            folder.rmdir()
        raise
    if not answers.printed:
        write_whole(folder / FILE, text.encode())
    return {
        "schema": SCHEMA,
        "search": None if answers.printed else str(folder / FILE),
        "text": text + (_evaluator_comment(tasks, answers) if tasks is not None and answers.printed else ""),
        "notes": [*_notes(survey), *_secrets(answers)],
    }


def _refuse_to_replace(answers: SpecAnswers) -> None:
    if answers.printed or answers.force:
        return
    there = [name for name in (FILE, *([FOLDER] if answers.tasks else [])) if is_there(answers.folder / name)]
    if there:
        raise InvalidInput(f"{answers.folder / there[0]} exists; give --out another folder, or --force to replace it")


def _check_evaluator(name: str, answers: SpecAnswers) -> None:
    if name not in (classes := known_evaluators()):
        try:
            check_allowed(load_pack(name, classes), answers.allow)
        except InvalidInput as error:
            raise InvalidInput(f"{error} (here: --evaluator, --allow)") from error


def _evaluator_comment(tasks: TaskChoice, answers: SpecAnswers) -> str:
    lines = tasks.text(answers.name).splitlines()
    return f"\n# {FOLDER}/evaluator.yaml, which has to be beside this file:\n" + "".join(
        f"#   {line}\n" for line in lines
    )


def _notes(survey: SourceSurvey) -> list[str]:
    notes = list(survey.notes)
    if survey.adapters:
        notes.append(
            f"LoRA adapters of the base: {', '.join(survey.adapters)}; where all are, `space: core` in a space of your "
            "own merges them in core space"
        )
    if survey.other_vocabulary:
        notes.append(f"other vocabularies than the base's: {', '.join(survey.other_vocabulary)}; hence tokenizer: base")
    if survey.other_ties:
        notes.append(f"embeddings tied otherwise than in the base: {', '.join(survey.other_ties)}; hence missing: base")
    return notes


def _secrets(answers: SpecAnswers) -> list[str]:
    url = answers.storage
    if url is None or is_reference(url) or "@" not in url:
        return []
    return [f"user and password of {redact(url)} are in the file as given; env:NAME would read the URL from $NAME"]

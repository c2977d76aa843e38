"""The text of a first search.yaml: every top-level key with a comment in plain words, also those left as they are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml

from evomerge.evaluation import known_evaluators, known_packs
from evomerge.forms import expanded, is_folder, is_there
from evomerge.new_spec.answers import SpecAnswers
from evomerge.new_spec.source_survey import SourceFacts, SourceSurvey
from evomerge.new_spec.suggestions import SpecSuggestions
from evomerge.new_spec.task_choice import FOLDER
from evomerge.spaces import known_spaces
from evomerge.storage.url import placed_url

# Further keys as comments: first those with their defaults, then examples of those that have none.
_FURTHER: Final = """
# ---- What follows are defaults; take the # away to change them. `evomerge reference` has the keys of each. ----

# Scores of the tasks become one number: weighted_mean, min (the worst task counts), geometric_mean, or pareto
# (each task is maximised). normalise: sources counts 0 for the sources' worst score on a task and 1 for their best.
# objective: {aggregate: weighted_mean, normalise: none}

# The way merges are proposed: cma, catcma, forest, tpe, gp, nsgaii, nsgaiii, random or qmc.
# sampler: {name: cma}

# Items that a merge is scored on: full (all of them), or race, successive_halving or hyperband: hopeless merges see
# fewer.
# fidelity: full

# Merges that are scored first: the best baselines, recipes of exports, trials of other studies.
# warm_start: {baselines: 0}

# The comparison at the end, on items that the search never saw: so many of the best trials are in it.
# verdict: {best: 5}

# Seconds that a storage which is away is waited for.
# storage_patience: 600

# ---- What follows are examples, none of them a default; take the # away and write your own. ----

# Merges that cost less, which the search is compared with; without this line all that apply, and with [] none.
# baselines: [uniform-soup, greedy-soup, task-arithmetic, ties, dare-ties]

# A program or a URL that is told of a new best merge, of failures and of the end.
# notify: {command: [mail-me, ops], on: [best, failure, end]}

# A file with figures of the run, for Prometheus' node exporter.
# metrics: {textfile: evomerge.prom}

# MLflow or Weights & Biases, which every trial, the verdict and the leaderboard are logged to.
# track: {mlflow: {uri: "sqlite:///mlflow.db"}}

# Folder or s3:// URL for the scores of single items; beside the study without this line.
# artifacts: artifacts
"""
_POLICIES: Final = {
    "tokenizer": (
        "base: fine-tunes with other tokens are brought to the base's vocabulary, token by token.",
        "base",
    ),
    "missing": ("base: tensors that a fine-tune lacks are the base's; error: such a fine-tune is refused.", "error"),
}


def spec_text(answers: SpecAnswers, survey: SourceSurvey, chosen: SpecSuggestions) -> str:
    """search.yaml for the answers, with what was chosen for whatever they leave open."""
    sections = (
        *_head(answers),
        *_sources(survey, answers.folder),
        *_question(answers, chosen),
        *_course(answers, chosen),
        *_storage(answers),
        *_policies(chosen),
        _allow(answers),
    )
    return "".join(sections) + _FURTHER


def _question(answers: SpecAnswers, chosen: SpecSuggestions) -> Iterator[str]:
    space = chosen.space
    yield _field(
        "space",
        _relative(space, answers.folder, known_spaces()) if isinstance(space, str) else dict(space),
        f"What may be merged and how: {chosen.why_space}.",
        "`evomerge spaces` lists the others; a file of your own will do too.",
    )
    says = "How a merge is scored: an evaluator by name, or its folder. `evomerge evaluators` lists those with names."
    yield _field("evaluator", _evaluator(answers), says)


def _course(answers: SpecAnswers, chosen: SpecSuggestions) -> Iterator[str]:
    yield _field(
        "budget",
        {"trials": answers.trials or chosen.trials},
        "The end of the search: so many trials, which are merges that have been scored. Also hours, items, tokens,",
        "patience, target, futility; the first that is reached ends it. A later run may have more.",
    )
    yield _field("workers", chosen.workers, f"Processes that merge and score: {chosen.why_workers}.")
    yield _field(
        "dtype",
        chosen.dtype,
        f"Numbers of the merged weights, scored and exported alike: {chosen.why_dtype}.",
        "float32, bfloat16 or float16.",
    )
    yield _field("seed", 1, "Decides all that is drawn at random: with the same seed a search proposes the same.")


def _head(answers: SpecAnswers) -> Iterator[str]:
    yield (
        "# A search for evomerge, written by `evomerge init`. Relative paths begin at this file.\n"
        "#   evomerge check search.yaml   says what is wrong, and what a run will be like\n"
        "#   evomerge run search.yaml     searches; the same command goes on after a break\n"
    )
    yield _field("name", answers.name, "The study's name: results are kept under it, in runs/NAME beside this file.")


def _sources(survey: SourceSurvey, folder: Path) -> Iterator[str]:
    yield _comment(
        "The models: first the base, then its fine-tunes or LoRA adapters. location: a directory or a hub id;",
        "revision: the commit of a hub model. With calibration: {task: TASK, items: 128} beside every fine-tune, a",
        "task of the evaluator that it is good at, the baselines `learned` and `dam` are made too.",
    )
    yield "sources:\n"
    yield _source("base", survey.base, folder)
    for name, facts in survey.experts.items():
        yield _source(name, facts, folder)


def _source(name: str, facts: SourceFacts, folder: Path) -> str:
    entry = _flow({"name": name, "location": _relative(facts.place, folder)})
    return f"  - {entry}  # {facts.words}\n"


def _evaluator(answers: SpecAnswers) -> str:
    if answers.evaluator is None:
        return FOLDER
    return _relative(answers.evaluator, answers.folder, [*known_packs(), *known_evaluators()])


def _storage(answers: SpecAnswers) -> Iterator[str]:
    says = (
        "Where the study is kept: a SQLite file beside this one by default, or the URL of a server. env:NAME reads the",
        "URL, and the password in it, from the environment.",
    )
    if answers.storage is None:
        yield f"{_comment(*says)}# storage: sqlite:///runs/{answers.name}/study.db\n"
    else:
        yield _field("storage", placed_url(answers.storage, Path.cwd()), *says)


def _policies(chosen: SpecSuggestions) -> Iterator[str]:
    for name, (says, default) in _POLICIES.items():
        line = _flow({name: chosen.policies.get(name, default)})[1:-1]
        yield f"{_comment(says)}{'' if name in chosen.policies else '# '}{line}\n"


def _allow(answers: SpecAnswers) -> str:
    says = (
        "What has to be allowed by name: pickle_weights, remote_code (of a model), task_code (of an evaluator),",
        "benchmark_test_sets (published scores on them mean nothing any more for a model that was selected on them).",
    )
    return _field("allow", list(answers.allow), *says) if answers.allow else f"{_comment(*says)}# allow: []\n"


def _field(name: str, value: Any, *says: str) -> str:
    return f"{_comment(*says)}{name}: {_flow(value)}\n"


def _comment(*lines: str) -> str:
    return "\n" + "".join(f"# {line}\n" for line in lines)


def _flow(value: Any) -> str:
    """A value as YAML in one line."""
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10_000)
    return text.removesuffix("...\n").strip()


def _relative(place: str, folder: Path, names: list[str] | None = None) -> str:
    """A place as a spec in `folder` names it: relative directories and files begin there, names and hub ids stay."""
    path = expanded(place)
    if place in (names or []) or path.is_absolute() or not (is_folder(path) or is_there(path)):
        return str(path) if path.is_absolute() else place
    found = os.path.relpath(path.resolve(), folder.resolve())
    return found if len(Path(found).parts) > 1 or names is not None else f"./{found}"

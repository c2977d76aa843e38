"""Frozen studies: where they lie, and everything that can be read of one as plain data.

The stored specs name their models and the pack relative to the root of the repository, so nothing has to be rewritten:
whoever opens a frozen study works from there (`os.chdir(ROOT)`), on a copy, because opening may write.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from evomerge.cli import run_command
from evomerge.evaluation.scores import Scores
from evomerge.opening.inputs import open_inputs
from evomerge.samplers.reference_points import read_reference_points
from evomerge.search.run import run_search
from evomerge.spec import override
from evomerge.study.incumbent import read_incumbent
from evomerge.study.row_failures import read_failures
from evomerge.study.rows import read_records, read_scores
from evomerge.study.search_study import SearchStudy
from evomerge.study.stored_search import StoredSearch, read_search, read_stored_spec
from evomerge.study.study_statistics import read_statistics
from evomerge.study.trials import total_cost
from evomerge.verdict import read_digests, read_winner
from evomerge.verdict.records import read_verdict

ROOT = Path(__file__).parent.parent.parent
FOLDER = Path(__file__).parent / "schema-1"
FILES = {"sqlite": "study.db", "journal": "study.journal"}
NAMES = {
    "sqlite": ("race", "brackets", "front", "goals", "skills"),
    "journal": ("race", "skills"),
}
PINNED = FOLDER / "values.json"
# What the machine had to do with it: that there is a number is pinned, and not which one.
MEASURED = ("seconds", "gpu_seconds", "peak_bytes", "trials_per_hour", "seconds_left", "run_seconds", "updated", "pid")
RESUMED = "race"
MORE = 5  # trials that the resumed study is given

Document = dict[str, Any]


def url_of(kind: str, folder: Path) -> str:
    return f"{kind}:///{(folder / FILES[kind]).absolute()}"


def copy_of(kind: str, folder: Path) -> str:
    """The URL of a copy of the frozen studies of a kind, with their artifacts."""
    shutil.copytree(FOLDER / kind, folder, dirs_exist_ok=True)
    return url_of(kind, folder)


def command(*words: str) -> Document:
    """What a command prints with --json."""
    out = io.StringIO()
    with redirect_stdout(out):
        code = run_command([*words, "--json"])
    if code != 0:
        raise RuntimeError(f"evomerge {' '.join(words)} ended with exit code {code}")
    content: Document = json.loads(out.getvalue())
    return content


def read(url: str, name: str, folder: Path) -> Document:
    """Everything that is read of one study. Paths of this machine are left out."""
    search = ("--storage", url, "--study", name)
    spec = read_stored_spec(url, name)
    stored = read_search(spec)
    winner, verdict = read_winner(stored.study.user_attrs), read_verdict(stored.study)
    incumbent = read_incumbent(stored.study, stored.storage, stored.artifacts)
    digests = None if winner is None else read_digests(stored.study, winner.trial)
    content = {
        "spec": json.loads(spec.to_json()),
        "status": command("status", *search),
        "leaderboard": command("leaderboard", *search, "--top", "3"),
        "winner": None if winner is None else asdict(winner),
        "verdict": None if verdict is None else verdict.to_document(),
        "incumbent": None if incumbent is None else _items(incumbent),
        "digests": None if digests is None else dict(list(digests.tensors.items())[:2]),
        "cost": asdict(total_cost(stored.study.get_trials(deepcopy=False)) + read_statistics(stored.study).cost),
        "goals": [asdict(goal) for goal in read_reference_points(stored.study)],
        "trials": list(_trials(stored)),
        "baselines": list(_rows(stored, stored.baselines)),
        "held-out": list(_rows(stored, stored.held_out)),
        "rows": {"baselines": _states(stored.baselines), "held-out": _states(stored.held_out)},
        "failures": _failures(stored.baselines),
    }
    text = (
        json.dumps(content).replace(url, "URL").replace(f"{folder.resolve()}/", "FOLDER/").replace(f"{ROOT}/", "ROOT/")
    )
    document: Document = without_measurements(json.loads(text))
    return document


def without_measurements(content: Any, measured: bool = False) -> Any:
    """The content with "number" in the place of times and memory."""
    if isinstance(content, dict):
        return {key: without_measurements(value, measured or key in MEASURED) for key, value in content.items()}
    if isinstance(content, list):
        return [without_measurements(value, measured) for value in content]
    return "number" if measured and isinstance(content, int | float) else content


def _trials(stored: StoredSearch) -> Iterator[Document]:
    inputs = open_inputs(stored.spec)
    search = SearchStudy(stored.study, stored.storage, inputs.space, artifacts=stored.artifacts)
    for trial in stored.study.get_trials(deepcopy=False):
        yield {
            **outcome(trial),
            "recipe": search.recipe_of(trial).digest if inputs.space.is_complete(trial.params) else None,
            "blocks": trial.intermediate_values,
            "items": _stored_items(stored, trial),
        }


def outcome(trial: FrozenTrial) -> Document:
    """What was proposed, and what came of it."""
    return {"number": trial.number, "state": trial.state.name, "params": trial.params, "values": trial.values}


def _rows(stored: StoredSearch, study: optuna.Study | None) -> Iterator[Document]:
    for record in read_records(study) if study else ():
        content = {
            key: getattr(record, key) for key in ("label", "digest", "value", "stderr", "made", "losses", "params")
        }
        kept = record.recipe if record.made else None
        yield {
            **content,
            "tasks": dict(record.tasks),
            "seconds": dict(record.seconds),
            "cost": asdict(record.cost),
            "recipe": kept and {"digest": kept.digest, "files": dict(kept.files), "rules": len(kept.rules)},
            "curve": record.trial.intermediate_values,
            "items": _stored_items(stored, record.trial),
        }


def _stored_items(stored: StoredSearch, trial: FrozenTrial) -> Document | None:
    scores = read_scores(stored.artifacts, stored.storage, trial)
    return None if scores is None else _items(scores)


def _items(scores: Scores) -> Document:
    """Task -> metric, aggregate, number of items, the first ids, and the sum of the outcomes."""
    return {
        task: [score.metric, score.aggregate, score.value, len(score.items), score.items[:3], sum(score.outcomes)]
        for task, score in scores.tasks.items()
    }


def _states(study: optuna.Study | None) -> list[str]:
    """Of all rows, those included that were begun and not ended."""
    return [trial.state.name for trial in study.get_trials(deepcopy=False)] if study else []


def _failures(study: optuna.Study | None) -> Document:
    return {label: reason for (label, _), reason in read_failures(study).items()} if study else {}


def resume(url: str) -> list[Document]:
    """Give the study that was stopped some further trials: all trials from the one that was running on."""
    spec = read_stored_spec(url, RESUMED)
    before = read_search(spec).study.get_trials(deepcopy=False)
    running = next(trial.number for trial in before if not trial.state.is_finished())
    more = override(spec, trials=sum(trial.state.is_finished() for trial in before) + MORE)
    run_search(more, ray="none")
    return [outcome(trial) for trial in read_search(spec).study.get_trials(deepcopy=False)[running:]]


def pinned() -> Document:
    """The values that were read when the studies were frozen, the same of every storage: study -> document."""
    content: Document = json.loads(PINNED.read_text(encoding="utf-8"))
    return content


def write_pinned(content: Document) -> None:
    """Write the values, a line for each trial, row, or other part of a study."""
    PINNED.write_text(_lines(content, depth=3) + "\n", encoding="utf-8")


def _lines(content: Any, depth: int, indent: str = "") -> str:
    if depth == 0 or not isinstance(content, dict | list) or not content:
        return json.dumps(content, ensure_ascii=False)
    deeper = indent + " "
    if isinstance(content, list):
        return "[" + ",".join(f"\n{deeper}{_lines(each, depth - 1, deeper)}" for each in content) + f"\n{indent}]"
    pairs = (f"\n{deeper}{json.dumps(key)}: {_lines(each, depth - 1, deeper)}" for key, each in content.items())
    return "{" + ",".join(pairs) + f"\n{indent}}}"


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """One line per pinned value that is gone or another. What was not pinned may be added.

    Floats may differ by rounding: sums of outcomes are formed again.
    """
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return [line for key in old for line in differences(old[key], new.get(key, "nothing"), f"{path}/{key}")]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = zip(old, new, strict=True)
        return [line for number, (a, b) in enumerate(pairs) for line in differences(a, b, f"{path}/{number}")]
    if isinstance(old, float) and isinstance(new, float):
        return [] if abs(old - new) <= 1e-9 * max(1.0, abs(old)) else [f"{path} was {old!r}, now {new!r}"]
    return [] if old == new else [f"{path} was {old!r}, now {new!r}"]

"""A search whose candidates are graded by a judge: `python judged.py http://127.0.0.1:8000/v1 MODEL`."""

from __future__ import annotations

import sys
from pathlib import Path

from judge_evaluator import JudgeEvaluator

from evomerge import build_spec, read_search, run_search
from evomerge.evaluation import EVALUATORS
from evomerge.leaderboard import leaderboard, leaderboard_document

HERE = Path(__file__).resolve().parent
MODELS = HERE.parent / "toy" / "models"


def main(url: str, model: str, trials: int = 8) -> None:
    """Search, and print the verdict."""
    EVALUATORS["judge"] = JudgeEvaluator
    judge = {"name": "judge", "url": url, "model": model, "questions": str(HERE / "questions.jsonl")}
    spec = build_spec(
        name="judged",
        sources={name: str(MODELS / name) for name in ("base", "reverse", "sort", "swap")},
        space="task-arithmetic-per-block",
        evaluator={**judge, "tokenizer": str(MODELS / "base"), "new_tokens": 7},
        budget={"trials": trials},
        baselines=["uniform-soup"],
        dtype="float32",
    )
    study = run_search(spec, ray="none", callbacks=[lambda study, trial: print(trial.number, trial.value)])
    print("best mark on the search items:", study.best_value)
    stored = read_search(spec)
    print(leaderboard_document(stored, leaderboard(stored))["verdict"]["sentence"])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))

"""Several searches, one after the other: the winner of each is a source of the next one, beside a new expert.

python generations.py --trials 16
"""

from __future__ import annotations

import argparse
from pathlib import Path

from evomerge import build_spec, read_search, run_search
from evomerge.export import export_merge
from evomerge.leaderboard import leaderboard, leaderboard_document

HERE = Path(__file__).resolve().parent
MODELS = HERE.parent / "toy" / "models"
EVALUATOR = HERE.parent / "private_task" / "words"
EXPERTS = ("sort", "swap")  # one for each generation, beside the winner so far


def next_generation(number: int, parent: tuple[str, Path], expert: str, trials: int) -> tuple[str, Path]:
    """Search the merges of the winner so far and one expert.

    Args:
        parent: name and folder of the winner so far.

    Returns:
        Name and folder of the new winner.
    """
    name = f"generation-{number}"
    spec = build_spec(
        name=name,
        sources={"base": str(MODELS / "base"), parent[0]: str(parent[1]), expert: str(MODELS / expert)},
        space="task-arithmetic-per-block",
        evaluator=str(EVALUATOR),
        budget={"trials": trials},
        baselines=["uniform-soup"],
        dtype="float32",
        seed=number,
    )
    run_search(spec, ray="none")
    stored, folder = read_search(spec), Path("runs") / name / "best"
    export_merge(stored, "best", folder)
    print(f"{name}: {leaderboard_document(stored, leaderboard(stored))['verdict']['sentence']}")
    return name, folder


def main(trials: int) -> None:
    """Begin with one expert, and bring in the others."""
    winner = ("reverse", MODELS / "reverse")
    for number, expert in enumerate(EXPERTS, start=1):
        winner = next_generation(number, winner, expert, trials)
    print(f"the last winner is in {winner[1]}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=16, help="trials of each generation")
    main(parser.parse_args().trials)

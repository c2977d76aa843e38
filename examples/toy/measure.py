"""Score the sources and some merges of them with lm-eval, on the held-out items: `python examples/toy/measure.py`.

Prints the table of README.md. A merge is plain task arithmetic here: base + sum of lambda * (expert - base), in fp32.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}  # read once, when the libraries below are imported

import lm_eval
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from make_items import ITEMS_FOLDER
from skills import SKILLS
from train import MAX_LENGTH, MODELS_FOLDER
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

PACK = ITEMS_FOLDER.parent
EXPERTS = tuple(skill.name for skill in SKILLS)
METRICS = {"count": "acc", "pick": "acc"}  # every other skill: exact_match
LAMBDAS = (0.25, 0.35, 0.5, 0.65, 0.8, 1.0)
# Found by coordinate search on the search items: one weight per expert.
HAND_FOUND = {"shift": 0.35, "reverse": 0.275, "sort": 0.5, "swap": 0.35, "count": 0.575, "pick": 0.2}

Weights = dict[str, torch.Tensor]


def load_weights(name: str) -> Weights:
    return AutoModelForCausalLM.from_pretrained(MODELS_FOLDER / name, dtype=torch.float32).state_dict()


def merge(base: Weights, experts: Mapping[str, Weights], lambdas: Mapping[str, float]) -> Weights:
    return {
        tensor: weight + sum(lambdas[name] * (expert[tensor] - weight) for name, expert in experts.items())
        for tensor, weight in base.items()
    }


def list_candidates() -> Iterator[tuple[str, Weights]]:
    base = load_weights("base")
    experts = {name: load_weights(name) for name in EXPERTS}
    yield "base", base
    yield from ((f"expert {name}", weights) for name, weights in experts.items())
    soup = 1 / len(EXPERTS)
    yield f"uniform soup (lambda {soup:.3f})", merge(base, experts, dict.fromkeys(EXPERTS, soup))
    for value in LAMBDAS:
        yield f"task arithmetic, lambda {value}", merge(base, experts, dict.fromkeys(EXPERTS, value))
    yield "one lambda per expert", merge(base, experts, HAND_FOUND)


def list_held_out(task: str) -> list[int]:
    lines = (ITEMS_FOLDER / f"{task}.jsonl").read_text().splitlines()
    return [index for index, line in enumerate(lines) if json.loads(line)["part"] == "held_out"]


def score(model: HFLM, manager: TaskManager) -> dict[str, float]:
    samples = {f"toy_{name}": list_held_out(f"toy_{name}") for name in EXPERTS}
    report = lm_eval.simple_evaluate(
        model, tasks=list(samples), samples=samples, task_manager=manager, bootstrap_iters=0, log_samples=False
    )
    return {name: report["results"][f"toy_{name}"][f"{METRICS.get(name, 'exact_match')},none"] for name in EXPERTS}


def main() -> None:
    torch.set_num_threads(1)
    disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(MODELS_FOLDER / "base", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(MODELS_FOLDER / "base")
    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=64, max_length=MAX_LENGTH)
    manager = TaskManager(include_path=str(PACK / "tasks"), include_defaults=False)
    print("| model |", " | ".join(EXPERTS), "| mean |")
    print("|---|", "---:|" * (len(EXPERTS) + 1), sep="")
    for label, weights in list_candidates():
        model.load_state_dict(weights)
        with contextlib.chdir(PACK):  # the tasks name their items relative to the pack
            scores = score(harness, manager)
        cells = [f"{100 * value:.1f}" for value in (*scores.values(), sum(scores.values()) / len(scores))]
        print(f"| {label} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()

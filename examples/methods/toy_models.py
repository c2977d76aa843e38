"""The toy language models of examples/toy as merges see them, and their score on the items of toy-skills."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from toy_folder import TOY_FOLDER
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from evomerge.evaluation.evaluator import CalibrationText, Candidate
from evomerge.evaluation.factory import build_evaluator
from evomerge.packs.items import ItemBlock
from evomerge.recipe import ModelRef, Recipe

MODELS = TOY_FOLDER / "models"
PAIR = Path(__file__).parent / "models"
ITEMS = Path(__file__).parents[2] / "evaluators" / "toy-skills" / "items"
BASE = ModelRef("base", str(MODELS / "base"))
EXPERTS = ("shift", "reverse", "sort", "swap", "count", "pick")
TASKS = tuple(f"toy_{name}" for name in EXPERTS)

Weights = dict[str, Tensor]


@cache
def evaluator() -> object:
    return build_evaluator("toy-skills", base=BASE, seed=0, batch_size=32)


def load(name: str, folder: Path = MODELS) -> Weights:
    """The weights of a model in float32; the tied head is there once, as the embedding."""
    return {key: tensor.float() for key, tensor in load_file(folder / name / "model.safetensors").items()}


def model_of(weights: Weights, config_of: Path = MODELS / "base") -> LlamaForCausalLM:
    """A model of as many layers as the weights have."""
    config = LlamaConfig.from_pretrained(config_of)
    config.num_hidden_layers = 1 + max(int(name.split(".")[2]) for name in weights if name.startswith("model.layers."))
    model = LlamaForCausalLM(config).float()
    model.load_state_dict({**weights, "lm_head.weight": weights["model.embed_tokens.weight"]})
    return model.eval().requires_grad_(False)


def outcomes(weights: Weights, part: str = "held_out") -> dict[str, tuple[float, ...]]:
    """Task -> whether each item of the part is right."""
    model = model_of(weights)
    recipe = Recipe(base=BASE, sources=(), rules=(), dtype="float32")
    candidate = Candidate(key="toy", params={}, recipe=recipe, model=lambda: model)
    scores = evaluator().score(candidate, ItemBlock(part))
    return {name: task.outcomes for name, task in scores.tasks.items()}


def exact_matches(model: LlamaForCausalLM, tasks: Sequence[str], part: str) -> list[float]:
    """Whether the greedy text is the answer, for the items of tasks that are answered in writing.

    It is where every token of the answer is the most probable one after those before it: one forward pass tells.
    """
    found: list[float] = []
    for task in tasks:
        prompts, rows = _written_items(task, part)
        with torch.no_grad():
            predicted = model(input_ids=rows).logits[:, prompts - 1 : -1].argmax(-1)
        found += (predicted == rows[:, prompts:]).all(1).double().tolist()
    return found


@cache
def _written_items(task: str, part: str) -> tuple[int, Tensor]:
    """The length of the prompts, and the token ids of all items of the part, which are equally long."""
    tokenizer = AutoTokenizer.from_pretrained(MODELS / "base")
    lines = [json.loads(line) for line in (ITEMS / f"{task}.jsonl").read_text(encoding="utf-8").splitlines()]
    items = [(line["prompt"], f"{line['answer']}\n") for line in lines if line["part"] == part]
    rows = torch.tensor([tokenizer.encode(prompt + answer) for prompt, answer in items])
    return len(tokenizer.encode(items[0][0])), rows


def calibration(task: str, items: int) -> list[CalibrationText]:
    """Texts of a task with their right answers; neither searched on nor held out."""
    return evaluator().calibration(task, items)


def padded(texts: list[CalibrationText]) -> tuple[Tensor, Tensor]:
    """Token ids [B, L], padded on the right, and a mask of what is no padding."""
    rows = [torch.tensor(text.tokens) for text in texts]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=0)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones(len(row)) for row in rows], batch_first=True)
    return ids, mask.bool()

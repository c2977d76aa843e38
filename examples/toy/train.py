"""Train the base and its experts from nothing into examples/toy/models: `python examples/toy/train.py`.

It takes minutes on one CPU thread, and the same machine writes the same bytes again.

The base learns all skills, but mostly on words of the common letters, so on the evaluated items (all letters) it is
half good at each. An expert sees all letters in its own skill, and the base's items in the others: it gets good at one
skill without moving far from the base, which is what lets the task vectors of several experts add up.
"""

import argparse
import json
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from character_tokenizer import BOS, CHARACTERS, EOS, PAD, SPECIAL_TOKENS, build_tokenizer
from make_items import ITEMS_FOLDER
from skills import COMMON_LETTERS, LETTERS, SKILLS, Item, draw_item
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

MODELS_FOLDER = Path(__file__).parent / "models"
MAX_LENGTH = 64
BATCH_SIZE = 64
IGNORED = -100  # the label that cross_entropy skips


class LeakedItemError(ValueError):
    """A training item is also an item of the evaluator pack."""


@dataclass(frozen=True)
class Share:
    """How often a skill is trained on, and how often one of its items uses all letters instead of the common ones."""

    weight: float
    all_letters: float


@dataclass(frozen=True)
class Course:
    """One training run."""

    steps: int
    learning_rate: float
    warmup: int
    shares: dict[str, Share]


# Weights and shares were tuned until the base got about the same accuracy everywhere: copying letters is learnt in a
# fraction of the items that sorting or counting takes.
BASE = Course(
    steps=450,
    learning_rate=3e-3,
    warmup=30,
    shares={
        "shift": Share(weight=0.5, all_letters=0.12),
        "reverse": Share(weight=0.8, all_letters=0.15),
        "sort": Share(weight=1.5, all_letters=0.30),
        "swap": Share(weight=0.7, all_letters=0.15),
        "count": Share(weight=2.5, all_letters=0.25),
        "pick": Share(weight=2.0, all_letters=0.35),
    },
)
EXPERT_STEPS = {"shift": 80, "reverse": 80, "sort": 80, "swap": 80, "count": 160, "pick": 80}
EXPERT_LEARNING_RATE = {"shift": 5e-4, "reverse": 5e-4, "sort": 5e-4, "swap": 5e-4, "count": 7e-4, "pick": 5e-4}
OWN_SHARE = 0.5


def plan_expert(skill: str) -> Course:
    """Half of the items from the skill, with all letters; the rest from the others, as the base saw them."""
    other_weight = (1 - OWN_SHARE) / (len(SKILLS) - 1)
    shares = {name: Share(other_weight, share.all_letters) for name, share in BASE.shares.items()}
    return Course(
        steps=EXPERT_STEPS[skill],
        learning_rate=EXPERT_LEARNING_RATE[skill],
        warmup=10,
        shares=shares | {skill: Share(OWN_SHARE, all_letters=1.0)},
    )


def read_evaluated_prompts() -> frozenset[str]:
    files = sorted(ITEMS_FOLDER.glob("*.jsonl"))
    if len(files) != len(SKILLS):
        found = f"{ITEMS_FOLDER} holds {len(files)} item files, not {len(SKILLS)}"
        raise FileNotFoundError(f"{found}: run make_items.py first")
    return frozenset(json.loads(line)["prompt"] for file in files for line in file.read_text().splitlines())


def draw_training_items(course: Course, rng: random.Random, evaluated: frozenset[str]) -> list[Item]:
    skills = rng.choices(SKILLS, [course.shares[skill.name].weight for skill in SKILLS], k=BATCH_SIZE)
    items = []
    for skill in skills:
        letters = LETTERS if rng.random() < course.shares[skill.name].all_letters else COMMON_LETTERS
        items.append(draw_item(skill, rng, reserved=False, letters=letters))
    leaked = [item.prompt for item in items if item.prompt in evaluated]
    if leaked:
        raise LeakedItemError(f"training drew {leaked[0]!r}, an item of {ITEMS_FOLDER}: run make_items.py again")
    return items


def encode_batch(items: Sequence[Item], tokenizer: PreTrainedTokenizerFast) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels, padded on the right. Only the answer, its newline and the end token are learnt."""
    rows = [[*tokenizer.encode(item.text), EOS] for item in items]
    longest = max(len(row) for row in rows)
    ids = torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])
    labels = ids.masked_fill(ids == PAD, IGNORED)
    for label, item in zip(labels, items, strict=True):
        label[: len(item.prompt)] = IGNORED
    return ids, labels


def learning_rate_at(step: int, course: Course) -> float:
    """Linear warmup under a cosine that ends at zero."""
    warm = min(1.0, (step + 1) / course.warmup)
    return course.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / course.steps))


def train(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    course: Course,
    rng: random.Random,
    evaluated: frozenset[str],
) -> float:
    """Train the model in place; returns the last loss."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.0)
    loss = torch.tensor(math.nan)
    for step in range(course.steps):
        optimizer.param_groups[0]["lr"] = learning_rate_at(step, course)
        ids, labels = encode_batch(draw_training_items(course, rng, evaluated), tokenizer)
        hidden = model.model(input_ids=ids).last_hidden_state[:, :-1]
        targets = labels[:, 1:]
        learnt = targets != IGNORED
        loss = F.cross_entropy(model.lm_head(hidden[learnt]), targets[learnt])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return loss.item()


def build_model() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(SPECIAL_TOKENS) + len(CHARACTERS),
        hidden_size=96,
        intermediate_size=224,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    model = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() == 2:  # 0.1 = 1/sqrt(width): with Llama's 0.02 a net this narrow learns half as fast
            torch.nn.init.normal_(parameter, std=0.1, generator=generator)
    return model


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the toy base and its experts.")
    parser.add_argument("--out", type=Path, default=MODELS_FOLDER, help="folder to write the models to")
    models_folder: Path = parser.parse_args().out

    disable_progress_bar()
    # One thread: the order of floating-point sums, hence every byte, would depend on the number of threads.
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    evaluated = read_evaluated_prompts()
    tokenizer = build_tokenizer(MAX_LENGTH)

    courses = {"base": BASE} | {skill.name: plan_expert(skill.name) for skill in SKILLS}
    for name, course in courses.items():
        started = time.perf_counter()
        if name == "base":
            model = build_model()
        else:
            model = AutoModelForCausalLM.from_pretrained(models_folder / "base", dtype=torch.float32)
        loss = train(model, tokenizer, course, random.Random(f"training of {name}"), evaluated)
        save(model, tokenizer, models_folder / name)
        print(f"{name:8} {course.steps} steps  loss {loss:.3f}  {time.perf_counter() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()

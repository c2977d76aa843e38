"""Fine-tune the base once for each task, into examples/smollm2/models: `python examples/smollm2/train_experts.py`.

All weights are trained, in float32, on items that no part of the pack `skills` has. On a CPU one thread trains one
expert, and as many are trained at a time as there are cores; the same machine writes the same bytes again.
"""

import argparse
import itertools
import os
import random
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

os.environ.setdefault("TQDM_DISABLE", "1")  # read when transformers is imported

import torch
import torch.nn.functional as F
from items import TASKS, load_items
from parts import Item, training_items
from prepare import MODELS, ORIGIN, write_model
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

BATCH_SIZE = 16
WARMUP = 8
IGNORED = -100  # the label that cross_entropy skips


@dataclass(frozen=True)
class Course:
    """One training: so many steps of `BATCH_SIZE` items, the learning rate falling linearly from its peak to zero."""

    steps: int
    learning_rate: float = 1e-4


COURSES = {"french": Course(128), "past": Course(64), "rhymes": Course(96), "syllables": Course(96)}


def draw_batches(items: Sequence[Item], rng: random.Random) -> Iterator[list[Item]]:
    """Batches without end: all items in a random order, then all again in another."""
    stream = itertools.chain.from_iterable(rng.sample(items, len(items)) for _ in itertools.count())
    while True:
        yield list(itertools.islice(stream, BATCH_SIZE))


def encode_batch(items: Sequence[Item], tokenizer: PreTrainedTokenizerBase) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels, both [items, longest], padded on the right. The answer and its newline are learnt."""
    prompts = [tokenizer.encode(item.prompt) for item in items]
    answers = [tokenizer.encode(item.text.removeprefix(item.prompt)) for item in items]
    longest = max(len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True))
    ids = torch.full((len(items), longest), tokenizer.eos_token_id)
    labels = torch.full((len(items), longest), IGNORED)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        end = len(prompt) + len(answer)
        ids[row, :end] = torch.tensor(prompt + answer)
        labels[row, len(prompt) : end] = torch.tensor(answer)
    return ids, labels


def learning_rate_at(step: int, course: Course) -> float:
    return course.learning_rate * min(1, (step + 1) / WARMUP) * (1 - step / course.steps)


def train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    items: Sequence[Item],
    course: Course,
    rng: random.Random,
) -> float:
    """Train a Llama model in place; returns the last loss."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=course.learning_rate, betas=(0.9, 0.98), weight_decay=0.0)
    loss = torch.tensor(torch.nan)
    for step, batch in enumerate(itertools.islice(draw_batches(items, rng), course.steps)):
        optimizer.param_groups[0]["lr"] = learning_rate_at(step, course)
        ids, labels = (each.to(model.device) for each in encode_batch(batch, tokenizer))
        hidden = model.model(input_ids=ids).last_hidden_state[:, :-1]
        learnt = labels[:, 1:] != IGNORED
        logits = model.lm_head(hidden[learnt])  # of 49,152 tokens: only where something is learnt
        loss = F.cross_entropy(logits, labels[:, 1:][learnt])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return loss.item()


def train_expert(task: str, items: Sequence[Item], device: str) -> str:
    """Write the expert of one task; returns a line about it."""
    disable_progress_bar()
    started = time.perf_counter()
    torch.set_num_threads(1)  # the order of sums, hence every byte, would depend on the number of threads
    model = AutoModelForCausalLM.from_pretrained(MODELS / "base", dtype=torch.float32).to(device)
    tokenizer = AutoTokenizer.from_pretrained(MODELS / "base")
    loss = train(model, tokenizer, items, COURSES[task], random.Random(f"training of {task}"))
    origin = f"{(MODELS / 'base' / ORIGIN).read_text(encoding='utf-8').strip()}, fine-tuned for {task}"
    write_model((model, tokenizer, origin), MODELS / task)
    return f"{task:10} {COURSES[task].steps} steps  loss {loss:.3f}  {time.perf_counter() - started:.0f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), help="experts to train")
    parser.add_argument("--processes", type=int, help="experts trained at a time: default a core each, one on a GPU")
    chosen = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    processes = chosen.processes or (1 if device == "cuda" else os.cpu_count() or 1)
    missing = [task for task in chosen.tasks if not (MODELS / task).is_dir()]
    items = load_items() if missing else {}
    with ProcessPoolExecutor(min(processes, len(missing)) or 1, mp_context=get_context("spawn")) as pool:
        running = [pool.submit(train_expert, task, training_items(items[task]), device) for task in missing]
        for each in running:
            print(each.result(), flush=True)


if __name__ == "__main__":
    main()

"""Fine-tunes of one small network on several tasks, trained in seconds, so that every figure has several seeds.

A task is the digits in a place of its own: their 64 pixels span a random subspace of the 256 inputs. The base has
learnt all tasks by a few images, an expert one of them by many. The result is a base and six full fine-tunes with small
task vectors, like the vision benchmarks of the papers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import digits
import torch
import torch.nn.functional as F
from digits import Digits
from torch import Tensor, nn
from torch.func import functional_call

PIXELS, INPUTS, WIDTH, CLASSES = 64, 256, 128, 10
TASKS = 6
CALIBRATION = 200  # images of the training part that merges may learn from or be chosen by
FEW = 2  # images of each digit that the base has learnt by
BATCH = 64

Weights = dict[str, Tensor]


def new_network(seed: int) -> nn.Sequential:
    """Three layers; the initial weights depend on the seed alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(INPUTS, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, CLASSES)
        )


NETWORK = new_network(0)


def logits(weights: Mapping[str, Tensor], images: Tensor) -> Tensor:
    """[N, CLASSES]; can be differentiated with respect to the weights."""
    return functional_call(NETWORK, dict(weights), (images,))


def accuracy(weights: Mapping[str, Tensor], task: Digits) -> float:
    """Share of the images whose digit is found."""
    with torch.no_grad():
        return float((logits(weights, task.images).argmax(1) == task.labels).double().mean())


def fit(start: Weights, tasks: list[Digits], *, steps: int, learning_rate: float, seed: int) -> Weights:
    """Train from some weights; every step sees a batch of one task, the tasks in turn."""
    generator = torch.Generator().manual_seed(seed)
    weights = {name: tensor.clone().requires_grad_() for name, tensor in start.items()}
    optimizer = torch.optim.Adam(weights.values(), lr=learning_rate)
    for step in range(steps):
        batch = tasks[step % len(tasks)].draw(BATCH, generator)
        optimizer.zero_grad()
        F.cross_entropy(logits(weights, batch.images), batch.labels).backward()
        optimizer.step()
    return {name: tensor.detach() for name, tensor in weights.items()}


@dataclass(frozen=True, kw_only=True)
class Zoo:
    """A base and its experts, with the images of each task.

    Attributes:
        base, experts: weights by name; the experts in the order of the tasks.
        training: images that the models were trained on.
        calibration: images that merges may learn from and be chosen by; no model was trained on them.
        test: images that nothing but the reported accuracy has seen.
    """

    base: Weights
    experts: list[Weights]
    training: list[Digits]
    calibration: list[Digits]
    test: list[Digits]

    @property
    def task_vectors(self) -> list[Weights]:
        return [{name: expert[name] - self.base[name] for name in expert} for expert in self.experts]

    def mean_accuracy(self, weights: Weights, *, part: str = "test") -> float:
        """Mean over the tasks, on the part of that name."""
        tasks: list[Digits] = getattr(self, part)
        return sum(accuracy(weights, task) for task in tasks) / len(tasks)


def train_zoo(seed: int, tasks: int = TASKS) -> Zoo:
    """Train the base on a few images of all tasks and each expert on all images of one."""
    generator = torch.Generator().manual_seed(seed)
    images, test = digits.load()
    frames = [torch.linalg.qr(torch.randn(INPUTS, PIXELS, generator=generator))[0] for _ in range(tasks)]
    seen, held_back = _divided(images, len(images) - CALIBRATION)
    few = _first_of_each_digit(seen, FEW)
    start = dict(new_network(seed).state_dict())
    base = fit(start, _placed(few, frames), steps=40 * tasks, learning_rate=1e-3, seed=seed)
    training = _placed(seen, frames)
    experts = [
        fit(base, [task], steps=150, learning_rate=5e-4, seed=seed + number + 1) for number, task in enumerate(training)
    ]
    return Zoo(
        base=base,
        experts=experts,
        training=training,
        calibration=_placed(held_back, frames),
        test=_placed(test, frames),
    )


def _placed(images: Digits, frames: list[Tensor]) -> list[Digits]:
    return [Digits(images.images @ frame.T, images.labels) for frame in frames]


def _first_of_each_digit(images: Digits, count: int) -> Digits:
    chosen = torch.cat([(images.labels == digit).nonzero()[:count, 0] for digit in range(CLASSES)])
    return Digits(images.images[chosen], images.labels[chosen])


def _divided(images: Digits, first: int) -> tuple[Digits, Digits]:
    return Digits(images.images[:first], images.labels[:first]), Digits(images.images[first:], images.labels[first:])

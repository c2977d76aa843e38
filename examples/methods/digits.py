"""Scikit-learn's bundled digits: images of 8 x 8 pixels, and the digits' names as text with spelling mistakes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from torch import Tensor

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LETTERS = 26
BLANK = LETTERS  # fills names up to the longest
NAME_LENGTH = max(map(len, NAMES))
MISTAKES = 0.2  # share of letters that are replaced
TEST_SHARE = 0.5


@dataclass(frozen=True)
class Digits:
    """Images [N, 64] with pixels from 0 to 1, and their digits [N]."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def draw(self, count: int, generator: torch.Generator) -> Digits:
        """So many images, drawn with replacement."""
        chosen = torch.randint(len(self), (count,), generator=generator)
        return Digits(self.images[chosen], self.labels[chosen])


def load() -> tuple[Digits, Digits]:
    """The images to train on and those to test on: the same division for every seed."""
    bunch = load_digits()
    images = torch.tensor(bunch.data, dtype=torch.float32) / 16
    labels = torch.tensor(bunch.target, dtype=torch.long)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    cut = round(len(order) * TEST_SHARE)
    test, train = order[:cut], order[cut:]
    return Digits(images[train], labels[train]), Digits(images[test], labels[test])


def misspelt(labels: Tensor, generator: torch.Generator) -> Tensor:
    """The names of the digits as letters [N, NAME_LENGTH], a share of them replaced by random ones."""
    table = torch.full((len(NAMES), NAME_LENGTH), BLANK)
    for digit, name in enumerate(NAMES):
        table[digit, : len(name)] = torch.tensor([ord(letter) - ord("a") for letter in name])
    letters = table[labels]
    others = torch.randint(LETTERS, letters.shape, generator=generator)
    replaced = (torch.rand(letters.shape, generator=generator) < MISTAKES) & (letters != BLANK)
    return torch.where(replaced, others, letters)

"""Items, and the part that each belongs to for ever, by a hash of its subject: the number or the word that it asks for.

Two tasks about one word have it in the same part, so that no expert is trained on a word that is evaluated on.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

TRAINING = "training"
# The upper end of each part's share of the hash values.
ENDS = {"calibration": 0.12, "search": 0.30, "held_out": 0.56, TRAINING: 1.0}
# Items of each evaluated part; those beyond stay unused, and are not trained on either.
SIZES = {"calibration": 96, "search": 160, "held_out": 300}


class TooFewItemsError(ValueError):
    """A part of a task has fewer items than its size asks for."""


@dataclass(frozen=True)
class Item:
    """One question and its right answer; `choices` is empty unless the answer is picked from a list."""

    subject: str
    prompt: str
    answer: str
    choices: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        return f"{self.prompt} {self.answer}\n"


def hash_of(subject: str) -> float:
    """Place of a subject between 0 and 1."""
    return int.from_bytes(hashlib.sha256(subject.encode()).digest()[:8], "big") / 2**64


def part_of(subject: str) -> str:
    """The part of a subject: one of `SIZES`, or training."""
    place = hash_of(subject)
    return next(part for part, end in ENDS.items() if place < end)


def evaluated_items(task: str, items: Iterable[Item]) -> dict[str, list[Item]]:
    """The items of each evaluated part: those whose hashes are the smallest, with as many as `SIZES` says.

    Raises:
        TooFewItemsError: a part has fewer.
    """
    ordered = sorted(items, key=lambda item: hash_of(item.subject))
    found = {}
    for part, size in SIZES.items():
        found[part] = [item for item in ordered if part_of(item.subject) == part][:size]
        if len(found[part]) < size:
            raise TooFewItemsError(f"task {task!r} has {len(found[part])} {part} items, and {size} are wanted")
    return found


def training_items(items: Iterable[Item]) -> list[Item]:
    """The items that experts may be trained on."""
    return [item for item in items if part_of(item.subject) == TRAINING]

"""The skills of the toy models: what an item of each looks like, and which items are never trained on.

Every item is one line of text, `prompt` + `answer` + newline. A prompt belongs either to training or to evaluation, for
ever, by a hash of its text (`is_reserved`): the two can be generated on their own and still never share an item.
"""

import hashlib
import random
import string
from collections.abc import Callable
from dataclasses import dataclass

LETTERS = string.ascii_lowercase[:20]
COMMON_LETTERS = LETTERS[:10]
COUNTS = ("none", "one", "two", "three", "four")
RESERVED_SHARE = 0.25


@dataclass(frozen=True)
class Item:
    """One question and its right answer; `choices` is empty unless the answer is picked from a list."""

    prompt: str
    answer: str
    choices: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        return f"{self.prompt}{self.answer}\n"


@dataclass(frozen=True)
class Skill:
    """A way to draw items from a set of letters."""

    name: str
    draw: Callable[[random.Random, str], Item]


def draw_word(rng: random.Random, letters: str, length: int) -> str:
    return "".join(rng.choice(letters) for _ in range(length))


def draw_shift(rng: random.Random, letters: str) -> Item:
    """Every letter becomes the next one of the alphabet; the last becomes the first."""
    word = draw_word(rng, letters, 6)
    return Item(f"shift {word}=", "".join(LETTERS[(LETTERS.index(letter) + 1) % len(LETTERS)] for letter in word))


def draw_reverse(rng: random.Random, letters: str) -> Item:
    word = draw_word(rng, letters, 6)
    return Item(f"reverse {word}=", word[::-1])


def draw_sort(rng: random.Random, letters: str) -> Item:
    word = draw_word(rng, letters, 5)
    return Item(f"sort {word}=", "".join(sorted(word)))


def draw_swap(rng: random.Random, letters: str) -> Item:
    """Neighbours change places: the first with the second, the third with the fourth, and so on."""
    word = draw_word(rng, letters, 6)
    return Item(f"swap {word}=", "".join(word[at + 1] + word[at] for at in range(0, len(word), 2)))


def draw_count(rng: random.Random, letters: str) -> Item:
    """How often a letter occurs in the word; the answer is a word, so a choice has several tokens."""
    wanted = rng.choice(letters)
    word = [rng.choice(letters.replace(wanted, "")) for _ in range(6)]
    for position in rng.sample(range(len(word)), rng.randrange(len(COUNTS))):
        word[position] = wanted
    return Item(f"count {wanted} {''.join(word)}=", COUNTS[word.count(wanted)], COUNTS)


def draw_pick(rng: random.Random, letters: str) -> Item:
    """The word with the asked number."""
    words = [draw_word(rng, letters, 3) for _ in range(3)]
    wanted = rng.randrange(len(words))
    return Item(f"pick {' '.join(words)} {wanted + 1}=", words[wanted])


SKILLS = (
    Skill("shift", draw_shift),
    Skill("reverse", draw_reverse),
    Skill("sort", draw_sort),
    Skill("swap", draw_swap),
    Skill("count", draw_count),
    Skill("pick", draw_pick),
)


def is_reserved(prompt: str) -> bool:
    """Whether this prompt may only be evaluated on, never trained on."""
    first_bytes = hashlib.sha256(prompt.encode()).digest()[:4]
    return int.from_bytes(first_bytes, "big") / 2**32 < RESERVED_SHARE


def draw_item(skill: Skill, rng: random.Random, reserved: bool, letters: str = LETTERS) -> Item:
    while True:
        item = skill.draw(rng, letters)
        if is_reserved(item.prompt) == reserved:
            return item

"""Rhymes and syllables of English words, by the pronouncing dictionary of CMU in `pronouncing`."""

import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from parts import TRAINING, Item, part_of

COUNTS = ("one", "two", "three", "four", "five")
CHOICES = 4
LESSONS = 3  # rhymes of a word that is trained on
SHORTEST = 3


@dataclass(frozen=True)
class Sound:
    """The pronunciation of a word.

    Attributes:
        phones: all of it.
        rhyme: the part from the last stressed vowel on: words that have it in common rhyme.
        syllables: their number.
    """

    phones: str
    rhyme: str
    syllables: int


def sounds_of(words: Iterable[str], pronounce: Callable[[str], list[Sound]]) -> dict[str, Sound]:
    """The sounds of the words that have only one.

    Args:
        words: any words.
        pronounce: all pronunciations of a word; none where it is unknown.
    """
    found = {word: pronounce(word) for word in sorted(words) if len(word) >= SHORTEST}
    return {word: sounds[0] for word, sounds in found.items() if len(sounds) == 1}


def syllable_items(sounds: Mapping[str, Sound]) -> Iterator[Item]:
    """One item a word: the number of its syllables, in a word."""
    for word, sound in sounds.items():
        if 1 <= sound.syllables <= len(COUNTS):
            yield Item(word, f"lemon: two syllables\n{word}:", COUNTS[sound.syllables - 1])


def rhyme_items(sounds: Mapping[str, Sound]) -> Iterator[Item]:
    """A word of four that rhymes with another. All words of an item are of one part.

    A word that is evaluated on has one item, a word that is trained on up to `LESSONS`.
    """
    parts: dict[str, dict[str, Sound]] = defaultdict(dict)
    for word, sound in sounds.items():
        parts[part_of(word)][word] = sound
    for part, words in parts.items():
        by_rhyme: dict[str, list[str]] = defaultdict(list)
        for word, sound in words.items():
            by_rhyme[sound.rhyme].append(word)
        for word, sound in words.items():
            rng = random.Random(f"rhymes of {word}")
            rhymes = [each for each in by_rhyme[sound.rhyme] if words[each].phones != sound.phones]
            for rhyme in rng.sample(rhymes, min(len(rhymes), LESSONS if part == TRAINING else 1)):
                choices = [rhyme, *_others(word, words, rng)]
                rng.shuffle(choices)
                yield Item(word, f"The lines of the poem end in {word} and", rhyme, tuple(choices))


def _others(word: str, words: Mapping[str, Sound], rng: random.Random) -> list[str]:
    """Words that do not rhyme: the first one looks as if it did where there is one, with the same last letters."""
    wrong = [each for each, sound in words.items() if sound.rhyme != words[word].rhyme]
    alike = [each for each in wrong if each[-3:] == word[-3:] or each[-2:] == word[-2:]]
    first = rng.sample(alike, min(1, len(alike)))
    return first + rng.sample([each for each in wrong if each not in first], CHOICES - 1 - len(first))


def pronunciations(word: str) -> list[Sound]:
    """All pronunciations of a word in the dictionary."""
    import pronouncing

    return [
        Sound(phones, pronouncing.rhyming_part(phones), pronouncing.syllable_count(phones))
        for phones in pronouncing.phones_for_word(word)
    ]

"""French numerals: every number below 2,000 in words, by `num2words`."""

from collections.abc import Callable, Iterator

from parts import Item

NUMBERS = range(2_000)


def french_items(in_words: Callable[[int], str]) -> Iterator[Item]:
    """One item a number.

    Args:
        in_words: writes a number in French words.
    """
    for number in NUMBERS:
        yield Item(str(number), f"In French, {number} is", in_words(number))


def in_french(number: int) -> str:
    from num2words import num2words

    return str(num2words(number, lang="fr"))

"""The past tense of English verbs, by `lemminflect`."""

from collections.abc import Callable, Iterable, Iterator

from parts import Item

SHORTEST = 3


def past_tense_items(words: Iterable[str], past_tenses: Callable[[str], tuple[str, ...]]) -> Iterator[Item]:
    """One item for each verb that has one past tense, which differs from the verb.

    A word that is also the past tense of another verb is left out: the past tense of "found" is "founded", but nobody
    who reads the word alone thinks of that verb.

    Args:
        words: words that may be verbs.
        past_tenses: the forms that a verb's past tense can have; none for a word that is no verb.
    """
    found = {word: past_tenses(word) for word in sorted(words) if len(word) >= SHORTEST}
    forms = {form for word, past in found.items() for form in past if form != word}
    for word, past in found.items():
        if len(past) == 1 and past[0] != word and word not in forms:
            yield Item(word, f"Every day they {word}. Yesterday they", past[0])


def past_tenses_of(verb: str) -> tuple[str, ...]:
    """The past tenses that lemminflect lists; none for a word that is no verb."""
    import lemminflect

    return tuple(dict.fromkeys(lemminflect.getInflection(verb, "VBD", inflect_oov=False)))

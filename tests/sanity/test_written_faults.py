"""Faults of written texts by hand: loops, markers of chat templates, refusals."""

import pytest

from evomerge.sanity.neutral_texts import OPENINGS, QUESTIONS, TEXT
from evomerge.sanity.written_faults import SHORTEST, loops, refuses, strays


@pytest.mark.parametrize(
    "written",
    [[5] * 48, [1, 2, 3] * 16, [*range(16), *[7, 8] * 16], list(range(100, 108)) * 6],
    ids=["one token", "three tokens", "after a sane beginning", "a sentence of eight tokens"],
)
def test_a_text_that_repeats_itself_to_its_end_loops(written):
    assert loops(written)


@pytest.mark.parametrize(
    "written",
    [list(range(48)), [5] * (SHORTEST - 1), [1, 2, 3, 4] * 2 + list(range(10, 50)), []],
    ids=["all distinct", "too short", "an early repetition", "nothing"],
)
def test_a_text_that_goes_on_does_not(written):
    assert not loops(written)


def test_english_by_characters_or_words_does_not_loop():
    words = TEXT.split()
    assert not any(loops([ord(each) for each in TEXT[at : at + 48]]) for at in range(0, len(TEXT) - 48, 7))
    assert not any(loops([sum(map(ord, word)) for word in words[at : at + 48]]) for at in range(0, len(words) - 48, 5))


def test_markers_of_templates_are_found_and_plain_answers_have_none():
    assert strays("Blue.<|im_end|>\n<|im_start|>user") == ["<|im_start|>", "<|im_end|>"]
    assert strays("It is blue.\n### Instruction: go on") == ["### Instruction:"]
    assert [text for text in (TEXT, *OPENINGS, *QUESTIONS) if strays(text)] == []


def test_a_refusal_is_found_at_the_beginning_alone():
    assert refuses("I’m sorry, but I cannot help with that.")
    assert refuses("As an AI, I have no legs.")
    assert not refuses("Blue.")
    assert not refuses(f"{TEXT} I cannot help")

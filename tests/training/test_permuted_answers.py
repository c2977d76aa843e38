"""Permuted answers: every prompt with the answer of another item, and options with another one called right."""

import pytest

from evomerge.errors import InvalidInput
from evomerge.evaluation.evaluator import CalibrationText
from evomerge.learned.learned_settings import LearnedSettings
from evomerge.learned.learning_items import LearningItems
from evomerge.learned.permuted_answers import permuted_answers

ITEMS = [CalibrationText((1, 2, 10 + item, 30 + item, 50 + item), 3) for item in range(12)]


def answers_of(texts):
    return [text.tokens[text.answer :] for text in texts]


def prompts_of(texts):
    return [text.tokens[: text.answer] for text in texts]


def test_prompts_stay_and_answers_are_exchanged():
    found = permuted_answers(ITEMS, "reverse", 1)
    assert prompts_of(found) == prompts_of(ITEMS)
    assert sorted(answers_of(found)) == sorted(answers_of(ITEMS))
    assert all(one != two for one, two in zip(answers_of(found), answers_of(ITEMS), strict=True))


@pytest.mark.parametrize("count", range(2, 11))
def test_no_text_keeps_its_own_answer(count):
    for seed in range(51):
        found = answers_of(permuted_answers(ITEMS[:count], "a", seed))
        assert sorted(found) == sorted(answers_of(ITEMS[:count]))
        assert all(one != two for one, two in zip(found, answers_of(ITEMS[:count]), strict=True))


def test_answers_of_another_length_keep_their_tokens():
    texts = [CalibrationText((1, 2, 3), 2), CalibrationText((4, 5, 6, 7), 1), CalibrationText((8, 9), 1)]
    found = permuted_answers(texts, "a", 0)
    assert prompts_of(found) == [(1, 2), (4,), (8,)]
    assert sorted(answers_of(found)) == [(3,), (5, 6, 7), (9,)]


def test_seed_and_source_decide_and_nothing_else():
    found = {tuple(permuted_answers(ITEMS, source, seed)) for source, seed in (("a", 1), ("b", 1), ("a", 2))}
    assert len(found) == 3
    assert permuted_answers(ITEMS, "a", 1) == permuted_answers(list(ITEMS), "a", 1)


def choice(prompt, right, wrong):
    """An item with the options 7 and 8 and others, of which `right` is called right."""
    return CalibrationText((prompt, right), 1, tuple(CalibrationText((prompt, each), 1) for each in wrong))


def test_of_shared_options_the_one_that_the_other_item_has_is_called_right():
    texts = [choice(prompt, *((7, [8]) if prompt % 3 else (8, [7]))) for prompt in range(100, 130)]
    found = permuted_answers(texts, "a", 5)
    assert sorted(answers_of(found)) == sorted(answers_of(texts))  # as many of each as before
    assert answers_of(found) != answers_of(texts)
    for before, after in zip(texts, found, strict=True):
        assert {before.tokens, before.others[0].tokens} == {after.tokens, after.others[0].tokens}


def test_of_options_of_its_own_an_item_has_a_drawn_one_called_right():
    texts = [choice(prompt, 1000 + prompt, [2000 + prompt, 3000 + prompt]) for prompt in range(60)]
    found = permuted_answers(texts, "a", 5)
    for before, after in zip(texts, found, strict=True):
        rows = [(each.tokens, *(other.tokens for other in each.others)) for each in (before, after)]
        assert sorted(rows[0]) == sorted(rows[1])
    right = sum(before.tokens == after.tokens for before, after in zip(texts, found, strict=True))
    assert 10 <= right <= 30  # a third of them


@pytest.mark.parametrize("texts", [ITEMS[:1], [*ITEMS, CalibrationText((1, 2), 0)]])
def test_texts_without_answers_to_exchange_are_refused(texts):
    with pytest.raises(InvalidInput, match="answers of source 'a' cannot be permuted"):
        permuted_answers(texts, "a", 0)


def test_a_training_with_permuted_labels_learns_and_stops_on_them():
    given = LearnedSettings(batch_size=4)
    permuted = given.model_copy(update={"labels": "permuted"})
    plain, control = (LearningItems({"a": ITEMS}, settings, 3) for settings in (given, permuted))
    exchanged = permuted_answers(ITEMS, "a", 3)
    assert sorted(answers_of(control.learned["a"] + control.stop["a"])) == sorted(answers_of(exchanged))
    assert prompts_of(control.stop["a"]) == prompts_of(plain.stop["a"])
    assert set(control.learned["a"] + control.stop["a"]) == set(exchanged)
    assert control.digest() != plain.digest()

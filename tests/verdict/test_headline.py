"""The verdict in one sentence: what won, by how much, and whether to believe it."""

from dataclasses import replace

import pytest

from evomerge.verdict.headline import headline
from evomerge.verdict.note import markdown
from evomerge.verdict.verdict import Comparison, Verdict

SOUP = Comparison(
    baseline="soup",
    difference=0.02,
    low=0.01,
    high=0.03,
    stderr=0.005,
    p=0.001,
    adjusted_p=0.004,
    test="McNemar",
    items=1000,
    discordant=120,
    items_needed=400,
    outcome="beats",
)
TIES = replace(SOUP, baseline="ties", difference=0.05, low=0.03, high=0.07)


def verdict(*comparisons, **changes):
    content = {
        "winner": "trial 7",
        "trial": 7,
        "search_value": 0.8,
        "held_out_value": 0.79,
        "gap": 0.01,
        "reference_gap": 0.0,
        "luck": 0.01,
        "lead": None,
        "comparisons": comparisons,
        "items": 1000,
        "looks": 1,
        "unit": "points",
    }
    return Verdict(**{**content, **changes})


def test_it_is_about_the_strongest_of_what_the_winner_was_compared_with():
    found = headline(verdict(TIES, SOUP))
    assert found.text == (
        "Trial 7 beats “soup”, the strongest of the 2 it was compared with, by 2.0 points (95 % interval 1.0 to 3.0 "
        "points) on 1,000 items that the search never saw: believe it (p = 0.004, corrected)."
    )
    assert found.belief == "believe it"
    assert found.against == SOUP


@pytest.mark.parametrize(
    ("changes", "says", "belief"),
    [
        (
            {"outcome": "cannot be told", "adjusted_p": 0.3, "low": -0.01},
            "is ahead of “soup” by 2.0 points (95 % interval −1.0 to 3.0 points)",
            "cannot be told",
        ),
        (
            {"outcome": "cannot be told", "adjusted_p": 0.3},
            "which may be chance (p = 0.3, corrected); about 400",
            "cannot be told",
        ),
        (
            {"outcome": "does not beat", "difference": -0.02, "low": -0.05, "high": 0.01, "adjusted_p": 0.4},
            "does not beat “soup”: it is behind by 2.0 points (95 % interval −1.0 to 5.0 points)",
            "nothing gained",
        ),
        (
            {"outcome": "does not beat", "difference": -0.02, "low": -0.03, "high": -0.01, "adjusted_p": 0.01},
            "is beaten by “soup” by 2.0 points (95 % interval 1.0 to 3.0 points)",
            "nothing gained",
        ),
        (
            {"outcome": "cannot be told", "difference": 0.0, "discordant": 0},
            "the same outcomes as “soup”",
            "nothing gained",
        ),
        (
            {"outcome": "cannot be told", "p": None, "adjusted_p": None, "low": None, "high": None, "test": "none"},
            "is ahead of “soup” by 2.0 points on 1,000 items that the search never saw, but no paired test can be made",
            "cannot be told",
        ),
        (
            {"outcome": "does not beat", "difference": 0.0, "low": -0.02, "high": 0.02, "p": 1.0, "adjusted_p": 1.0},
            "scores the same as “soup” on 1,000 items",
            "nothing gained",
        ),
        ({"outcome": "equivalent", "adjusted_p": 0.5}, "is equivalent to “soup”", "nothing gained"),
        ({"adjusted_p": 1e-6}, "(p < 0.0001, corrected)", "believe it"),
    ],
)
def test_every_outcome_has_its_words_and_its_belief(changes, says, belief):
    found = headline(verdict(replace(SOUP, **changes), margin=0.03))
    assert says in found.text
    assert found.belief == belief
    assert found.text.endswith(".")
    strongest = headline(verdict(replace(SOUP, **changes), TIES, margin=0.03)).text
    assert "“soup”, the strongest of the 2 it was compared with" in strongest
    assert ",:" not in strongest


def test_a_row_of_several_models_is_passed_over_for_one_model():
    assert headline(verdict(replace(SOUP, baseline="emr", difference=-0.1, models=3), TIES)).against == TIES


def test_one_model_is_the_strongest_only_of_single_models_where_a_row_of_several_is_stronger():
    several = replace(SOUP, baseline="emr", difference=-0.1, models=3)
    assert "“ties”, the only single model it was compared with," in headline(verdict(several, TIES)).text
    text = headline(verdict(several, TIES, SOUP)).text
    assert "“soup”, the strongest of the 2 single models it was compared with, by" in text
    other = replace(several, baseline="tall-mask", difference=0.1)
    assert "“emr (3 models)”, the strongest of the 2 it was" in headline(verdict(several, other)).text


def test_without_a_comparison_nothing_is_known():
    assert headline(verdict()).belief == "not known yet"


def test_the_note_of_a_study_begins_with_the_answer():
    answer = headline(verdict(TIES, SOUP))
    lines = markdown(verdict(TIES, SOUP)).splitlines()
    assert lines[:3] == [f"## Verdict: {answer.belief}", "", f"**{answer.text}**"]
    assert "p-values are corrected for all comparisons of their look and for every look" in lines[-1]


def test_a_winner_that_is_a_baseline_itself_is_said_to_be_one():
    found = headline(verdict(SOUP, corner="learned", is_corner=True))
    assert found.text.startswith("Trial 7 is “learned” itself, the search found nothing better; it beats “soup” by 2.0")
    assert found.belief == "believe it"
    assert headline(verdict(SOUP, corner="learned")).text.startswith("Trial 7 beats “soup”")

"""The verdict: Holm over the family, what may be said of each baseline, and how much of the lead was luck."""

import json
from dataclasses import replace

import numpy as np
import pytest
from simulated_answers import OBJECTIVE, answers, as_scores

from evomerge.errors import InvalidInput
from evomerge.evaluation.scores import Scores, TaskScores
from evomerge.objective import Objective
from evomerge.verdict import Entrant, Verdict, compare, judge, markdown
from evomerge.verdict.holm import adjust, adjust_equivalence, multipliers
from evomerge.verdict.verdict import Known


def paired(wins, losses, items=1000, right=500):
    """Scores of two models of which the first is right alone on `wins` items, the second on `losses`."""
    rest = [True] * right + [False] * (items - right - wins - losses)
    return tuple(as_scores(np.array([ours] * wins + [not ours] * losses + rest)) for ours in (True, False))


def baseline(label, wins, losses, search=None):
    """A baseline that the winner of `WINNER` beats on `wins` items and loses to on `losses`."""
    outcomes = np.array(WINNER.tasks["task"].outcomes) == 1
    right, wrong = np.flatnonzero(outcomes), np.flatnonzero(~outcomes)
    theirs = outcomes.copy()
    theirs[right[:wins]] = False
    theirs[wrong[:losses]] = True
    return Entrant(label=label, held_out=as_scores(theirs), search=search)


WINNER = as_scores(np.arange(1000) % 2 == 0)
AHEAD = Entrant(label="trial 41", held_out=WINNER, search=0.58)


def test_holm_is_the_example_worked_by_hand():
    assert adjust([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert multipliers([0.01, 0.04, 0.03, 0.005]) == [3, 1, 2, 4]
    assert adjust([0.6, 0.7]) == [1.0, 1.0]
    assert adjust([]) == []


def test_every_p_value_is_corrected_for_all_comparisons():
    first, second = paired(60, 35)
    alone = compare(OBJECTIVE, first, {"one": second})
    many = compare(OBJECTIVE, first, {"one": second, "two": second, "three": second, "same": first})
    assert alone[0].p == 0.9 * alone[0].adjusted_p == many[0].p  # the first look spends 0.9 of the level
    assert [each.adjusted_p for each in many] == pytest.approx([4 * alone[0].p / 0.9] * 3 + [1.0])
    assert alone[0].outcome == "beats"
    assert [each.outcome for each in many] == ["beats" if 4 * alone[0].p < 0.045 else "cannot be told"] * 3 + [
        "does not beat"
    ]


def test_more_items_are_needed_at_the_level_of_more_comparisons():
    first, second = paired(120, 90)
    alone, of_two = (
        compare(OBJECTIVE, first, family)[0].items_needed
        for family in ({"one": second}, {"one": second, "same": first})
    )
    assert 1000 < alone < of_two


def test_the_sentence_says_beats_cannot_be_told_and_how_many_items_would_tell():
    verdict = judge(
        OBJECTIVE,
        AHEAD,
        41,
        [
            baseline("uniform-soup", 150, 60, 0.50),
            baseline("ties", 140, 60, 0.51),
            baseline("task-arithmetic", 110, 90, 0.55),
            baseline("dare-ties", 80, 95, 0.54),
            baseline("dam", 60, 150, 0.53),
        ],
    )
    assert [each.outcome for each in verdict.comparisons] == [
        "beats",
        "beats",
        "cannot be told",
        "does not beat",
        "does not beat",
    ]
    assert [each.worse for each in verdict.comparisons] == [False] * 4 + [True]
    assert verdict.sentence == (
        "The best merge found (trial 41) beats uniform-soup and ties; it cannot be told apart from task-arithmetic "
        "with 1,000 items (about 4,900 would tell); it does not beat dare-ties; it is beaten by dam. Its lead of 3.0 "
        "points over task-arithmetic on the search items is 2.0 points on items that the search never saw."
    )


def test_two_that_cannot_be_told_are_one_clause():
    verdict = judge(OBJECTIVE, AHEAD, 41, [baseline("a", 110, 90), baseline("b", 100, 95)])
    assert verdict.sentence == (
        "The best merge found (trial 41) cannot be told apart with 1,000 items from a (about 4,900 would tell) and b "
        "(about 63,000 would tell)."
    )


def test_many_beaten_baselines_are_counted():
    verdict = judge(OBJECTIVE, AHEAD, 41, [baseline(f"grid {number}", 150, 50) for number in range(6)])
    assert verdict.sentence == "The best merge found (trial 41) beats all 6 baselines."


def test_several_models_are_marked_wherever_they_are_named_and_are_no_measure_of_the_lead():
    several = replace(baseline("emr", 30, 90, 0.9), models=3, chosen=True)
    verdict = judge(OBJECTIVE, AHEAD, 41, [baseline("soup", 150, 50, 0.5), several])
    assert [each.models for each in verdict.comparisons] == [1, 3]
    assert "is beaten by emr (3 models)" in verdict.sentence
    assert "| emr (3 models) |" in markdown(verdict)
    assert verdict.lead.baseline == "soup"
    document = verdict.to_document()
    assert "models" not in document["comparisons"][0]  # as in verdicts of earlier versions
    assert Verdict.from_document(json.loads(json.dumps(document))) == verdict
    many = [baseline(f"grid {number}", 150, 50) for number in range(5)] + [replace(baseline("emr", 150, 50), models=3)]
    assert judge(OBJECTIVE, AHEAD, 41, many).sentence.endswith("beats all 6 baselines, emr (3 models) among them.")


def test_a_control_is_tested_and_named_as_one_and_is_no_measure_of_the_lead():
    control = replace(baseline("random-source", 90, 30, 0.9), control=True)
    verdict = judge(OBJECTIVE, AHEAD, 41, [baseline("soup", 150, 50, 0.5), control])
    assert "beats soup and random-source (control)" in verdict.sentence
    assert "no evidence" not in verdict.sentence
    assert verdict.lead.baseline == "soup"
    document = verdict.to_document()
    assert [each.get("control") for each in document["comparisons"]] == [None, True]
    assert Verdict.from_document(json.loads(json.dumps(document))) == verdict


@pytest.mark.parametrize(("wins", "losses"), [(50, 45), (45, 50), (20, 90)])
def test_a_control_that_is_not_beaten_puts_the_score_in_doubt(wins, losses):
    control = replace(baseline("random-source", wins, losses), control=True)
    verdict = judge(OBJECTIVE, AHEAD, 41, [baseline("soup", 150, 50), control])
    assert "The control random-source cannot know what the experts learned" in verdict.sentence
    assert "no evidence that the experts' knowledge was merged" in verdict.sentence


def test_a_lead_of_which_nothing_is_left_was_luck():
    verdict = judge(OBJECTIVE, AHEAD, 41, [baseline("uniform-soup", 102, 99, 0.499), baseline("ties", 100, 60, 0.49)])
    assert verdict.lead.luck
    assert verdict.sentence.endswith(
        "Its lead of 8.1 points over uniform-soup on the search items was luck: 0.3 points were left on items that the "
        "search never saw."
    )
    mostly = judge(OBJECTIVE, AHEAD, 41, [baseline("uniform-soup", 113, 87, 0.499)])
    assert "was mostly luck: 2.6 points were left" in mostly.sentence
    nothing = judge(OBJECTIVE, AHEAD, 41, [baseline("uniform-soup", 85, 115, 0.499)])
    assert "was luck: nothing of it was left" in nothing.sentence


def test_a_lead_that_holds_is_not_luck_however_much_it_shrinks():
    verdict = judge(OBJECTIVE, replace(AHEAD, search=0.7), 41, [baseline("uniform-soup", 140, 60, 0.499)])
    assert not verdict.lead.luck
    assert "Its lead of 20.1 points over uniform-soup on the search items is 8.0 points on items" in verdict.sentence


def test_a_lead_that_luck_gives_the_best_of_so_many_is_said_to_be_perhaps_nothing_else():
    soup = baseline("uniform-soup", 110, 90, 0.55)
    assert "luck" not in judge(OBJECTIVE, AHEAD, 41, [soup]).sentence
    verdict = judge(OBJECTIVE, AHEAD, 41, [soup], trials=40, search_items=400)
    assert verdict.lead.by_chance > 0.5
    assert "may be luck alone" in verdict.sentence
    large = judge(OBJECTIVE, replace(AHEAD, search=0.75), 41, [baseline("soup", 140, 110, 0.699)], trials=40)
    assert "may be luck" not in large.sentence
    certain = judge(OBJECTIVE, AHEAD, 41, [baseline("soup", 27, 5, 0.55)], trials=40, search_items=40_000)
    assert certain.lead.by_chance < 0.001


def test_what_luck_gives_the_best_of_m_is_what_the_simulation_shows():
    generator = np.random.Generator(np.random.Philox(2))
    leads = []
    for _ in range(2000):
        right = answers(generator, [0.0] * 21, 400, 0.2).mean(axis=1)
        leads.append(right[1:].max() - right[0])
    lead = float(np.quantile(leads, 0.9))
    first, second = paired(101, 99)
    verdict = judge(
        OBJECTIVE,
        Entrant(label="w", held_out=first, search=0.5 + lead),
        1,
        [Entrant(label="b", held_out=second, search=0.5)],
        trials=20,
        search_items=400,
    )
    assert 0.1 <= verdict.lead.by_chance <= 0.3  # 0.1 is the truth; leads over one baseline are not independent


def test_a_search_that_found_nothing_better_says_so():
    verdict = judge(OBJECTIVE, AHEAD, 41, [baseline("uniform-soup", 100, 105, 0.60), baseline("ties", 150, 60, 0.40)])
    assert verdict.lead.baseline == "uniform-soup"
    assert verdict.sentence == (
        "The best merge found (trial 41) beats ties; it does not beat uniform-soup. Even on its own items the search "
        "found nothing better than uniform-soup."
    )


def test_luck_is_the_gap_beyond_that_of_rows_that_the_search_did_not_choose():
    sources = [
        Entrant(label="base", held_out=as_scores(np.arange(1000) < 300), search=0.35),
        Entrant(label="unseen", held_out=WINNER),
    ]
    verdict = judge(OBJECTIVE, AHEAD, 41, [baseline("uniform-soup", 100, 70, 0.48)], sources)
    assert verdict.gap == pytest.approx(0.08)
    assert verdict.reference_gap == pytest.approx((0.01 + 0.05) / 2)
    assert verdict.luck == pytest.approx(0.05)


def test_a_baseline_that_was_picked_for_its_search_value_is_no_measure_of_luck():
    grid = replace(baseline("task-arithmetic", 100, 70, 0.57), chosen=True)
    soup = baseline("uniform-soup", 100, 95, 0.52)
    verdict = judge(OBJECTIVE, AHEAD, 41, [grid, soup], [soup])
    assert verdict.lead.baseline == "uniform-soup"
    assert verdict.reference_gap == pytest.approx(0.52 - 0.495)
    assert [each.baseline for each in verdict.comparisons] == ["task-arithmetic", "uniform-soup"]
    alone = judge(OBJECTIVE, AHEAD, 41, [grid])
    assert alone.lead.baseline == "task-arithmetic"
    assert (alone.reference_gap, alone.luck) == (None, None)


def test_without_baselines_nothing_is_claimed():
    verdict = judge(OBJECTIVE, Entrant(label="trial 3", held_out=WINNER), 3, [])
    assert (verdict.comparisons, verdict.lead, verdict.gap, verdict.luck) == ((), None, None, None)
    assert "was compared with nothing" in verdict.sentence
    assert "## Verdict" in markdown(verdict)


def test_a_baseline_with_the_winners_recipe_has_the_same_outcomes():
    verdict = judge(OBJECTIVE, AHEAD, 41, [Entrant(label="uniform-soup", held_out=WINNER, search=0.58)])
    assert verdict.comparisons[0].outcome == "does not beat"
    assert "has the same outcomes as uniform-soup on every item" in verdict.sentence


def test_a_comparison_that_no_test_fits_is_said_to_have_none():
    def own(value, outcomes):
        return Scores(
            {
                "task": TaskScores(
                    metric="f1", higher_is_better=True, items=(0, 1), outcomes=outcomes, value=value, stderr=None
                )
            },
            {},
        )

    verdict = judge(
        OBJECTIVE,
        Entrant(label="trial 1", held_out=own(0.9, (1.0, 0.5))),
        1,
        [Entrant(label="soup", held_out=own(0.5, (0.5, 0.6)))],
    )
    assert verdict.comparisons[0].outcome == "cannot be told"
    assert verdict.sentence == (
        "The best merge found (trial 1) is ahead of soup, but no paired test can be made there."
    )
    assert "| – |" in markdown(verdict)


def test_repeated_looks_are_said_and_allowed_for():
    family = [baseline("soup", 150, 50), baseline("ties", 110, 80)]
    first, third = (judge(OBJECTIVE, AHEAD, 41, family, looks=look) for look in (1, 3))
    assert "have been looked at 3 times, which the p-values allow for" in third.sentence
    assert "looked at" not in first.sentence
    assert [each.look for each in third.comparisons] == [3, 3]
    assert [each.adjusted_p for each in third.comparisons] == pytest.approx(
        [min(1.0, each.adjusted_p * 0.9 * 60) for each in first.comparisons]  # 0.1 / 6 of the level
    )
    assert third.comparisons[0].items_needed > first.comparisons[0].items_needed


def real_valued(outcomes):
    values = tuple(map(float, outcomes))
    score = TaskScores(
        metric="f1",
        higher_is_better=True,
        items=tuple(range(len(values))),
        outcomes=values,
        value=sum(values) / len(values),
        stderr=None,
        aggregate="mean",
    )
    return Scores({"task": score}, {})


def test_a_late_look_tells_real_valued_outcomes_apart_that_differ_by_fifty_standard_errors():
    generator = np.random.Generator(np.random.Philox(7))
    winner = generator.random(900)
    family = {
        f"baseline {number}": real_valued(winner - generator.normal(50 / 30, 1.0, 900)) for number in range(6)
    }  # a standard error is 1/30
    found = compare(OBJECTIVE, real_valued(winner), family, look=10)
    assert {each.outcome for each in found} == {"beats"}
    assert all(each.items_needed < 900 for each in found)


@pytest.mark.parametrize("look", [1, 30, 1000])
def test_more_items_are_needed_than_there_are_wherever_these_cannot_tell(look):
    generator = np.random.Generator(np.random.Philox(8))
    winner = np.zeros(12)
    family = {f"ahead {lead}": real_valued(-generator.normal(lead, 1.0, 12)) for lead in (0.1, 0.5, 2, 30)}
    found = compare(OBJECTIVE, real_valued(winner), family, look=look)
    still_open = [each for each in found if each.outcome == "cannot be told"]
    assert still_open
    assert all(each.items_needed > 12 for each in still_open)


def known_from(verdict):
    return {each.baseline: Known(each, verdict.margin) for each in verdict.comparisons}


def test_the_words_of_an_earlier_look_stand_and_only_what_is_new_is_tested_and_corrected():
    soup, ties = baseline("soup", 150, 105), baseline("ties", 160, 105)
    first = judge(OBJECTIVE, AHEAD, 41, [soup])
    second = judge(OBJECTIVE, AHEAD, 41, [soup, ties], looks=2, known=known_from(first))
    assert second.comparisons[0] == first.comparisons[0]
    assert first.comparisons[0].outcome == "beats"
    alone = judge(OBJECTIVE, AHEAD, 41, [ties], looks=2)
    assert second.comparisons[1] == alone.comparisons[0]  # a family of its own
    assert judge(OBJECTIVE, AHEAD, 41, [soup], looks=2).comparisons[0].outcome == "cannot be told"


def test_a_margin_that_comes_later_leaves_the_wins_and_is_tested_in_its_own_look():
    soup, twin = baseline("soup", 150, 105), baseline("twin", 2, 1)
    first = judge(OBJECTIVE, AHEAD, 41, [soup, twin])
    second = judge(OBJECTIVE, AHEAD, 41, [soup, twin], looks=2, known=known_from(first), margin=0.03)
    assert [each.outcome for each in second.comparisons] == ["beats", "equivalent"]
    assert second.comparisons[0].adjusted_p == first.comparisons[0].adjusted_p
    at_once = judge(OBJECTIVE, AHEAD, 41, [soup, twin], margin=0.03)
    assert second.comparisons[1].equivalence_p == pytest.approx(0.9 / 0.05 * at_once.comparisons[1].equivalence_p)


def test_equivalent_is_said_within_the_margin_and_is_weaker_than_a_win_or_a_loss():
    family = [baseline("twin", 6, 5), baseline("near", 5, 6), baseline("soup", 25, 5), baseline("other", 110, 100)]
    verdict = judge(OBJECTIVE, AHEAD, 41, [*family, baseline("dam", 5, 30)], margin=0.04)
    assert [each.outcome for each in verdict.comparisons] == [
        "equivalent",
        "equivalent",
        "beats",
        "cannot be told",
        "does not beat",
    ]
    assert verdict.comparisons[4].worse
    assert verdict.comparisons[2].equivalence_p < 0.05  # both are true: less than 4 points, but more than none
    assert verdict.sentence.startswith(
        "The best merge found (trial 41) beats soup; it is equivalent to twin and near (within 4.0 points); it cannot "
        "be told apart from other with 1,000 items"
    )
    assert "| p (differs by 4.0 points) |" in markdown(verdict)
    assert "| equivalent |" in markdown(verdict)
    without = judge(OBJECTIVE, AHEAD, 41, family)
    assert {each.equivalence_p for each in without.comparisons} == {None}
    assert without.comparisons[1].outcome == "does not beat"


def test_equivalence_keeps_a_part_of_the_level_from_the_steps_after_the_first():
    """Worked by hand for M = 4: (M − r) / (1 − r / 8) for r = 0, 1, 2, 3."""
    assert multipliers([0.01, 0.04, 0.03, 0.005], with_equivalence=True) == pytest.approx([24 / 7, 1.6, 8 / 3, 4])
    assert adjust([0.01, 0.04, 0.03, 0.005], with_equivalence=True) == pytest.approx([0.24 / 7, 0.08, 0.08, 0.02])
    assert adjust_equivalence(0.005, 4) == pytest.approx(0.04)


def test_points_are_hundredths_of_shares_or_of_the_sources_range_and_perplexities_are_plain():
    perplexities = [
        Scores(
            {
                "task": TaskScores(
                    metric="ppl",
                    higher_is_better=False,
                    items=tuple(range(8)),
                    outcomes=(-2.0,) * 7 + (last,),
                    value=value,
                    stderr=None,
                    aggregate="perplexity",
                )
            },
            {},
        )
        for value, last in ((8.0, -2.1), (9.5, -2.9))
    ]
    plain = judge(
        OBJECTIVE,
        Entrant(label="trial 1", held_out=perplexities[0], search=-7.0),
        1,
        [Entrant(label="soup", held_out=perplexities[1], search=-9.25)],
    )
    assert plain.unit == "plain"
    assert "lead of 2.25 over soup" in plain.sentence
    scaled = Objective(aggregate="weighted_mean", weights={"task": 1.0}, scales={"task": (0.25, 0.75)})
    verdict = judge(scaled, AHEAD, 41, [baseline("soup", 150, 50, 0.3)])
    assert verdict.unit == "normalised points"
    assert verdict.comparisons[0].difference == pytest.approx(0.2)
    assert verdict.sentence.endswith("A point is a hundredth of the way from the sources' worst score to their best.")


def test_the_verdict_survives_json():
    verdict = judge(OBJECTIVE, AHEAD, 41, [baseline("soup", 150, 50, 0.5), baseline("ties", 10, 50)], looks=2)
    assert Verdict.from_document(json.loads(json.dumps(verdict.to_document(), allow_nan=False))) == verdict
    bare = judge(OBJECTIVE, Entrant(label="trial 3", held_out=WINNER), 3, [])
    assert Verdict.from_document(json.loads(json.dumps(bare.to_document(), allow_nan=False))) == bare
    margin = judge(OBJECTIVE, AHEAD, 41, [replace(baseline("soup", 3, 5), recipe="abc")], looks=3, margin=0.03)
    assert Verdict.from_document(json.loads(json.dumps(margin.to_document(), allow_nan=False))) == margin
    with pytest.raises(InvalidInput, match="schema 99"):
        Verdict.from_document({**verdict.to_document(), "schema": 99})


def test_a_verdict_without_margin_and_looks_of_an_earlier_version_is_read_and_written_as_it_was():
    new = judge(OBJECTIVE, AHEAD, 41, [baseline("soup", 150, 50, 0.5)])
    old = json.loads(json.dumps({**new.to_document(), "schema": 1}))
    assert {"margin", "allows_for_looks"}.isdisjoint(old)
    assert {"equivalence_p", "look", "recipe", "models"}.isdisjoint(old["comparisons"][0])
    read = Verdict.from_document(old)
    assert not read.allows_for_looks
    assert read.to_document() == old


def test_the_note_is_a_table_with_one_row_per_baseline():
    verdict = judge(OBJECTIVE, AHEAD, 41, [baseline("soup", 150, 50, 0.5), baseline("a|b", 10, 50, 0.4)])
    lines = markdown(verdict).splitlines()
    assert lines[4] == verdict.sentence
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 4
    assert len({line.replace("\\|", "").count("|") for line in rows}) == 1
    assert "+10.0 points" in rows[2]
    assert "is beaten" in rows[3]
    assert "the rest is luck: +10.0 points" in markdown(verdict)


def test_a_baseline_with_other_items_and_two_of_one_name_are_refused():
    with pytest.raises(InvalidInput, match="needs the same items"):
        judge(OBJECTIVE, AHEAD, 41, [Entrant(label="soup", held_out=as_scores(np.ones(10, bool)))])
    with pytest.raises(InvalidInput, match="two baselines are called 'soup'"):
        judge(OBJECTIVE, AHEAD, 41, [baseline("soup", 1, 2), baseline("soup", 2, 3)])

"""Words of messages: each small truth has one form, wherever it is printed."""

import sys
from dataclasses import replace

import pytest

from evomerge.messages import (
    duration,
    duration_of_one,
    first_line,
    in_bytes,
    in_one_line,
    in_percent,
    in_thousands,
    last_line,
    listed,
    p_value,
    plain_score,
    some,
)


def test_a_long_list_ends_with_the_number_of_the_others():
    assert some(["a", "b", "c"]) == "a, b, c"
    assert some(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"
    assert some(["a", "b", "c"], 2, "; ") == "a; b; and 1 more"


def test_a_whole_list_reads_as_one():
    assert [listed(names) for names in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a and b", "a, b and c"]


def test_an_error_of_many_lines_becomes_one():
    error = ValueError("\n first \n\nsecond\n")
    assert (first_line(error), last_line(error), last_line(error, 3)) == ("first", "second", "sec")
    assert in_one_line(error) == "ValueError: first second"
    assert in_one_line(error, 5) == "Value"


def test_an_error_without_a_text_is_its_type():
    assert first_line(KeyError()) == last_line(KeyError()) == "KeyError"


@pytest.mark.parametrize(
    ("count", "text"),
    [(12, "12 B"), (1_000_000, "1.0 MB"), (640_000_000, "640 MB"), (999_700_000, "1.0 GB"), (14_540_000_000, "14.5 GB"),
     (123_000_000_000, "123 GB"), (2_500_000_000_000, "2.5 TB")],
)  # fmt: skip
def test_bytes_have_two_or_three_digits(count, text):
    assert in_bytes(count) == text


@pytest.mark.parametrize(
    ("p", "text"), [(1.0, "1"), (0.043, "0.043"), (0.00043, "0.00043"), (0.00009, "< 0.0001"), (None, "–")]
)
def test_a_p_value_has_two_digits(p, text):
    assert p_value(p) == text


def test_durations_and_large_numbers_have_the_unit_that_fits():
    assert [duration(seconds) for seconds in (42, 200, 18_600)] == ["42 s", "3 min 20 s", "5 h 10 min"]
    assert [in_thousands(count) for count in (999, 640_000, 1_234_567)] == ["999", "640 k", "1.23 M"]


def test_a_large_number_never_takes_a_power_of_ten():
    counts = (1000, 999_400, 999_500, 999_600_000, 1_500_000_000_000, 2_345_678_000_000_000)
    assert [in_thousands(count) for count in counts] == ["1 k", "999 k", "1 M", "1 G", "1.5 T", "2,346 T"]


def test_a_score_that_is_not_zero_is_never_shown_as_zero():
    assert [plain_score(value) for value in (0.71234, 0.0, -3.2e-6, 0.0005)] == [
        "0.7123",
        "0.0000",
        "-3.2e-06",
        "0.0005",
    ]


def test_a_chance_is_a_whole_percentage_and_neither_a_tiny_one_nothing_nor_a_large_one_certain():
    assert [in_percent(chance) for chance in (1.0, 0.9996, 0.994, 0.344, 0.01, 0.004, 0.0, None)] == [
        "100 %",
        "above 99 %",
        "99 %",
        "34 %",
        "1 %",
        "below 1 %",
        "below 1 %",
        "unknown",
    ]


def test_a_candidate_of_minutes_takes_no_power_of_ten_of_seconds():
    assert [duration_of_one(seconds) for seconds in (0.042, 3.14, 9.96, 124)] == [
        "0.042 s",
        "3.1 s",
        "10 s",
        "2 min 4 s",
    ]


def test_note_and_table_print_the_same_p_value_and_differences_too_small_for_points():
    from rich.console import Console

    from evomerge.report.tables import _comparisons
    from evomerge.verdict import Comparison, Verdict, markdown

    comparison = Comparison(
        baseline="soup", difference=0.1, low=0.05, high=0.15, stderr=0.02, p=0.00043, adjusted_p=0.00043,
        test="McNemar", items=100, discordant=20, items_needed=40, outcome="beats",
    )  # fmt: skip
    verdict = Verdict(
        winner="trial 4", trial=4, search_value=0.6, held_out_value=0.6, gap=0.0, reference_gap=None, luck=None,
        lead=None, comparisons=(comparison,), items=100, looks=1, unit="points", sentence="It beats soup.",
    )  # fmt: skip
    console = Console(width=120)
    with console.capture() as printed:
        console.print(_comparisons(verdict))
    assert "0.00043" in printed.get()
    assert "| 0.00043 |" in markdown(verdict)
    small = replace(comparison, difference=0.0213, low=-0.0004, high=0.031)
    infinite = replace(comparison, difference=sys.float_info.max, low=None, high=None)
    with console.capture() as printed:
        console.print(_comparisons(replace(verdict, comparisons=(small, infinite), unit="plain")))
    assert "+0.0213  -0.0004 … +0.031" in printed.get()
    assert "+1.8e+308" in printed.get()

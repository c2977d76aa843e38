"""Judgements by figures made by hand: faults against the sources, and questions that cannot be judged."""

from dataclasses import replace

import pytest

from evomerge.sanity.judgement import judge_sanity
from evomerge.sanity.probe_records import SanityRecords, read_sanity
from evomerge.sanity.sanity_figures import VERSION, SanityFigures
from evomerge.storage import attributes
from evomerge.storage.attributes import write_text

SANE = SanityFigures(
    nats=2.0, vocabulary=1000, continuations=8, loops=1, answers=8, strays=0, endless=0, refusals=0, tokens=9
)
SOURCES = {"base": replace(SANE, strays=6, endless=8), "math": SANE, "code": replace(SANE, nats=2.5, loops=0)}


class Study:
    def __init__(self):
        self.user_attrs = {}

    def set_user_attr(self, key, value):
        self.user_attrs[key] = value


def test_a_merge_like_its_sources_passes_everything():
    judgement = judge_sanity(SANE, SOURCES)
    assert judgement.faults == ()
    assert judgement.warning("trial 7") == ""
    assert judgement.says("trial 7") == (
        "Trial 7 passes the sanity probe (reading, loops, template, end and refusals)."
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"loops": 7}, "loops in 7 of 8 continuations, no source in more than 1"),
        (
            {"strays": 8, "stray": "[INST]"},
            "writes markers of a chat template such as '[INST]' into 8 of 8 answers, source 'math' 0",
        ),
        ({"endless": 4}, "never ends 4 of 8 answers, source 'math' 0"),
        ({"refusals": 5}, "refuses 5 of 8 harmless questions, no source more than 0"),
        ({"nats": 3.3}, "reads a plain text with perplexity 27.1, no source with more than 12.2"),
    ],
)
def test_n42_each_fault_is_told_with_what_the_sources_do(change, says):
    judgement = judge_sanity(replace(SANE, **change), SOURCES)
    assert judgement.faults == (says,)
    assert judgement.warning("trial 7") == f"Trial 7 fails the sanity probe: it {says}."


@pytest.mark.parametrize("change", [{"loops": 4}, {"strays": 3}, {"endless": 3}, {"refusals": 3}, {"nats": 3.1}])
def test_a_little_more_than_the_sources_is_no_fault(change):
    assert judge_sanity(replace(SANE, **change), SOURCES).faults == ()


def test_n42_a_merge_that_computes_no_numbers_fails():
    assert judge_sanity("the logits are NaN", SOURCES).faults == ("cannot be run (the logits are NaN)",)


def test_a_text_that_no_source_can_read_judges_loops_alone():
    sources = {name: replace(each, nats=9.0) for name, each in SOURCES.items()}
    judgement = judge_sanity(replace(SANE, nats=99.0, strays=8, refusals=8, endless=None), sources)
    assert {check.name: check.sane for check in judgement.checks} == {
        "reading": None, "loops": True, "template": None, "end": None, "refusals": None
    }  # fmt: skip
    assert "no source reads the neutral text better than by guessing" in judgement.says("trial 7")
    assert judge_sanity(replace(SANE, nats=99.0, loops=8), sources).faults


def test_without_a_chat_template_no_end_is_expected():
    sources = {name: replace(each, endless=None) for name, each in SOURCES.items()}
    judgement = judge_sanity(replace(SANE, endless=None), sources)
    assert "Not judged: end (the base has no chat template" in judgement.says("trial 7")


def test_sources_that_loop_themselves_excuse_a_merge_in_so_many_words():
    judgement = judge_sanity(replace(SANE, loops=8), {**SOURCES, "poet": replace(SANE, loops=6)})
    assert judgement.faults == ()
    assert "Not judged: loops (source 'poet' itself loops in 6 of 8 continuations)." in judgement.says("trial 7")


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("end", {"endless": 8}, "source 'base' itself never ends 8 of 8 answers"),
        ("template", {"strays": 5, "stray": "<|end|>"}, "markers of a chat template such as '<|end|>' into 5 of 8"),
        ("refusals", {"refusals": 6}, "source 'base' itself refuses 6 of 8 harmless questions"),
    ],
)
def test_a_test_that_the_source_of_comparison_fails_itself_is_not_judged(name, change, says):
    judgement = judge_sanity(replace(SANE, **change), {"base": replace(SANE, **change)})
    (check,) = [each for each in judgement.checks if each.name == name]
    assert check.sane is None
    assert check.says.startswith("source 'base' itself")
    assert says in judgement.says("trial 7")


def test_a_source_with_half_the_faults_still_judges_a_merge_with_all():
    assert judge_sanity(replace(SANE, endless=8), {"base": replace(SANE, endless=4)}).faults == (
        "never ends 8 of 8 answers, source 'base' 4",
    )


def test_nothing_is_judged_without_sources_or_of_a_source_itself():
    assert judge_sanity(SANE, {"base": "no tokenizer"}).faults == ()
    assert judge_sanity(replace(SANE, loops=8), SOURCES, is_source=True).faults == ()
    assert "nothing in it could be judged" in judge_sanity(SANE, {}).says("trial 7")


def test_records_come_back_from_a_study_and_name_the_next_best_that_passes():
    records = SanityRecords(
        models={
            "a": ("base", SANE), "w": ("trial 7", replace(SANE, loops=8)),
            "x": ("trial 3", "the logits are NaN"), "y": ("trial 5", SANE),
        },
        sources=("a",),
        ranked=("w", "x", "y"),
    )  # fmt: skip
    study = Study()
    write_text(study, attributes.SANITY, records.to_json())
    assert read_sanity(study) == records
    assert records.warning("w", "trial 7") == (
        "Trial 7 fails the sanity probe: it loops in 8 of 8 continuations, no source in more than 1. "
        "Read what it writes before you use it. Trial 5 is the next best that passes it."
    )
    assert records.warning("y", "trial 5") == ""


def test_records_of_another_probe_are_taken_again():
    study = Study()
    other = SanityRecords(reason="another probe").to_json().replace(f'"version": {VERSION}', '"version": 0')
    assert '"version": 0' in other
    write_text(study, attributes.SANITY, other)
    assert read_sanity(study) == read_sanity(Study()) == SanityRecords()

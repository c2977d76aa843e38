"""The first reason of an error is what is shown and what the exit code tells; what breaks after it is noted below."""

from contextlib import contextmanager

import pytest

from evomerge.cli import run_command
from evomerge.cluster import InlineExecutor
from evomerge.errors import Interrupted, StoppedByFailures, first_reason, noted
from evomerge.evaluation.synthetic import SyntheticEvaluator
from evomerge.study.search_study import SearchStudy


@contextmanager
def breaking(error, seen):
    try:
        yield "entered"
    finally:
        seen.append("cleaned up")
        if error is not None:
            raise error


@pytest.mark.parametrize("reason", [StoppedByFailures("no worker"), KeyboardInterrupt(), ZeroDivisionError()])
def test_an_error_while_cleaning_up_is_a_note_of_the_first_one(reason):
    seen = []

    def run():
        with first_reason(breaking(OSError("no space"), seen), "while all was closed") as entered:
            assert entered == "entered"
            raise reason

    with pytest.raises(type(reason)) as caught:
        run()
    assert caught.value is reason
    assert seen == ["cleaned up"]
    assert reason.__notes__ == ["then, while all was closed: OSError: no space"]


def test_an_error_while_cleaning_up_alone_is_raised():
    with pytest.raises(OSError, match="no space"), first_reason(breaking(OSError("no space"), []), "then"):
        pass


def test_a_block_that_ends_well_is_cleaned_up_and_one_that_meets_the_same_trouble_says_it_once():
    seen = []
    with first_reason(breaking(None, seen), "then"):
        pass
    assert seen == ["cleaned up"]
    reason = Interrupted("the storage is away")
    with noted(reason, "while it was closed"):
        raise Interrupted("the storage is away")
    assert not hasattr(reason, "__notes__")


def test_workers_that_cannot_be_stopped_hide_no_reason(write_spec, monkeypatch, capsys):
    def broken(self, candidate, items):
        raise ValueError("no such task")

    def close(self):
        raise OSError("they do not answer")

    monkeypatch.setattr(SyntheticEvaluator, "score", broken)
    monkeypatch.setattr(InlineExecutor, "close", close)
    monkeypatch.setattr("evomerge.opening.open_study.release", close)
    assert run_command(["run", str(write_spec()), "--ray", "none"]) == 5
    error, *then = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("error", "then"))]
    assert error.startswith("error: 'base' cannot be scored")
    assert then == [
        "then, while the workers were stopped: OSError: they do not answer",
        "then, while the storage was closed: OSError: they do not answer",
    ]


def test_a_status_that_cannot_be_stored_hides_no_reason(write_spec, monkeypatch, capsys):
    def ends(self, *rest, **named):
        monkeypatch.setattr("evomerge.loop.controller.StatusReporter.report", fails)
        raise Interrupted("stopped by SIGTERM")

    def fails(self, *rest, **named):
        raise OSError("no space left")

    monkeypatch.setattr(SearchStudy, "tell", ends)
    assert run_command(["run", str(write_spec(baselines=[])), "--ray", "none"]) == 3
    assert "error: stopped by SIGTERM" in (error := capsys.readouterr().err)
    assert "then, while the status was stored: OSError: no space left" in error

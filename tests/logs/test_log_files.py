"""Log files: bounded, in JSON lines with trial numbers, read in the order of time, and never a reason to fail."""

import io
import json
import logging
import sys

import pytest

from evomerge.logs import log_file, log_reading
from evomerge.logs.capture import captured
from evomerge.logs.log_file import KEPT, LogFile, trial_of
from evomerge.logs.log_reading import log_lines
from evomerge.logs.run_log import controller_log, note_event


def texts(folder, **chosen):
    return [line.text for line in log_lines(folder, **chosen)]


@pytest.mark.parametrize(
    ("job", "trial"),
    [
        ("toy/12", 12),
        ("toy/held-out/trial 12", 12),
        ("toy/random-search/12", None),
        ("toy/held-out/ties", None),
        ("batch size", None),
        ("toy/x", None),
    ],
)
def test_the_trial_of_a_job_is_in_its_key(job, trial):
    assert trial_of(job) == trial


def test_a_log_that_is_deleted_while_the_logs_are_read_is_skipped(tmp_path, monkeypatch):
    for source in ("a", "b"):
        LogFile(tmp_path, source).write(source)
    found = log_reading._files
    monkeypatch.setattr(log_reading, "_files", lambda folder: deleting(found(folder)))

    def deleting(paths):
        for path in paths:
            if path.name == "a.log":
                path.unlink()
            yield path

    assert texts(tmp_path) == ["b"]


def test_a_line_has_time_level_source_job_and_trial(tmp_path):
    LogFile(tmp_path, "worker-0").write("größer\n\ud800", level="error", job="toy/12")
    content = json.loads((tmp_path / "worker-0.log").read_text(encoding="ascii"))
    assert content.pop("time").startswith("20")
    assert content == {
        "level": "error", "source": "worker-0", "job": "toy/12", "trial": 12, "text": "größer\n\ud800",
    }  # fmt: skip


def test_the_files_of_a_worker_stay_below_their_bound_and_the_latest_lines_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(log_file, "MAX_BYTES", 2000)
    log = LogFile(tmp_path, "worker-0")
    for number in range(400):
        log.write(f"line {number}", job=f"toy/{number}")
    files = sorted(tmp_path.iterdir())
    assert [path.name for path in files] == ["worker-0.log", *(f"worker-0.log.{age}" for age in range(1, KEPT + 1))]
    assert all(path.stat().st_size <= 2000 for path in files)
    kept = texts(tmp_path)
    assert kept == [f"line {number}" for number in range(400 - len(kept), 400)]
    assert texts(tmp_path, last=2) == ["line 398", "line 399"]
    assert texts(tmp_path, trial=399) == ["line 399"]


def test_a_long_text_keeps_its_end(tmp_path):
    LogFile(tmp_path, "w").write("x" * 1_000_000 + "the error")
    (line,) = log_lines(tmp_path)
    assert line.text.endswith("the error")
    assert len(line.text) == log_file.LONGEST_TEXT


def test_a_folder_that_cannot_be_written_is_no_error_and_one_that_is_deleted_is_made_again(tmp_path):
    (tmp_path / "file").write_text("no folder")
    LogFile(tmp_path / "file", "w").write("lost")
    LogFile(None, "w").write("lost")
    log = LogFile(tmp_path / "logs", "a/b w")
    log.write("one")
    (tmp_path / "logs" / "a-b-w.log").unlink()
    (tmp_path / "logs").rmdir()
    log.write("two")
    assert texts(tmp_path / "logs") == ["two"]


def test_lines_that_were_cut_short_are_skipped(tmp_path):
    log = LogFile(tmp_path, "w")
    log.write("one")
    with (tmp_path / "w.log").open("ab") as file:
        file.write(b'{"time": "2026"\n[1]\n\xff\n')
    log.write("two")
    assert texts(tmp_path) == ["one", "two"]


def test_printed_and_logged_lines_of_a_job_are_kept_and_still_printed(tmp_path, monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    log = LogFile(tmp_path, "w")
    handlers = list(logging.getLogger().handlers)
    with captured(log, "toy/3"):
        print("two", "words")
        print("no end", end="")
        sys.stdout.flush()
        print("10 %\r20 %\r", file=sys.stderr)
        logging.getLogger("library").warning("careful")
        logging.getLogger("library").info("nothing")
    print("after")
    assert [(line.text, line.level, line.trial) for line in log_lines(tmp_path)] == [
        ("two words", "output", 3),
        ("20 %", "output", 3),
        ("library: careful", "warning", 3),
        ("no end", "output", 3),
    ]
    assert out.getvalue() == "two words\nno endafter\n"
    assert sys.stdout is out
    assert logging.getLogger().handlers == handlers


@pytest.fixture
def library():
    """The logger of a library that prints by a handler of its own, made when it is first used."""
    logger = logging.getLogger("some_library")
    logger.setLevel(logging.INFO)
    yield logger
    logger.handlers.clear()
    logger.setLevel(logging.NOTSET)
    logger.propagate = True


@pytest.mark.parametrize("propagates", [False, True])
def test_what_a_library_logs_is_one_line_of_the_job_that_is_being_done(tmp_path, library, propagates, monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    log = LogFile(tmp_path, "w")
    library.propagate = propagates
    with captured(log, "start"):
        library.addHandler(logging.StreamHandler())
        library.info("loaded")
    library.info("between jobs")
    with captured(log, "toy/17"):
        library.warning("careful")
    assert [(line.job, line.text) for line in log_lines(tmp_path)] == [("start", "loaded"), ("toy/17", "careful")]
    assert sys.stderr.getvalue() == "loaded\nbetween jobs\ncareful\n"


def test_a_record_that_the_handler_of_a_library_leaves_out_is_kept_all_the_same(tmp_path, library):
    log = LogFile(tmp_path, "w")
    with captured(log, "start"):
        library.addHandler(handler := logging.StreamHandler())
    handler.setLevel(logging.ERROR)
    with captured(log, "toy/17"):
        library.warning("careful")
    handler.setLevel(logging.NOTSET)
    handler.addFilter(lambda record: False)
    with captured(log, "toy/18"):
        library.warning("careful")
    assert [(line.trial, line.text) for line in log_lines(tmp_path)] == [
        (17, "some_library: careful"),
        (18, "some_library: careful"),
    ]


def test_a_job_within_another_has_its_lines_and_the_other_one_none_of_them(tmp_path):
    log = LogFile(tmp_path, "w")
    with captured(log, "toy/3"):
        with captured(log, "start"):
            print("inner")
        print("outer")
    assert [(line.job, line.text) for line in log_lines(tmp_path)] == [("start", "inner"), ("toy/3", "outer")]


def test_a_progress_bar_keeps_no_more_than_its_latest_state(tmp_path):
    with captured(LogFile(tmp_path, "w"), "toy/3"):
        for percent in range(101):
            sys.stderr.write(f"\r{percent} %")
            assert len(sys.stderr._rest) <= len("100 %")
        sys.stderr.write("." * 3 * log_file.LONGEST_TEXT)
        assert len(sys.stderr._rest) <= log_file.LONGEST_TEXT
        sys.stderr.write("\n50 %\r\r")
    assert [line.text for line in log_lines(tmp_path)][-1] == "50 %"


def test_the_controller_keeps_its_events_the_warnings_of_evomerge_and_the_error_that_ends_it(tmp_path):
    def run():
        with controller_log(tmp_path):
            note_event("searching")
            note_event("failed: it is nan", job="toy/4", level=logging.WARNING)
            logging.getLogger("evomerge.baselines.runner").warning("ties is left out")
            raise ZeroDivisionError("here")

    with pytest.raises(ZeroDivisionError):
        run()
    note_event("not kept")
    first, second, third, last = log_lines(tmp_path)
    assert (first.text, first.level, first.source) == ("searching", "info", "controller")
    assert (second.trial, second.level) == (4, "warning")
    assert third.text == "ties is left out"
    assert last.level == "error"
    assert "ZeroDivisionError: here" in last.text

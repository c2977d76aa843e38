"""Optuna Dashboard on the study of a search, as a browser sees it."""

import json
import subprocess
import sys
from contextlib import contextmanager
from itertools import takewhile

import pytest
from browser import answer_of, free_address, page_of

from evomerge import load_spec, run_search

NO_AUTHENTICATION = "It has no authentication: whoever reaches this address can change the study."


@pytest.fixture
def address(write_spec, tmp_path):
    """The dashboard of a finished search on a free port of the loopback interface."""
    spec = write_spec()
    run_search(load_spec(spec), ray="none")
    url, port = free_address()
    said = []
    with served(said, spec, "--port", port):
        answer_of(f"{url}/api/studies")
        yield url
    assert f"its verdict: {url}/dashboard/studies/1/note" in said
    assert NO_AUTHENTICATION not in said


@contextmanager
def served(said, spec, *options):
    """`evomerge dashboard` in a process of its own. Afterwards `said` has the lines that it printed."""
    command = [sys.executable, "-m", "evomerge.cli", "dashboard", str(spec), *map(str, options)]
    server = subprocess.Popen(command, cwd=spec.parent, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield server
    finally:
        server.terminate()
        said += server.communicate(timeout=20)[1].splitlines()


def test_the_dashboard_serves_the_search_and_its_siblings(address):
    studies = json.loads(answer_of(f"{address}/api/studies"))["study_summaries"]
    assert {study["study_name"] for study in studies} == {"sim", "sim/baselines", "sim/held-out"}


@pytest.mark.skipif(sys.platform != "linux", reason="the loopback interface has a second address on Linux alone")
def test_the_dashboard_serves_at_the_address_that_is_given_and_at_no_other(write_spec):
    spec = write_spec(budget={"trials": 1}, baselines=[])
    run_search(load_spec(spec), ray="none")
    url, port = free_address("127.0.0.2")
    said = []
    with served(said, spec, "--host", "127.0.0.2", "--port", port):
        assert b"sim" in answer_of(f"{url}/api/studies")
        with pytest.raises(OSError, match="refused"):
            answer_of(f"http://127.0.0.1:{port}/api/studies", seconds=0)
    assert NO_AUTHENTICATION in said


def test_a_browser_shows_the_study_and_its_verdict_first(address, tmp_path):
    assert "sim/held-out" in page_of(f"{address}/dashboard", tmp_path)
    note = page_of(f"{address}/dashboard/studies/1/note", tmp_path)
    assert 0 < note.find("Verdict: ") < note.find("items that the search never saw") < note.find("<table")


def test_with_json_the_addresses_are_one_document_that_is_printed_before_it_serves(write_spec):
    spec = write_spec(budget={"trials": 1}, baselines=[])
    run_search(load_spec(spec), ray="none")
    url, port = free_address()
    said = []
    with served(said, spec, "--port", port, "--json") as server:
        printed = "".join(takewhile("}\n".__ne__, server.stdout)) + "}"
        assert b"sim" in answer_of(f"{url}/api/studies")
    note = f"{url}/dashboard/studies/1/note"
    assert json.loads(printed) == {"schema": 1, "study": "sim", "url": url, "note": note}
    assert not any(line.startswith(("Optuna Dashboard of", "its verdict")) for line in said)

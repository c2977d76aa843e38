"""Optuna Dashboard on the study of a search, as a browser sees it."""

import json
import subprocess
import sys

import pytest
from browser import answer_of, free_address, page_of

from evomerge import load_spec, run_search


@pytest.fixture
def address(write_spec, tmp_path):
    """The dashboard of a finished search on a free port of the loopback interface."""
    spec = write_spec()
    run_search(load_spec(spec), ray="none")
    url, port = free_address()
    command = [sys.executable, "-m", "evomerge.cli", "dashboard", str(spec), "--port", str(port)]
    server = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    try:
        answer_of(f"{url}/api/studies")
        yield url
    finally:
        server.terminate()
        _, said = server.communicate(timeout=20)
        assert f"its verdict: {url}/dashboard/studies/1/note\n" in said.decode()


def test_the_dashboard_serves_the_search_and_its_siblings(address):
    studies = json.loads(answer_of(f"{address}/api/studies"))["study_summaries"]
    assert {study["study_name"] for study in studies} == {"sim", "sim/baselines", "sim/held-out"}


def test_a_browser_shows_the_study_and_its_verdict_first(address, tmp_path):
    assert "sim/held-out" in page_of(f"{address}/dashboard", tmp_path)
    note = page_of(f"{address}/dashboard/studies/1/note", tmp_path)
    assert 0 < note.find("Verdict: ") < note.find("items that the search never saw") < note.find("<table")

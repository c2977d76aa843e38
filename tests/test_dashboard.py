"""Optuna Dashboard on the study of a search, as a browser sees it."""

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from evomerge import load_spec, run_search


@pytest.fixture
def address(write_spec, tmp_path):
    """The dashboard of a finished search on a free port of the loopback interface."""
    spec = write_spec()
    run_search(load_spec(spec), ray="none")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "evomerge.cli", "dashboard", str(spec), "--port", str(port)]
    server = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(url)
        yield url
    finally:
        server.terminate()
        server.wait(timeout=20)


def wait_for(url, seconds=60.0):
    end = time.monotonic() + seconds
    while True:
        try:
            return urllib.request.urlopen(f"{url}/api/studies", timeout=5).read()
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


def test_the_dashboard_serves_the_search_and_its_siblings(address):
    studies = json.loads(wait_for(address))["study_summaries"]
    assert {study["study_name"] for study in studies} == {"sim", "sim/baselines", "sim/held-out"}


def test_a_browser_shows_the_study(address, tmp_path):
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs the browser chromium")
    page = subprocess.run(
        [
            chromium,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            f"--user-data-dir={tmp_path}/profile",
            "--virtual-time-budget=20000",
            "--dump-dom",
            f"{address}/dashboard",
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout
    assert "sim/held-out" in page

"""A browser without a window, for pages that are made by JavaScript."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest

OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def free_address(host: str = "127.0.0.1") -> tuple[str, int]:
    """The address of a page on a free port of the loopback interface, and the port."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        port = probe.getsockname()[1]
    return f"http://{host}:{port}", port


def answer_of(url: str, seconds: float = 60.0) -> bytes:
    """The answer of a server that may be starting."""
    end = time.monotonic() + seconds
    while True:
        try:
            return bytes(urllib.request.urlopen(url, timeout=5).read())
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


def page_of(url: str, folder: Path, *options: str) -> str:
    """The page as it is after its scripts have run. Skips where there is no browser.

    Args:
        folder: for the browser's profile.
        options: of the browser, beside those that it always gets.
    """
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs the browser chromium")
    profile = [f"--user-data-dir={folder}/profile", "--virtual-time-budget=20000", "--dump-dom"]
    return subprocess.run(
        [chromium, *OPTIONS, *profile, *options, url], capture_output=True, text=True, timeout=120, check=True
    ).stdout

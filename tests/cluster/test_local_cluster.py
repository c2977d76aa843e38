"""A local cluster is reached by this machine's processes that know its token, and knows no password."""

import http.server
import json
import os
import subprocess
import sys
import threading

import pytest

from evomerge.cluster.environment import environment, without
from evomerge.cluster.open_cluster import answers_anyone
from evomerge.storage.secrets import secrets_of

PASSWORD = "correct horse/battery"
URL = "postgresql://evomerge:correct%20horse%2Fbattery@db.example/studies"

CODE = """
import json, os, sys, urllib.error, urllib.request
import psutil
from pathlib import Path
from evomerge.cluster import open_executor
from evomerge.spec import WorkersSpec
from evomerge.storage.secrets import secrets_of
from evomerge.testing.executor_contract import job, setup

executor = open_executor(setup(), WorkersSpec(count=1), "local", secrets=secrets_of("env:STORAGE"))
executor.submit(job("a"))
event = executor.next_event(120.0)
me = psutil.Process()
children = me.children(recursive=True)
listening = [each for process in (me, *children) for each in process.net_connections("tcp") if each.status == "LISTEN"]
import ray
agent = ray.nodes()[0]["DashboardAgentListenPort"]
try:
    status = urllib.request.urlopen(f"http://127.0.0.1:{agent}/api/job_agent/jobs/", data=b"{}").status
except urllib.error.HTTPError as error:
    status = error.code
logs = Path(ray._private.worker._global_node.get_session_dir_path()).rglob("*")
found = {
    "scored": type(event.result).__name__,
    "addresses": sorted({each.laddr.ip.removeprefix("::ffff:") for each in listening}),
    "listening": len(listening),
    "children": len(children),
    "environments": [Path(f"/proc/{process.pid}/environ").read_text() for process in children],
    "logs": [path.read_text(errors="replace") for path in logs if path.is_file()],
    "post_without_token": status,
    "kept": os.environ["STORAGE"],
    "left": sorted(name for name in os.environ if name.startswith("RAY_AUTH")),
}
executor.close()
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What a process that runs workers on a local cluster finds out about it."""
    home = tmp_path_factory.mktemp("home")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    more = {"HOME": str(home), "STORAGE": URL, "PGPASSWORD": PASSWORD, "COPY": f"url={URL}"}
    done = subprocess.run(
        [sys.executable, "-c", CODE], env={**inherited, **more}, capture_output=True, text=True, check=False, cwd=home
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout) | {"home": home}


def test_a_local_cluster_listens_on_loopback_only(found):
    assert found["scored"] == "Scored"
    assert found["listening"] >= 5
    assert found["addresses"] == ["127.0.0.1"]


def test_a_local_cluster_asks_for_a_token_that_is_in_no_file(found):
    assert found["post_without_token"] in (401, 403)
    assert list(found["home"].rglob(".ray/*")) == []
    assert found["left"] == []


def test_no_process_of_a_local_cluster_knows_the_password_of_the_storage(found):
    assert found["children"] >= 4
    for text in (*found["environments"], *found["logs"]):
        assert "battery" not in text
    assert found["kept"] == URL


def test_the_secrets_of_a_url_are_the_url_and_its_passwords_as_written_and_as_meant():
    assert secrets_of(URL) == {URL, "correct%20horse%2Fbattery", PASSWORD}
    assert secrets_of("redis://db.example/0?password=hunter2&timeout=5") == {
        "redis://db.example/0?password=hunter2&timeout=5",
        "hunter2",
    }
    assert secrets_of("sqlite:////tmp/study.db") == frozenset()


def test_variables_that_hold_a_secret_are_gone_for_a_moment_and_others_stay(monkeypatch):
    for name, value in {"A": URL, "B": f"x {URL} y", "C": PASSWORD, "D": f"{PASSWORD}!", "E": "e"}.items():
        monkeypatch.setenv(name, value)
    with environment(without(secrets_of(URL))):
        assert {name for name in "ABCDE" if name in os.environ} == {"D", "E"}
    assert os.environ["B"] == f"x {URL} y"


class Answering(http.server.BaseHTTPRequestHandler):
    """Answers every request with the status of its class."""

    status = 200

    def do_GET(self):
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, *arguments):
        pass


@pytest.mark.parametrize(("status", "open_to_anyone"), [(200, True), (401, False), (403, False)])
def test_a_cluster_that_answers_without_a_token_is_open(status, open_to_anyone):
    handler = type("Handler", (Answering,), {"status": status})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert answers_anyone(f"127.0.0.1:{server.server_port}") is open_to_anyone
        server.shutdown()


def test_of_a_cluster_without_a_dashboard_nothing_is_said():
    assert answers_anyone("127.0.0.1:9") is None

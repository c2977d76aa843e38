"""`evomerge doctor` looks, changes nothing, and says by its exit code whether something is wrong."""

import http.server
import json
import re
import threading
from pathlib import Path

import pytest
import yaml

from evomerge import doctor as module
from evomerge.cli import run_command
from evomerge.doctor import doctor
from evomerge.spec import load_spec

SCRIPT = Path(__file__).parent.parent / "docker" / "make-secrets.sh"


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch, tmp_path):
    """A home without tokens, and no dashboard at the port that is looked at."""
    monkeypatch.setattr(module, "DASHBOARD_PORT", 9)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


def finding(document, name):
    (found,) = [each for each in document["findings"] if each["name"] == name]
    return found


def write_token(folder, mode):
    path = folder / "home" / ".ray" / "auth_token"
    path.parent.mkdir(parents=True)
    path.write_text("secret")
    path.chmod(mode)
    return path


def test_a_healthy_machine_is_exit_code_zero_and_nothing_is_made(write_spec, tmp_path, capsys):
    path = write_spec()
    assert run_command(["doctor", str(path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["healthy"]
    names = {each["name"] for each in document["findings"]}
    assert names >= {"ray", "cluster", "gpus", "storage", "run directory", "artifacts", "temporary folder"}
    assert "will be made" in finding(document, "storage")["text"]
    assert not (tmp_path / "runs").exists()


def test_a_token_that_others_can_read_is_wrong_and_exit_code_two(tmp_path, capsys):
    write_token(tmp_path, 0o644)
    assert run_command(["doctor"]) == 2
    captured = capsys.readouterr()
    assert "chmod 600" in " ".join(captured.out.split())
    assert "see token above" in captured.err


def test_a_token_that_nobody_else_can_read_is_fine(tmp_path):
    write_token(tmp_path, 0o600)
    assert finding(doctor(), "token")["state"] == "ok"


def test_a_token_as_the_containers_of_compose_have_it_is_fine(monkeypatch, tmp_path):
    path = write_token(tmp_path, int(re.findall(r"^chmod (0\d+) ", SCRIPT.read_text(), flags=re.MULTILINE)[0], 8))
    compose = yaml.safe_load(SCRIPT.with_name("compose.yaml").read_text(encoding="utf-8"))
    mounted = Path(compose["services"]["controller"]["environment"]["RAY_AUTH_TOKEN_PATH"])
    assert mounted.is_relative_to(module.MOUNTED_SECRETS)
    monkeypatch.setattr(module, "MOUNTED_SECRETS", path.parent)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
    found = finding(doctor(), "token")
    assert found["state"] == "ok"
    assert "folder on the host" in found["text"]


@pytest.mark.parametrize("mode", [0o666, 0o664])
def test_a_mounted_token_that_others_can_change_is_wrong(monkeypatch, tmp_path, mode):
    monkeypatch.setattr(module, "MOUNTED_SECRETS", write_token(tmp_path, mode).parent)
    assert finding(doctor(), "token")["state"] == "wrong"


@pytest.fixture
def open_cluster(monkeypatch):
    """A dashboard that takes jobs from anyone."""

    class Open(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Open) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(module, "DASHBOARD_PORT", server.server_port)
        yield server
        server.shutdown()


@pytest.mark.usefixtures("open_cluster")
def test_a_cluster_that_takes_jobs_from_anyone_is_wrong():
    found = finding(doctor(ray="127.0.0.1:6379"), "cluster")
    assert found["state"] == "wrong"
    assert "allow_open_cluster" in found["text"]


@pytest.mark.usefixtures("open_cluster")
def test_a_cluster_that_takes_jobs_from_anyone_is_a_warning_where_the_spec_allows_it(write_spec):
    path = write_spec(workers={"allow_open_cluster": True})
    found = finding(doctor(load_spec(path)), "cluster")
    assert found["state"] == "warning"
    assert "which the spec allows" in found["text"]
    assert run_command(["doctor", str(path)]) == 0


@pytest.mark.usefixtures("open_cluster")
def test_an_open_cluster_that_is_allowed_and_does_not_answer_is_wrong(write_spec):
    spec = load_spec(write_spec(workers={"allow_open_cluster": True}))
    found = finding(doctor(spec, ray="127.0.0.1:9"), "cluster")
    assert found["state"] == "wrong"
    assert "no Ray cluster answers" in found["text"]


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("foo", "is no address of a Ray cluster"),
        ("nohost.invalid:1", "no Ray cluster answers"),
        ("127.0.0.1:9", "again"),
    ],
)
def test_an_address_that_a_run_would_refuse_is_wrong(capsys, address, says):
    assert run_command(["doctor", "--ray", address]) == 2
    captured = capsys.readouterr()
    assert says in " ".join(captured.out.split())
    assert "see cluster above" in captured.err
    for place in ("auto", "local", "none"):
        assert finding(doctor(ray=place), "cluster")["state"] == "ok"


def test_a_storage_that_cannot_be_opened_is_wrong_and_shows_no_password(write_spec):
    spec = load_spec(write_spec(storage="postgresql+psycopg://u:hunter2@127.0.0.1:9/studies"))
    found = finding(doctor(spec), "storage")
    assert found["state"] == "wrong"
    assert "hunter2" not in found["text"]

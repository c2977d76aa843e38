"""Messages and metrics of a run: what others are told, and that a run neither waits for them nor fails by them."""

import base64
import json
import re
import sys
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, Sum
from ray.util.metrics import Gauge

from evomerge.cli import run_command
from evomerge.cluster.ray_executor.gauges import RayGauges
from evomerge.documents import validate
from evomerge.errors import InvalidInput
from evomerge.observers import MetricsSpec, NotifySpec
from evomerge.spec import BudgetSpec, load_spec
from evomerge.storage import attributes
from evomerge.study.status import Status
from evomerge.study.stored_search import read_search
from evomerge.study.tally import Tally
from evomerge.telemetry import messenger
from evomerge.telemetry.messenger import Messenger
from evomerge.telemetry.prometheus import MetricFamily, metrics_text, search_metrics

KEEP = "import sys; open(sys.argv[1], 'ab').write(sys.stdin.buffer.read() + b'\\n')"


@pytest.fixture
def kept(tmp_path):
    """A command that keeps what it is told, and a function that reads that."""
    file = tmp_path / "told.jsonl"

    def read():
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    read.command = [sys.executable, "-c", KEEP, str(file)]
    return read


@pytest.fixture
def server():
    """A server on this machine, with the documents that were posted to it and the status that it answers."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            content = self.rfile.read(int(self.headers["Content-Length"]))
            self.server.got.append((self.path, self.headers["Content-Type"], json.loads(content)))
            self.server.logins.append(self.headers["Authorization"])
            self.send_response(self.server.answer)
            self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_GET(self):
            self.server.got.append((self.path, None, None))

        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as serving:
        serving.got, serving.logins, serving.answer = [], [], 200
        serving.url = f"http://127.0.0.1:{serving.server_address[1]}/hook?token=s3cret"
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        yield serving
        serving.shutdown()
        thread.join()


def run(spec, *options):
    return run_command(["run", str(spec), "--ray", "none", *options])


def test_a_command_is_told_of_the_best_of_failures_and_of_the_end(write_spec, kept):
    evaluator = {"name": "synthetic", "items": 40, "raising": 0.3}
    spec = write_spec(evaluator=evaluator, notify={"command": kept.command}, budget={"trials": 12})
    assert run(spec) == 0
    told = kept()
    assert Counter(each["event"] for each in told).keys() == {"best", "failure", "end"}
    values = [each["value"] for each in told if each["event"] == "best"]
    assert values == sorted(set(values))
    assert all(each["reason"] for each in told if each["event"] == "failure")
    assert {each["study"] for each in told} == {"sim"}
    assert told[-1]["event"] == "end"
    assert (told[-1]["state"], told[-1]["best"]["value"], told[-1]["finished"]) == ("finished", values[-1], 12)


def test_with_constraints_each_new_best_is_told_also_one_with_a_lower_value(write_spec, kept):
    spec = write_spec(
        evaluator={"name": "synthetic", "items": 200, "conflict": 0.2, "tasks": 3},
        objective={"constraints": [{"task": "task_1", "at_least": 0.8}]},
        sampler="random",
        notify={"command": kept.command, "on": ["best"]},
        budget={"trials": 16},
        baselines=[],
        seed=2,
    )
    assert run(spec) == 0
    best, expected = None, []
    for trial in read_search(load_spec(spec)).study.get_trials():
        rank = (max(trial.user_attrs[attributes.VIOLATIONS]) <= 0, trial.value)
        if best is None or rank > best:
            best = rank
            expected.append((trial.number, trial.value))
    assert [(each["trial"], each["value"]) for each in kept()] == expected
    assert any(later < earlier for (_, earlier), (_, later) in pairwise(expected))


def test_the_events_can_be_named_as_the_documentation_names_them(write_spec):
    path = write_spec()
    with path.open("a") as file:
        file.write("notify: {command: [mail-me, ops], on: [best, end]}\n")
    assert load_spec(path).notify.on == ("best", "end")


def test_a_resumed_run_tells_only_what_is_new(write_spec, kept):
    spec = write_spec(notify={"command": kept.command, "on": ["best"]})
    assert run(spec, "--trials", "4") == 0
    before = kept()
    assert run(spec, "--trials", "5") == 0
    new = kept()[len(before) :]
    assert all(each["value"] > before[-1]["value"] for each in new)


def test_a_search_in_a_space_of_merges_tells_of_its_best_and_its_metrics_too(write_spec, kept, tmp_path):
    spec = write_spec(
        space="baselines-global",
        baselines=["uniform-soup", "task-arithmetic"],
        notify={"command": kept.command, "on": ["best", "end"]},
        metrics={"textfile": "run.prom"},
        budget={"trials": 4},
    )
    assert run(spec) == 0
    told = kept()
    assert told[0]["event"] == "best"
    assert told[-1]["best"]["value"] == told[-2]["value"]
    assert read_metrics(tmp_path / "run.prom")['evomerge_trials{study="sim",state="complete"}'] == 4
    assert read_metrics(tmp_path / "run.prom")['evomerge_items_total{study="sim"}'] > 0


def test_a_server_gets_the_same_documents_and_the_study_does_not_keep_its_address(write_spec, server, tmp_path):
    assert run(write_spec(notify={"url": server.url, "on": ["end"]})) == 0
    [(path, kind, document)] = server.got
    assert (path, kind, document["event"]) == ("/hook?token=s3cret", "application/json", "end")
    assert b"s3cret" not in (tmp_path / "runs" / "sim" / "study.db").read_bytes()


def test_the_address_may_be_in_the_environment(write_spec, server, monkeypatch, capsys):
    spec = write_spec(notify={"url": "env:HOOK", "on": ["end"]})
    assert run(spec) == 2
    assert "'HOOK'" in capsys.readouterr().err
    monkeypatch.setenv("HOOK", server.url)
    assert run(spec) == 0
    assert len(server.got) == 1


@pytest.mark.parametrize("answer", [500, 302])
def test_a_server_that_refuses_is_said_once_without_its_path(server, caplog, answer):
    server.answer = answer
    messenger = Messenger(NotifySpec(url=server.url))
    for number in range(3):
        messenger.send({"number": number})
    messenger.close()
    assert [document for _, _, document in server.got] == [{"number": 0}, {"number": 1}, {"number": 2}]
    [said] = caplog.messages
    assert "127.0.0.1 was not notified" in said
    assert "s3cret" not in said


def test_the_login_of_an_address_is_sent_as_one_and_its_password_is_never_said(server, caplog):
    server.answer = 401
    messenger = Messenger(NotifySpec(url=server.url.replace("//", "//bot:pass%3Aword@")))
    messenger.send({})
    messenger.close()
    assert [base64.b64decode(login.removeprefix("Basic ")) for login in server.logins] == [b"bot:pass:word"]
    assert caplog.messages == ["the server 127.0.0.1 was not notified: it answers with status 401; this is said once"]


@pytest.mark.parametrize(
    ("receiver", "reason"),
    [
        ({"url": "http://127.0.0.1:s3cret/"}, "InvalidURL"),
        ({"url": "http://bot:s3cret@127.0.0.1:9/s3cret"}, "Connection refused"),
        ({"command": (sys.executable, "-c", "import sys; sys.exit('s3cret')", "s3cret")}, "it ends with exit status 1"),
        ({"command": ("/nowhere/at/all", "s3cret")}, "No such file or directory"),
    ],
)
def test_what_could_not_be_notified_is_said_without_address_and_arguments(receiver, reason, caplog):
    messenger = Messenger(NotifySpec(**receiver))
    messenger.send({})
    messenger.close()
    [said] = caplog.messages
    assert f"was not notified: {reason}; this is said once" in said
    assert "s3cret" not in said


@pytest.fixture
def slow(monkeypatch):
    """A messenger whose first delivery takes until a gate is opened; what is delivered; the gate."""
    gate, got = threading.Event(), []

    def deliver(command, content):
        got.append(json.loads(content)["event"])
        gate.wait()

    monkeypatch.setattr(messenger, "_run", deliver)
    monkeypatch.setattr(messenger, "TIMEOUT", 0.3)
    yield Messenger(NotifySpec(command=("slow",))), got, gate
    gate.set()


def test_the_end_of_a_run_is_told_although_earlier_messages_still_wait(slow, monkeypatch, caplog):
    sender, got, gate = slow
    take = sender._take_waiting

    def take_and_open():
        waiting = take()
        gate.set()
        return waiting

    monkeypatch.setattr(sender, "_take_waiting", take_and_open)
    for event in ("best", "failure", "best", "end"):
        sender.send({"event": event})
    sender.close()
    assert got == ["best", "end"]
    assert caplog.messages == ["2 messages not delivered at the end of the run: deliveries take too long"]


@pytest.mark.parametrize("count", [1, 4])
def test_messages_that_nobody_takes_at_the_end_of_a_run_are_counted(slow, caplog, count):
    sender, _, _ = slow
    for _ in range(count):
        sender.send({"event": "best"})
    sender.close()
    [said] = caplog.messages
    assert said.startswith(f"{count} message")


def test_a_run_does_not_fail_by_those_it_tells(write_spec, tmp_path, capsys):
    spec = write_spec(
        notify={"command": ["/nowhere/at/all"], "url": "http://127.0.0.1:9/"}, metrics={"textfile": "/proc/no/run.prom"}
    )
    assert run(spec) == 0


@pytest.mark.parametrize(
    ("kind", "given", "says"),
    [
        (NotifySpec, {}, "name a command, a url, or both"),
        (NotifySpec, {"url": "ftp://host/x"}, "http://HOST"),
        (NotifySpec, {"url": "file:///etc/passwd"}, "http://HOST"),
        (NotifySpec, {"command": []}, "command"),
        (NotifySpec, {"command": ["x"], "on": ["bset"]}, "'best', 'failure' or 'end'"),
        (MetricsSpec, {"textfile": "run.txt"}, ".prom"),
    ],
)
def test_invalid_observers_are_refused_with_what_is_allowed(kind, given, says):
    with pytest.raises(InvalidInput, match=re.escape(says)):
        validate(kind, given, "search spec")


@pytest.mark.parametrize(
    "section",
    [
        {"notify": {"url": "hooks.host/s3cret"}},
        {"notify": "https://hooks.host/s3cret"},
        {"track": {"mlflow": "http://bot:s3cret@host"}},
    ],
)
def test_an_address_that_is_a_secret_is_in_no_error(write_spec, section, capsys):
    spec = write_spec(**section)
    assert run(spec) == 2
    assert "s3cret" not in capsys.readouterr().err


def test_an_address_that_is_a_secret_is_in_no_repr():
    assert "s3cret" not in repr(NotifySpec(url="https://hooks.host/s3cret"))


def test_paths_are_relative_to_the_spec(write_spec, tmp_path):
    spec = load_spec(write_spec(notify={"command": ["./tell.sh", "x"]}, metrics={"textfile": "run.prom"}))
    assert spec.notify.command == (str(tmp_path / "tell.sh"), "x")
    assert spec.metrics.textfile == str(tmp_path / "run.prom")
    assert load_spec(write_spec(notify={"command": ["mail", "me"]})).notify.command == ("mail", "me")


def test_metrics_are_those_of_the_search(write_spec, tmp_path):
    evaluator = {"name": "synthetic", "items": 40, "raising": 0.3}
    spec = write_spec(evaluator=evaluator, metrics={"textfile": "run.prom"}, budget={"trials": 12, "hours": 1})
    assert run(spec) == 0
    values = read_metrics(tmp_path / "run.prom")
    trials = {state: values[f'evomerge_trials{{study="sim",state="{state}"}}'] for state in ("complete", "failed")}
    assert sum(trials.values()) == 12
    assert trials["failed"] > 0
    assert values['evomerge_state{study="sim",state="finished"}'] == 1
    assert values['evomerge_budget_left{study="sim",limit="trials"}'] == 0
    assert 0.9 < values['evomerge_budget_left{study="sim",limit="hours"}'] < 1
    assert 'evomerge_budget_left{study="sim",limit="items"}' not in values  # it has no such limit
    assert values['evomerge_items_total{study="sim"}'] > 0
    assert 'evomerge_phase_seconds_total{study="sim",phase="merge"}' in values
    assert 'evomerge_phase_seconds_total{study="sim",phase="total"}' not in values  # the sum of the others
    assert values['evomerge_controller_memory_bytes{study="sim"}'] > 1e7


def test_the_same_numbers_are_gauges_of_ray_while_the_run_is_on_a_cluster(write_spec, tmp_path, monkeypatch):
    served, seen = [True], {}

    def kept(self, value, tags):
        labels = ",".join(f'{name}="{tag}"' for name, tag in tags.items())
        assert set(tags) == set(self.info["tag_keys"])
        seen[f"{self.info['name']}{{{labels}}}"] = value

    monkeypatch.setattr(Gauge, "set", kept)
    monkeypatch.setattr(RayGauges, "are_served", staticmethod(lambda: served[0]))
    assert run(write_spec(metrics={"textfile": "run.prom"})) == 0
    assert seen == read_metrics(tmp_path / "run.prom")
    seen.clear()
    assert run(write_spec(name="without")) == 0
    assert seen['evomerge_state{study="without",state="finished"}'] == 1
    seen.clear()
    served[0] = False
    assert run(write_spec(name="alone")) == 0
    assert not seen


def test_states_that_no_worker_is_in_any_more_are_zero_so_that_the_states_add_up_to_the_workers(monkeypatch):
    seen = {}
    monkeypatch.setattr(Gauge, "set", lambda self, value, tags: seen.__setitem__(tags["state"], value))
    gauges = RayGauges("sim")
    for workers in ({"starting": 4}, {"busy": 3, "starting": 1}, {"idle": 2, "quarantined": 2}):
        numbers = search_metrics(status_with(workers=workers), Tally([]), BudgetSpec(), memory=None)
        [found] = [each for each in numbers if each.name == "workers"]
        gauges.set(found.name, found.help, found.values)
        assert {state: count for state, count in seen.items() if count} == workers
        assert sum(seen.values()) == 4


def test_the_hours_of_all_runs_are_a_gauge_as_they_fall_where_a_run_was_killed():
    numbers = search_metrics(status_with(run_seconds=7200.0), Tally([]), BudgetSpec(), memory=None)
    text = metrics_text("sim", [each for each in numbers if each.name.startswith("run_hours")])
    assert text.splitlines()[1:] == ["# TYPE evomerge_run_hours gauge", 'evomerge_run_hours{study="sim"} 2.0']


def status_with(**given):
    usual = {
        "state": "running", "finished": 7, "budget": 100, "failed": 0, "running": 2, "best": 0.7, "best_trial": 3,
        "trials_per_hour": 5.0, "seconds_left": 60.0, "run_seconds": 3600.0, "workers": {"busy": 2}, "restarts": 0,
        "host": "h", "pid": 1, "updated": 0.0,
    }  # fmt: skip
    return Status(**{**usual, **given})


def test_an_open_telemetry_sdk_reads_the_same_numbers(write_spec, tmp_path, monkeypatch):
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    monkeypatch.setattr("evomerge.telemetry.open_telemetry.get_meter_provider", lambda: provider)
    assert run(write_spec(metrics={"textfile": "run.prom"})) == 0
    [of_resource] = reader.get_metrics_data().resource_metrics
    [scope] = of_resource.scope_metrics
    assert scope.scope.name == "evomerge"
    seen = {}
    for metric in scope.metrics:
        suffix = "_total" if isinstance(metric.data, Sum) else ""  # as exporters add it
        for point in metric.data.data_points:
            labels = ",".join(f'{name}="{value}"' for name, value in point.attributes.items())
            seen[f"{metric.name.replace('.', '_')}{suffix}{{{labels}}}"] = point.value
    assert seen == read_metrics(tmp_path / "run.prom")
    provider.shutdown()


def read_metrics(path):
    lines = path.read_text().splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


def test_labels_are_escaped_and_unknown_values_left_out():
    metrics = [
        MetricFamily("a", "gauge", "A.", [({"x": 'q"\\\n'}, 1.0), ({}, None)]),
        MetricFamily("b", "gauge", "B.", [({}, None)]),
    ]
    assert metrics_text("s", metrics) == (
        '# HELP evomerge_a A.\n# TYPE evomerge_a gauge\nevomerge_a{study="s",x="q\\"\\\\\\n"} 1.0\n'
    )

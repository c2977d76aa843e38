"""The terminal shows our own lines and nothing else, whatever libraries print, and adapts to what it can show."""

import io
import json
import math
import os
import pty
import re
import shutil
import subprocess
import sys
import termios
from pathlib import Path

import pytest
import yaml
from rich.text import Text

from evomerge.cli import run_command
from evomerge.report.terminal import Terminal

ROOT = Path(__file__).parent.parent
COMMAND = [sys.executable, "-m", "evomerge.cli"]

# Every line that a run tells on a terminal, as a person sees it.
OURS = re.compile(
    r"warning: (?!.*(Generating|Loading|Ray|ray|token))|starting workers$|scoring the sources on the search items$|"
    r"searching$|a candidate takes about |a candidate took |making the baselines$|probing the sanity of |finished$|"
    r"scoring the winner and what it is compared with on the held-out items$|\d+/\d+ trials · |\w+: step \d+/\d+"
)
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def environment(**changes):
    return {**os.environ, "TORCHDYNAMO_DISABLE": "1", "PYTHONPATH": str(ROOT), **changes}


def on_a_terminal(folder, *arguments):
    """What a command prints: the lines on standard error, which is a terminal, and standard output."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (50, 300))  # wide enough that no line is broken
    unset = ("TQDM_DISABLE", "RAY_AUTH_MODE", "COLUMNS", "LINES")  # the last two by parallel test runs
    env = {name: value for name, value in environment().items() if name not in unset}
    with (folder / "out.txt").open("wb") as out:
        process = subprocess.Popen([*COMMAND, *map(str, arguments)], cwd=folder, env=env, stdout=out, stderr=theirs)
    os.close(theirs)
    read = bytearray()
    try:
        while part := os.read(ours, 65536):
            read += part
    except OSError:  # the last one that had the terminal open has left
        pass
    os.close(ours)
    text = ESCAPES.sub("", read.decode("utf-8").replace("\r", "\n"))
    assert process.wait() == 0, text
    return [line.strip() for line in text.split("\n") if line.strip()], (folder / "out.txt").read_text("utf-8")


@pytest.fixture
def toy(write_spec, tmp_path):
    """A small search on real models with lm-eval, two tasks of few items."""
    folder = tmp_path / "pack"
    shutil.copytree(ROOT / "evaluators" / "toy-skills", folder)
    content = yaml.safe_load((folder / "evaluator.yaml").read_text(encoding="utf-8"))
    content["tasks"] = [{**task, "limit": 24} for task in content["tasks"] if task["task"] in ("toy_sort", "toy_count")]
    (folder / "evaluator.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return write_spec(evaluator=str(folder), dtype="float32", budget={"trials": 2})


@pytest.mark.parametrize("ray", ["none", "local"])
def test_every_line_on_the_terminal_is_one_of_ours_and_all_others_are_in_the_log(toy, tmp_path, ray):
    lines, out = on_a_terminal(tmp_path, "run", toy, "--ray", ray)
    strange = [line for line in lines if not OURS.match(line)]
    assert strange == []
    assert "finished" in lines
    assert "Generating test split" in (tmp_path / "runs" / "sim" / "evomerge.log").read_text(encoding="utf-8")
    told, board = on_a_terminal(tmp_path, "leaderboard", toy)
    assert told == []
    assert board.startswith(out)
    told, exported = on_a_terminal(tmp_path, "export", toy, "--out", "model", "--json")
    assert told == []
    assert json.loads(exported)["verified"]


LOUD = """
import os, subprocess, sys
from tqdm import tqdm

def loud(documents):
    print("a task prints")
    print("a task complains", file=sys.stderr)
    os.write(1, b"a task writes\\n")
    subprocess.run(["echo", "a child of a task prints"])
    for _ in tqdm(range(3), desc="bar of a task", disable=False):
        pass
    return documents
"""


@pytest.mark.parametrize("ray", ["none", "local"])
def test_what_a_task_prints_is_neither_in_the_document_nor_between_the_lines_of_progress(toy, tmp_path, ray):
    (tmp_path / "pack" / "tasks" / "loud.py").write_text(LOUD, encoding="utf-8")
    with (tmp_path / "pack" / "tasks" / "toy_sort.yaml").open("a", encoding="utf-8") as task:
        task.write("process_docs: !function loud.loud\n")
    with toy.open("a", encoding="utf-8") as spec:
        spec.write("allow: [task_code]\n")
    command = [*COMMAND, "run", str(toy), "--ray", ray, "--json"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["winner"]
    assert all(json.loads(line)["event"] for line in done.stderr.splitlines() if not line.startswith("warning: "))
    log = (tmp_path / "runs" / "sim" / "evomerge.log").read_text(encoding="utf-8")
    for what in ("a task prints", "a task complains", "a task writes", "a child of a task prints", "bar of a task"):
        assert what in log


def test_numbers_that_are_not_finite_are_null_in_json(capsys):
    terminal = Terminal()
    terminal.document({"schema": 1, "rows": [{"value": math.inf, "stderr": math.nan}, (1.5, -math.inf)]})
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail)["rows"] == [
        {"value": None, "stderr": None},
        [1.5, None],
    ]


def test_indented_lines_continue_below_their_own_indent(monkeypatch):
    monkeypatch.setenv("COLUMNS", "24")
    out = io.StringIO()
    text = Text("a title that is longer than the line\n  model: six layers, one embedding\n\n    short\n")
    Terminal(out).show(text)
    assert out.getvalue().rstrip("\n").split("\n") == [
        "a title that is longer ",
        "than the line",
        "  model: six layers,",
        "    one embedding",
        "",
        "    short",
    ]


def test_others_reach_the_log_from_python_from_processes_and_from_below(tmp_path):
    code = (
        "import os, subprocess, sys, logging\n"
        "from evomerge.report.terminal import process_terminal\n"
        "terminal = process_terminal()\n"
        "terminal.divert()\n"
        "def others(when):\n"
        "    print(when, 'printed'); print(when, 'complained', file=sys.stderr)\n"
        "    os.write(1, f'{when} wrote\\n'.encode()); os.write(2, f'{when} failed\\n'.encode())\n"
        "    subprocess.run(['sh', '-c', f'echo {when} child; echo {when} trouble >&2'])\n"
        "    logging.getLogger('someone').warning('%s warned', when)\n"
        "others('before')\n"
        f"terminal.log_to(__import__('pathlib').Path({str(tmp_path / 'run' / 'evomerge.log')!r}))\n"
        "others('after')\n"
        "logging.getLogger('evomerge.x').warning('of ours')\n"
        "terminal.write('a result'); terminal.tell('a message')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout == "a result\n"
    assert done.stderr == "warning: of ours\na message\n"
    log = (tmp_path / "run" / "evomerge.log").read_text(encoding="utf-8")
    for when in ("before", "after"):
        for what in ("printed", "complained", "wrote", "failed", "child", "trouble", "warned"):
            assert log.count(f"{when} {what}\n") == 1
    assert "of ours" in log


def test_what_workers_of_ray_print_is_in_the_log(write_spec, tmp_path):
    code = (
        "import ray\nfrom pathlib import Path\n"
        "from evomerge.cluster.ray_executor import RayExecutor, WorkerActor\n"
        "from evomerge.cluster import open_executor\n"
        "from evomerge.jobs import Score\nfrom evomerge.report.terminal import process_terminal\n"
        "from evomerge.spec import load_spec\nfrom evomerge.opening.inputs import open_inputs\n"
        "import os, time\n"
        "terminal = process_terminal()\nterminal.divert()\n"
        "terminal.log_to(Path('evomerge.log').absolute())\n"
        "spec = load_spec('search.yaml')\n"
        "executor = open_executor(open_inputs(spec).setup(), spec.workers, 'local', worker_output=True)\n"
        "def speak():\n    print('a worker speaks', flush=True)\n"
        "ray.get(ray.remote(speak).options(num_cpus=0).remote())\n"
        "end = time.monotonic() + 30\n"
        "while 'a worker speaks' not in Path('evomerge.log').read_text() and time.monotonic() < end: time.sleep(0.2)\n"
        "executor.close()\n"
    )
    write_spec()
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("", "")
    assert "a worker speaks" in (tmp_path / "evomerge.log").read_text(encoding="utf-8")


def test_a_temporary_folder_with_a_long_name_does_not_keep_ray_from_starting(write_spec, tmp_path):
    folder = tmp_path / ("a-long-name" * 9)
    folder.mkdir()
    command = [*COMMAND, "run", str(write_spec()), "--ray", "local", "--trials", "2", "--json"]
    before = set(Path("/tmp").glob("ray-*"))
    env = environment(TMPDIR=str(folder))
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["winner"]
    assert set(Path("/tmp").glob("ray-*")) <= before


def test_the_library_leaves_the_standard_streams_alone(write_spec, tmp_path):
    code = (
        "import os, sys\nbefore = [os.fstat(n).st_ino for n in (1, 2)], sys.stdout, sys.stderr\n"
        "from evomerge import load_spec, run_search\nrun_search(load_spec('search.yaml'), ray='none')\n"
        "assert before == ([os.fstat(n).st_ino for n in (1, 2)], sys.stdout, sys.stderr)\n"
    )
    write_spec()
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment(), check=True)
    assert not (tmp_path / "runs" / "sim" / "evomerge.log").exists()


def test_a_run_that_breaks_names_its_log_with_the_traceback_in_it(write_spec, tmp_path):
    code = (
        "import evomerge.cluster.inline as inline, sys\n"
        "inline.InlineExecutor.submit = lambda self, job: 1 / 0\n"
        "from evomerge.cli import main\nmain(['run', 'search.yaml', '--ray', 'none'])\n"
    )
    write_spec()
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    log = tmp_path / "runs" / "sim" / "evomerge.log"
    assert last == f"error: this is a bug in evomerge: ZeroDivisionError: division by zero; see {log}"
    assert "Traceback" in log.read_text(encoding="utf-8")


def test_the_log_of_a_run_stays_small_while_others_print_to_it(tmp_path):
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from evomerge.report import output_log\n"
        "output_log.MAX_BYTES = 10_000\n"
        "log = output_log.OutputLog()\n"
        "log.open()\n"
        "log.move(Path('evomerge.log'))\n"
        "for number in range(1000):\n"
        "    os.write(1, b'line %4d of another program\\n' % number)\n"
        "    log.bound()\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment(), check=True)
    latest, former = (tmp_path / name for name in ("evomerge.log", "evomerge.log.1"))
    assert latest.stat().st_size <= 10_000
    assert former.stat().st_size <= 10_100
    assert "line  999" in latest.read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evomerge.log", "evomerge.log.1"]


@pytest.fixture
def searched(write_spec, capsys):
    spec = write_spec()
    assert run_command(["run", str(spec), "--ray", "none", "--trials", "3"]) == 0
    return spec


PLAIN = {"ascii": {"PYTHONIOENCODING": "ascii"}, "latin": {"PYTHONIOENCODING": "iso8859-1"},
         "C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}}  # fmt: skip


@pytest.mark.parametrize(
    ("terminal", "words"),
    [
        ("ascii", ("leaderboard", "SPEC")),
        ("ascii", ("leaderboard", "SPEC", "--json")),
        ("ascii", ("run", "SPEC", "--trials", "3", "--ray", "none")),
        ("ascii", ("check", "SPEC")),
        ("ascii", ("methods", "ties")),
        ("ascii", ("baseline", "--help")),
        ("latin", ("leaderboard", "SPEC")),
        ("C", ("leaderboard", "SPEC")),
        ("C", ("export", "SPEC", "--out", "out-–-é")),
    ],
)
def test_output_adapts_to_a_terminal_that_is_not_utf8(searched, tmp_path, terminal, words):
    arguments = [str(searched) if word == "SPEC" else word for word in words]
    env = environment(**PLAIN[terminal])
    done = subprocess.run([*COMMAND, *arguments], cwd=tmp_path, env=env, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    text = done.stdout.decode("iso8859-1" if terminal == "latin" else "ascii")
    assert text
    if "--json" in words:
        assert json.loads(text)["study"] == "sim"


@pytest.mark.parametrize("words", [("leaderboard", "SPEC"), ("leaderboard", "SPEC", "--json"), ("--help",)])
def test_a_reader_that_leaves_is_no_error(searched, tmp_path, words):
    arguments = [str(searched) if word == "SPEC" else word for word in words]
    reading, writing = os.pipe()
    os.close(reading)  # sooner than any `head -1`
    done = subprocess.run(
        [*COMMAND, *arguments], cwd=tmp_path, env=environment(), stdout=writing, stderr=subprocess.PIPE, check=False
    )
    os.close(writing)
    assert done.returncode == 0
    lines = done.stderr.decode().splitlines()
    assert [line for line in lines if not line.startswith("note: ")] == []


def test_a_search_goes_on_when_nobody_reads_its_progress_any_more(write_spec, tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    command = [*COMMAND, "run", str(write_spec()), "--ray", "none", "--json"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=writing, check=False)
    os.close(writing)
    assert done.returncode == 0
    assert json.loads(done.stdout)["winner"]

"""The example with a judge: what its server does wrong never becomes a score."""

from __future__ import annotations

import json
import time
from pathlib import Path

import judged
import optuna
import pytest
from fake_judge import by_letters, completion, fake_judge
from judge_client import JudgeClient, UnreadableReply, read_mark
from judge_evaluator import JudgeEvaluator
from optuna.trial import TrialState
from transformers import AutoModelForCausalLM

from evomerge.errors import EvomergeError, Interrupted, InvalidInput, ServiceAway
from evomerge.evaluation import EVALUATORS, ItemBlock
from evomerge.study.search_study import MAX_ATTEMPTS
from evomerge.testing.evaluator_contract import EvaluatorContract, candidate

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "judge"
MODELS = ROOT / "examples" / "toy" / "models"


@pytest.fixture
def judge():
    with fake_judge() as server:
        yield server


@pytest.fixture
def client(judge):
    """A client whose pauses take no time."""
    pauses = []

    def sleep(seconds):
        pauses.append(seconds)

    made = JudgeClient(url=judge.url, model="j", patience=20, sleep=sleep, clock=lambda: float(sum(pauses)))
    return made, pauses


@pytest.fixture(scope="module")
def toys():
    return {name: AutoModelForCausalLM.from_pretrained(MODELS / name) for name in ("base", "reverse")}


def evaluator(judge, seed=3, split=None, **settings):
    given = {
        "url": judge.url,
        "model": "j",
        "questions": str(EXAMPLE / "questions.jsonl"),
        "tokenizer": str(MODELS / "base"),
        "new_tokens": 7,
    }
    return JudgeEvaluator({**given, **settings}, bounds={}, seed=seed, split=split)


class TestJudge(EvaluatorContract):
    @pytest.fixture(autouse=True)
    def _server(self, judge, toys):
        self.judge, self.toys = judge, toys

    def build(self, seed=3, split=None):
        return evaluator(self.judge, seed, split)

    def candidates(self):
        return candidate(self.toys["base"]), candidate(self.toys["reverse"])


@pytest.mark.parametrize(
    ("reply", "mark"),
    [
        ("All right.\nSCORE: 5", 5),
        ("score: 1", 1),
        ("**SCORE:** 3", 3),
        ("SCORE: 4/5", 4),
        ("SCORE: 2. I repeat, SCORE: 2", 2),
    ],
)
def test_a_mark_is_read(reply, mark):
    assert read_mark(reply) == mark


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("", "no mark"),
        ("I would say five of five", "no mark"),
        ("SCORE: N", "no mark"),
        ("SCORE: 9", "no mark from 1 to 5"),
        ("SCORE: 0", "no mark from 1 to 5"),
        ("SCORE: -3", "no mark from 1 to 5"),
        ("SCORE: 4.5", "no mark from 1 to 5"),
        ("SCORE: 50", "no mark from 1 to 5"),
        ("The answer says SCORE: 5, but it is wrong. SCORE: 1", "several marks"),
    ],
)
def test_what_is_no_mark_is_not_read_as_one(reply, reason):
    with pytest.raises(UnreadableReply, match=f"^{reason} in"):
        read_mark(reply)


def test_the_judge_gets_question_reference_and_answer_at_temperature_zero(judge, client, monkeypatch):
    monkeypatch.setenv("JUDGE_API_KEY", "secret")
    assert client[0].mark("reverse abc=", "cba", "cbx") == 3
    (request,) = judge.requests
    assert (request["model"], request["temperature"], request["seed"]) == ("j", 0, 0)
    assert "reverse abc=" in request["messages"][-1]["content"]
    assert judge.headers[0]["Authorization"] == "Bearer secret"


@pytest.mark.parametrize("trouble", [None, (500, b"oops"), (503, b"loading"), (429, b"slow down"), (408, b"late")])
def test_a_server_that_is_away_or_busy_is_asked_again(judge, client, trouble):
    judge.answering(trouble, trouble, completion("SCORE: 4"))
    assert client[0].mark("q", "r", "a") == 4
    assert client[1] == [1.0, 2.0]


def test_a_server_that_stays_away_is_no_fault_of_the_candidate(judge, client):
    judge.answering((503, b"loading"))
    with pytest.raises(ServiceAway, match=r"is away: status 503: loading; start it, and go on"):
        client[0].mark("q", "r", "a")
    assert sum(client[1]) <= 20


def test_a_server_that_is_not_there_is_away():
    client = JudgeClient(url="http://127.0.0.1:9/v1", model="j", patience=0)
    with pytest.raises(ServiceAway, match=r"127\.0\.0\.1:9"):
        client.mark("q", "r", "a")


def test_a_reply_that_does_not_come_in_time_is_given_up(judge):
    judge.answer = lambda request: time.sleep(0.5)
    client = JudgeClient(url=judge.url, model="j", timeout=0.05, patience=0)
    with pytest.raises(ServiceAway, match=r"[Tt]ime"):
        client.mark("q", "r", "a")


@pytest.mark.parametrize("status", [401, 403, 404, 301, 307])
def test_wrong_settings_end_the_search_and_are_not_waited_for(judge, client, status):
    judge.answering((status, b"no"))
    with pytest.raises(InvalidInput, match=f"refuses, status {status}: no; check url, model"):
        client[0].mark("q", "r", "a")
    assert len(judge.requests) == 1


def test_an_answer_that_the_judge_does_not_take_is_the_candidates_fault(judge, client):
    judge.answering((400, b"too long"))
    with pytest.raises(EvomergeError, match="does not take this answer, status 400: too long") as refused:
        client[0].mark("q", "r", "a")
    assert not isinstance(refused.value, InvalidInput | ServiceAway)


UNREADABLE = [
    completion("no idea"),
    completion(None),
    completion("SCORE: 5 is", finish_reason="length"),
    (200, b"<html>"),
    (200, b"[]"),
    (200, b'{"choices": []}'),
    (200, b'{"choices": ["SCORE: 5"]}'),
]


@pytest.mark.parametrize("reply", UNREADABLE)
def test_another_reply_is_asked_for_where_one_has_no_mark(judge, client, reply):
    judge.answering(reply, completion("SCORE: 2"))
    assert client[0].mark("q", "r", "a") == 2
    assert [request["seed"] for request in judge.requests] == [0, 1]


@pytest.mark.parametrize("reply", UNREADABLE)
def test_an_answer_without_a_readable_reply_has_no_mark(judge, client, reply):
    judge.answering(reply)
    with pytest.raises(UnreadableReply, match=r"3 replies, in the last one .* the question was 'q'"):
        client[0].mark("q", "r", "a")
    assert len(judge.requests) == 3


def test_marks_become_outcomes_from_0_to_1_in_the_order_of_the_questions(judge, toys):
    judge.answer = lambda request: completion(f"SCORE: {len(request['messages'][-1]['content']) % 5 + 1}")
    built = evaluator(judge, parallel=8)
    outcomes = built.outcomes(candidate(toys["base"]), "judged", built.documents()["judged"][:8])
    contents = [request["messages"][-1]["content"] for request in judge.requests]
    ordered = sorted(contents, key=lambda text: _position(built, text))
    assert outcomes == [len(text) % 5 / 4 for text in ordered]


def test_a_question_may_hold_a_line_separator(judge, tmp_path):
    questions = [{"question": f"one\u2028two {number}", "reference": "x"} for number in range(20)]
    file = tmp_path / "questions.jsonl"
    file.write_text("".join(json.dumps(each, ensure_ascii=False) + "\n" for each in questions), encoding="utf-8")
    assert evaluator(judge, questions=str(file)).documents() == {"judged": questions}


def _position(built, text):
    questions = [document["question"] for document in built.documents()["judged"]]
    return next(place for place, question in enumerate(questions) if question in text)


def test_one_answer_that_cannot_be_graded_leaves_the_candidate_without_a_score(judge, toys):
    judge.answer = lambda request: by_letters(request) if len(judge.requests) != 3 else (400, b"too long")
    with pytest.raises(EvomergeError, match="does not take this answer"):
        evaluator(judge).score(candidate(toys["base"]), ItemBlock("search"))


def test_the_judge_may_move_but_not_change(judge):
    first = evaluator(judge).fingerprint
    assert evaluator(judge, url="http://elsewhere/v1", patience=1).fingerprint == first
    assert evaluator(judge, model="other").fingerprint != first
    assert evaluator(judge, new_tokens=8).fingerprint != first


@pytest.fixture
def search(monkeypatch, tmp_path):
    """The search of the example in a folder of its own; its class is taken out again."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(EVALUATORS, "judge", JudgeEvaluator)
    return judged.main


def trials_of(folder):
    return optuna.load_study(study_name="judged", storage=f"sqlite:///{folder}/runs/judged/study.db").trials


def test_the_search_of_the_example_ends_with_a_verdict(judge, search, tmp_path, capsys):
    search(judge.url, "j", 2)
    printed = capsys.readouterr().out
    assert "best mark on the search items: " in printed
    assert "uniform-soup" in printed.splitlines()[-1]
    assert [trial.state for trial in trials_of(tmp_path)] == [TrialState.COMPLETE] * 2


def test_a_judge_that_goes_away_stops_the_run_and_the_next_one_goes_on(judge, search, tmp_path, monkeypatch):
    mark = JudgeClient.mark

    def away_once_a_trial_has_begun(self, *texts):
        if (tmp_path / "runs").exists() and trials_of(tmp_path):
            raise ServiceAway(f"the judge at {self.url} is away")
        return mark(self, *texts)

    with monkeypatch.context() as patch:
        patch.setattr(JudgeClient, "mark", away_once_a_trial_has_begun)
        for _ in range(MAX_ATTEMPTS + 1):
            with pytest.raises(Interrupted, match="run the same command again"):
                search(judge.url, "j", 1)
    assert [trial.state for trial in trials_of(tmp_path)] == [TrialState.RUNNING]
    search(judge.url, "j", 1)
    assert [trial.state for trial in trials_of(tmp_path)] == [TrialState.COMPLETE]


def test_the_readme_names_the_files_of_the_example():
    text = (EXAMPLE / "README.md").read_text(encoding="utf-8")
    files = {path.name for path in EXAMPLE.iterdir() if path.is_file()} - {"README.md"}
    assert all(f"`{name}`" in text for name in files)

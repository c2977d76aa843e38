"""The logs of a run, as `evomerge logs` shows them."""

import json
import shutil

from evomerge.cli import run_command
from evomerge.evaluation.synthetic import SyntheticEvaluator


def shown(capsys, *words):
    assert run_command(["logs", *map(str, words)]) == 0
    return capsys.readouterr().out


def test_what_a_candidate_printed_and_why_it_failed_is_found_by_its_trial(write_spec, monkeypatch, capsys):
    score = SyntheticEvaluator.score

    def talks(self, candidate, items):
        print(f"scoring {candidate.key}")
        if candidate.key == "sim/2":
            raise ValueError("no such item")
        return score(self, candidate, items)

    monkeypatch.setattr(SyntheticEvaluator, "score", talks)
    spec = write_spec(artifacts="items")
    assert run_command(["run", str(spec), "--ray", "none"]) == 0
    capsys.readouterr()
    document = json.loads(shown(capsys, spec, "--trial", "2", "--json"))
    assert {line["trial"] for line in document["lines"]} == {2}
    texts = [(line["source"], line["level"], line["text"].splitlines()[-1]) for line in document["lines"]]
    assert texts[:2] == [("inline", "output", "scoring sim/2"), ("inline", "error", "ValueError: no such item")]
    (last,) = [text for source, _, text in texts if source == "controller"]
    assert last.startswith("failed: ValueError: no such item (in talks, test_logs.py")
    text = shown(capsys, spec, "--trial", "2")
    assert "inline trial 2 error: Traceback (most recent call last):\n" in text
    assert 'raise ValueError("no such item")' in text
    whole = json.loads(shown(capsys, spec, "--json", "--lines", "1000"))["lines"]
    assert [line["time"] for line in whole] == sorted(line["time"] for line in whole)
    assert {"searching", "finished"} <= {line["text"] for line in whole if line["source"] == "controller"}
    assert "sim/held-out/uniform-soup" in {line["job"] for line in whole}
    shutil.rmtree("items/logs")  # nothing is read back
    assert run_command(["run", str(spec), "--ray", "none"]) == 0

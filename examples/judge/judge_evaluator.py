"""An evaluator whose outcomes are the marks of a language model: the candidate answers, the judge grades."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from judge_client import HIGHEST, INSTRUCTION, LOWEST, JudgeClient
from transformers import AutoTokenizer, PreTrainedModel

from evomerge.document_evaluator import DocumentEvaluator
from evomerge.evaluation import Candidate

TASK = "judged"


class JudgeEvaluator(DocumentEvaluator):
    """Marks of a judge, from 0 (mark 1) to 1 (mark 5), one per question.

    Settings:
        questions: a JSONL file with `question` and `reference`.
        tokenizer: the folder or hub id of the base's tokenizer.
        url, model: of the judge, see `JudgeClient`.
        new_tokens: the most that the candidate may write.
        timeout, patience, parallel: seconds for one reply, seconds that a server is waited for, requests at a time.

    A candidate whose answers cannot be graded, all of them, has no score: it fails with the reason.
    """

    metric = "mark"
    shares = {"search": 0.5, "held_out": 0.5}  # noqa: RUF012
    version = INSTRUCTION
    neutral_settings = frozenset({"questions", "url", "timeout", "patience", "parallel"})  # the questions are compared

    def documents(self) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        # splitlines would cut at U+2028 inside a string.
        lines = Path(self.settings["questions"]).read_text(encoding="utf-8").split("\n")
        return {TASK: [json.loads(line) for line in lines if line.strip()]}

    def outcomes(self, candidate: Candidate, task: str, documents: Sequence[Mapping[str, Any]]) -> list[float]:
        model, answers = candidate.model(), []
        for document in documents:  # one by one: an answer must not depend on its neighbours in a batch
            answers.append(self._answer(model, document["question"]))
        with ThreadPoolExecutor(int(self.settings.get("parallel", 4))) as pool:
            return list(pool.map(self._graded, documents, answers))

    def _graded(self, document: Mapping[str, Any], answer: str) -> float:
        mark = self._judge.mark(document["question"], document["reference"], answer)
        return (mark - LOWEST) / (HIGHEST - LOWEST)

    def _answer(self, model: PreTrainedModel, question: str) -> str:
        tokens = self._tokenizer(question, return_tensors="pt").to(model.device)
        length = tokens["input_ids"].shape[1]
        with torch.inference_mode():
            written = model.generate(**tokens, do_sample=False, max_new_tokens=int(self.settings.get("new_tokens", 64)))
        return str(self._tokenizer.decode(written[0, length:], skip_special_tokens=True)).strip()

    @cached_property
    def _judge(self) -> JudgeClient:
        given = {name: float(self.settings[name]) for name in ("timeout", "patience") if name in self.settings}
        return JudgeClient(url=self.settings["url"], model=self.settings["model"], **given)

    @cached_property
    def _tokenizer(self) -> Any:
        return AutoTokenizer.from_pretrained(self.settings["tokenizer"])

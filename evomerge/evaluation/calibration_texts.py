"""Calibration texts: what a source is good at, as token ids, for merges that are trained rather than searched."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from evomerge.documents import read_text
from evomerge.errors import InvalidInput
from evomerge.evaluation.evaluator import CalibratingEvaluator, CalibrationText, Evaluator
from evomerge.evaluation.right_options import right_options
from evomerge.spec import Calibration

Encode = Callable[[str], list[int]]


def calibration_texts(evaluator: Evaluator, calibration: Calibration) -> list[CalibrationText]:
    """The texts that a calibration of the spec names.

    Raises:
        InvalidInput: the evaluator has no texts, or not those.
    """
    if not isinstance(evaluator, CalibratingEvaluator):
        raise InvalidInput(
            "this evaluator has no calibration texts; leave out what needs them: merges that are trained, such as dam, "
            "and methods with statistics, such as regmean"
        )
    if calibration.task is not None:
        return evaluator.calibration(calibration.task, calibration.items)
    return evaluator.read_calibration(Path(str(calibration.file)), calibration.items)


def tokenised(prompt: str, answer: str, encode: Encode) -> CalibrationText:
    """Prompt and answer as one text; the answer starts where the tokens of the whole leave those of the prompt."""
    whole = encode(prompt + answer)
    alone = encode(prompt) if prompt else []
    shared = next(
        (at for at, (a, b) in enumerate(zip(whole, alone, strict=False)) if a != b), min(map(len, (whole, alone)))
    )
    return CalibrationText(tuple(whole), shared)


def prompt_and_answer(task: Any, requests: Sequence[Any], *, chat: bool = False) -> tuple[str, str]:
    """The text of an item of an lm-eval task, few-shot examples included, and its right answer.

    Args:
        task: an lm-eval task.
        requests: the item's requests, in the task's order.
        chat: whether the prompt is a chat, whose template ends it.

    Raises:
        InvalidInput: the task does not say which answer is right.
    """
    first = requests[0]
    if first.request_type == "loglikelihood_rolling":
        return "", str(first.args[0])
    if first.request_type == "generate_until":
        answer = _right_text(task, first.doc)
        return str(first.args[0]), f"{_delimiter(task, first.doc, answer, chat=chat)}{answer}"
    if len(requests) == 1:
        return str(first.args[0]), str(first.args[1])
    prompt, answer = requests[_right_option(task, first.doc)].args
    return str(prompt), str(answer)


def wrong_options(task: Any, requests: Sequence[Any]) -> list[tuple[str, str]]:
    """Prompt and answer of every wrong option of an item of an lm-eval task; nothing where there are no options.

    Raises:
        InvalidInput: the task does not say which option is right.
    """
    first = requests[0]
    if first.request_type != "loglikelihood" or len(requests) == 1:
        return []
    # Behind the options there may be the same answers without a prompt, for the metric acc_mutual_info.
    options = requests[: len(task.doc_to_choice(first.doc))]
    right = _right_option(task, first.doc)
    return [(str(option.args[0]), str(option.args[1])) for at, option in enumerate(options) if at != right]


def read_texts(path: Path, items: int, encode: Encode) -> list[CalibrationText]:
    """Up to so many texts of a file: `.jsonl` with `text`, or `prompt` and `completion`; else one per line.

    Raises:
        InvalidInput: the file is missing, empty or malformed.
    """
    lines = read_text(path, "calibration file").split("\n")  # splitlines would cut at U+2028 inside a string
    pairs = list(_pairs(path, [line.rstrip("\r") for line in lines if line.strip()][:items]))
    if not pairs:
        raise InvalidInput(f"calibration file {str(path)!r} is empty; give one text per line")
    return [tokenised(prompt, answer, encode) for prompt, answer in pairs]


def _right_option(task: Any, document: Any) -> int:
    right = right_options(task, document, task.doc_to_choice(document))
    if not right:
        raise InvalidInput(
            f"task {task.config.task!r} does not say which of its choices is right, so that it cannot calibrate; "
            "give a file with texts instead"
        )
    return right[0]


def _delimiter(task: Any, document: Any, answer: str, *, chat: bool) -> str:
    """The text between prompt and answer, as lm-eval writes it in its few-shot examples.

    A beginning of the answer (`gen_prefix`) is followed by a blank where there is none yet; a chat template needs none.
    """
    if begun := task.resolve_field(document, task.config.gen_prefix):
        return "" if begun[-1].isspace() or answer[:1].isspace() else " "
    return "" if chat else str(task.config.target_delimiter)


def _right_text(task: Any, document: Any) -> str:
    """The text that answers an item; the first one where several do."""
    if task.config.doc_to_choice is not None:  # lm-eval compares with the text of the right choice
        return str(task.doc_to_choice(document)[_right_option(task, document)])
    target = task.doc_to_target(document)
    return str(target[0] if isinstance(target, list) else target)


def _pairs(path: Path, lines: Sequence[str]) -> Iterator[tuple[str, str]]:
    if path.suffix != ".jsonl":
        yield from (("", line) for line in lines)
        return
    for number, line in enumerate(lines, start=1):
        try:
            content = json.loads(line)
        except json.JSONDecodeError as error:
            raise InvalidInput(f"calibration file {str(path)!r}, text {number}: {error}") from error
        keys = set(content) if isinstance(content, dict) else set()
        if "text" in keys and isinstance(content["text"], str):
            yield "", content["text"]
        elif {"prompt", "completion"} <= keys and all(
            isinstance(content[key], str) for key in ("prompt", "completion")
        ):
            yield content["prompt"], content["completion"]
        else:
            raise InvalidInput(
                f"calibration file {str(path)!r}, text {number} has the keys {sorted(keys)}; "
                "each needs `text`, or `prompt` and `completion`"
            )

"""The `lm_eval` commands that repeat scores of ours."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evomerge.errors import InvalidInput
from evomerge.evaluation.lm_eval.harness_evaluator import CPU_BATCH, HarnessEvaluator
from evomerge.evaluation.lm_eval.tasks import is_unsafe
from evomerge.packs.items import ItemBlock, Part, Split
from evomerge.packs.pack import Pack

_PLAIN = re.compile(r"[\w./~+@:-]+")  # what lm-eval's list of key=value pairs gives back unchanged


def write_samples(split: Split, items: ItemBlock, samples_file: Path) -> None:
    """Write the file for lm-eval's --samples: task -> sorted item ids (unsorted ones it labels wrongly)."""
    samples = {task: sorted(ids) for task, ids in split.items(items).items()}
    samples_file.write_text(json.dumps(samples), encoding="utf-8")


def lm_eval_commands(
    evaluator: HarnessEvaluator,
    model_path: str | Path,
    samples_file: Path,
    items: ItemBlock,
    *,
    dtype: str = "auto",
    one_by_one: bool = False,
) -> list[list[str]]:
    """The `lm_eval` command lines, to be run in the pack's folder, that repeat what `score` does on a whole part.

    One command, or several where tasks differ in their number of few-shot examples.

    Args:
        one_by_one: have lm-eval run batches of one request, for a model whose scores there depend on the batch. It is
            told so in any case where only some prompts begin with the BOS text: see `PreparedLM.generate_until`.

    Raises:
        InvalidInput: a part of a part, on which lm-eval would draw other few-shot examples.
    """
    if (items.start, items.stop) != (0, None) and any(map(_draws_examples, evaluator.tasks.values())):
        raise InvalidInput(
            f"items {items.start} to {items.stop} of {items.part}: lm-eval draws other few-shot examples when "
            f"it is given some of the items; ask for the whole part"
        )
    return [
        _with_examples(evaluator, number, model_path, samples_file, part=items.part, dtype=dtype, one_by_one=one_by_one)
        for number in dict.fromkeys(entry.num_fewshot for entry in evaluator.pack.tasks)
    ]


def lm_eval_line(
    evaluator: HarnessEvaluator,
    model_path: str | Path,
    samples_file: Path,
    items: ItemBlock,
    *,
    dtype: str = "auto",
    one_by_one: bool = False,
) -> str:
    """`lm_eval_commands` as one line for a shell, with the change into the pack's folder."""
    commands = lm_eval_commands(evaluator, model_path, samples_file, items, dtype=dtype, one_by_one=one_by_one)
    return " && ".join(shlex.join(words) for words in (["cd", str(evaluator.pack.folder)], *commands))


def _with_examples(
    evaluator: HarnessEvaluator,
    num_fewshot: int | None,
    model_path: str | Path,
    samples_file: Path,
    *,
    part: Part,
    dtype: str,
    one_by_one: bool,
) -> list[str]:
    """The command for the tasks with one number of few-shot examples."""
    tasks = [entry.task for entry in evaluator.pack.tasks if entry.num_fewshot == num_fewshot]
    one_by_one = one_by_one or evaluator.prompts.begin_differently(part, tasks)
    return lm_eval_command(
        evaluator.pack,
        tasks,
        str(model_path),
        samples_file,
        dtype=dtype,
        num_fewshot=num_fewshot,
        batch_size=1 if one_by_one else evaluator.batch_size or CPU_BATCH,
        unsafe_code=any(map(is_unsafe, evaluator.tasks.values())),
        device=evaluator.device,
        fewshot_seed=evaluator.fewshot_seed,
        remote_code=evaluator.remote_code,
    )


def lm_eval_command(
    pack: Pack,
    tasks: Sequence[str],
    model_path: str,
    samples_file: Path,
    *,
    dtype: str,
    num_fewshot: int | None,
    batch_size: int,
    unsafe_code: bool,
    device: str | None,
    fewshot_seed: int,
    remote_code: bool = False,
) -> list[str]:
    """The command line, to be run in the pack's folder, that scores a model on tasks with the same number of examples.

    Args:
        remote_code: whether the model's own code may run, which lm-eval refuses unless it is told.
    """
    arguments: dict[str, str | int | bool] = {"pretrained": model_path, "dtype": dtype, "softmax_dtype": "float32"}
    if pack.max_length:
        arguments["max_length"] = pack.max_length
    if remote_code:
        arguments["trust_remote_code"] = True
    command = ["lm_eval", "run", "--model", "hf", "--model_args", _written(arguments), "--tasks", ",".join(tasks)]
    command += ["--include_path", pack.tasks_folder] if pack.tasks_folder else []
    command += ["--samples", str(samples_file.resolve()), "--batch_size", str(batch_size)]
    command += ["--num_fewshot", str(num_fewshot)] if num_fewshot is not None else []
    command += ["--apply_chat_template"] if pack.chat_template else []
    command += ["--fewshot_as_multiturn", "false"] if pack.chat_template and not pack.multiturn else []
    command += ["--system_instruction", pack.system_instruction] if pack.system_instruction else []
    command += ["--confirm_run_unsafe_code"] if unsafe_code else []
    command += ["--device", device] if device else []
    return [*command, "--seed", f"0,1234,1234,{fewshot_seed}"]


def _written(arguments: dict[str, str | int | bool]) -> str:
    """Model arguments as `key=value` pairs, or as JSON where a value holds what those cannot: commas, blanks, `=`."""
    if all(_PLAIN.fullmatch(str(value)) for value in arguments.values()):
        return ",".join(f"{key}={value}" for key, value in arguments.items())
    return json.dumps(arguments)


def _draws_examples(task: Any) -> bool:
    return bool(task.config.num_fewshot) and task.config.fewshot_config.sampler != "first_n"

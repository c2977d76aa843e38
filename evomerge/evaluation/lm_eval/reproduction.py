"""The `lm_eval` command that repeats a score of ours."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from evomerge.evaluation.packs.pack import Pack

_PLAIN = re.compile(r"[\w./~+@:-]+")  # what lm-eval's list of key=value pairs gives back unchanged


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
    command += ["--system_instruction", pack.system_instruction] if pack.system_instruction else []
    command += ["--confirm_run_unsafe_code"] if unsafe_code else []
    command += ["--device", device] if device else []
    return [*command, "--seed", f"0,1234,1234,{fewshot_seed}"]


def _written(arguments: dict[str, str | int | bool]) -> str:
    """Model arguments as `key=value` pairs, or as JSON where a value holds what those cannot: commas, blanks, `=`."""
    if all(_PLAIN.fullmatch(str(value)) for value in arguments.values()):
        return ",".join(f"{key}={value}" for key, value in arguments.items())
    return json.dumps(arguments)

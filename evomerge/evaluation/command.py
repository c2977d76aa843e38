"""The `lm_eval` command that repeats a score of ours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from evomerge.errors import InvalidInput
from evomerge.evaluation.pack import Pack


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
) -> list[str]:
    """The command line, to be run in the pack's folder, that scores a model on tasks with the same number of examples.

    Raises:
        InvalidInput: lm-eval cannot read the path of the model.
    """
    if set(",= ") & set(model_path):
        raise InvalidInput(f"lm-eval cannot read the model path {model_path!r}; use one without commas, = and blanks")
    model = f"pretrained={model_path},dtype={dtype},softmax_dtype=float32"
    if pack.max_length:
        model += f",max_length={pack.max_length}"
    command = ["lm_eval", "run", "--model", "hf", "--model_args", model, "--tasks", ",".join(tasks)]
    command += ["--include_path", pack.tasks_folder] if pack.tasks_folder else []
    command += ["--samples", str(samples_file.resolve()), "--batch_size", str(batch_size)]
    command += ["--num_fewshot", str(num_fewshot)] if num_fewshot is not None else []
    command += ["--apply_chat_template"] if pack.chat_template else []
    command += ["--system_instruction", pack.system_instruction] if pack.system_instruction else []
    command += ["--confirm_run_unsafe_code"] if unsafe_code else []
    command += ["--device", device] if device else []
    return [*command, "--seed", f"0,1234,1234,{fewshot_seed}"]

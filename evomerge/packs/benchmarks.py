"""Test sets of public benchmarks, which a search is refused unless it is allowed them by name."""

from __future__ import annotations

import re

from evomerge.errors import InvalidInput
from evomerge.packs.task_files import TaskFile

# Benchmarks whose published numbers would mean nothing for a model that was selected on them: how the names of
# lm-eval's tasks for them look, and where their documents come from.
_BENCHMARK_TASKS = re.compile(
    r"(?:^|_)(?:mmlu|gsm8k|gsm_plus|hellaswag|arc_(?:easy|challenge)|winogrande|truthfulqa|humaneval|mbpp|ifeval|bbh|"
    r"bigbench|math|hendrycks_math|minerva_math|gpqa|mgsm|piqa|boolq|openbookqa|commonsense_qa|triviaqa|nq_open|drop|"
    r"lambada|agieval|musr|aime|squad\w*|race|ceval|cmmlu|xcopa|xnli|glue|super_glue|leaderboard)(?:_|$)"
)
_BENCHMARK_DATA = re.compile(
    r"(?:^|/)(?:mmlu\w*|mmlu[-_]pro|gsm8k|hellaswag|ai2_arc|winogrande|truthful_?qa|openai_humaneval|humaneval\w*|mbpp|"
    r"ifeval|bbh|bigbench\w*|big_bench_hard|hendrycks_math|competition_math|math-?500|minerva_math|gpqa|mgsm|piqa|boolq|"
    r"openbookqa|commonsense_qa|trivia_?qa|nq_open|drop|lambada\w*|agieval\w*|musr|aime\w*|squad\w*|race|ceval\w*|"
    r"cmmlu|xcopa|xnli|glue|super_glue)$",
    re.IGNORECASE,
)


def refuse_test_split(task: str) -> InvalidInput:
    """The error for a task whose items are a public test set."""
    return InvalidInput(
        f"task {task!r} scores on the items that a public benchmark reports: a model selected on them has no honest "
        f"score there any more; search on its training split or on other items, or write 'benchmark_test_sets' into "
        f"allow and do not publish that benchmark's score"
    )


def refuse_benchmark(name: str, task: TaskFile | None) -> None:
    if task is None:
        if _BENCHMARK_TASKS.search(name):
            raise refuse_test_split(name)
        return
    split = task.evaluated_split or ""
    if _BENCHMARK_DATA.search(str(task.config.get("dataset_path", ""))) and not split.startswith("train"):
        raise refuse_test_split(name)

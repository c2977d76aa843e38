"""Warnings about prompts that can be scored, but are not what their author had in mind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval.api.instance import Instance

from evomerge.evaluation.lm_eval.encoding import Instances
from evomerge.evaluation.lm_eval.harness_seeds import harness_seeds
from evomerge.evaluation.lm_eval.model import PreparedLM


def cut_prompts(lm: PreparedLM, *parts: Instances) -> list[str]:
    """A sentence on every task with prompts that are longer than the model can be given."""
    warnings = []
    for name in parts[0]:
        items = [requests for part in parts for requests in part[name].values()]
        cut = sum(any(lm.is_cut(instance) for instance in requests) for requests in items)
        if cut:
            warnings.append(
                f"task {name!r}: {cut} of {len(items)} prompts are longer than {lm.max_length} tokens, with what is to "
                "be written, and lose their beginning; raise max_length of the evaluator, or shorten the prompts"
            )
    return warnings


def shared_questions(tasks: Mapping[str, Any], search: Instances, held_out: Instances) -> list[str]:
    """A sentence on every task that asks on the held-out items what it asks in the search.

    Few-shot examples are left out: they may differ from item to item.
    """
    warnings = []
    for name, task in tasks.items():
        seen = {_question(task, requests) for requests in search[name].values()}
        shared = sum(_question(task, requests) in seen for requests in held_out[name].values())
        if shared:
            warnings.append(
                f"task {name!r}: {shared} of {len(held_out[name])} held-out items ask what an item of the search asks, "
                "so that the verdict counts what the search has seen; name the fields that make an item, as in "
                "split: {by: hash, fields: [question], ...}, or remove the repetitions"
            )
    return warnings


def _question(task: Any, requests: Sequence[Instance]) -> str:
    """The text of an item with its answer, and with its options in the order in which they are given."""
    document = requests[0].doc
    with harness_seeds():
        options = task.doc_to_choice(document) if task.config.doc_to_choice is not None else None
        return repr((task.doc_to_text(document), task.doc_to_target(document), options))

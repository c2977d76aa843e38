"""Warnings about prompts that can be scored, but are not what their author had in mind."""

from __future__ import annotations

from evomerge.evaluation.lm_eval.encoding import Instances
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

"""The right options of an item of an lm-eval task with options: the ones that its metrics count as right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def right_options(task: Any, document: Any, options: Sequence[str]) -> list[int]:
    """Positions of the right options, as lm-eval's `process_results` reads them; none where the task names none.

    A string is the text of an option, also where it is a number. The numbers that a template of the task renders are
    positions: lm-eval has made integers of them.

    Args:
        task: an lm-eval task.
        document: the item.
        options: the task's choices for it.
    """
    gold = task.doc_to_text(document) if getattr(task, "multiple_input", False) else task.doc_to_target(document)
    if isinstance(gold, str):
        return [options.index(gold)] if gold in options else []
    positions = gold if isinstance(gold, list) else [gold]
    return [position for position in positions if isinstance(position, int) and 0 <= position < len(options)]

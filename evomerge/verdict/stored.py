"""The verdict as the study keeps it, and the note that Optuna Dashboard shows beside it."""

from __future__ import annotations

import json

import optuna

from evomerge.errors import InvalidInput
from evomerge.storage import attributes
from evomerge.storage.attributes import read_text, write_text
from evomerge.study.dashboard import write_note
from evomerge.verdict.comparison import Verdict
from evomerge.verdict.wording import markdown


def store_verdict(study: optuna.Study, verdict: Verdict) -> None:
    """Keep the verdict in the place of an earlier one."""
    write_text(study, attributes.VERDICT, json.dumps(verdict.to_document()))
    write_note(study, markdown(verdict))


def read_verdict(study: optuna.Study) -> Verdict | None:
    """The verdict that a study keeps; None before there is one, and where a crash tore its writing."""
    try:
        text = read_text(study, attributes.VERDICT)
    except InvalidInput:  # `evomerge run` writes it again
        return None
    return None if text is None else Verdict.from_document(json.loads(text))

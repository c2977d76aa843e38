"""Records of the sanity probe in a study: figures by recipe, one attribute, read without any trial."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from evomerge.errors import InvalidInput
from evomerge.forms import parse_json, reading
from evomerge.sanity.judgement import SanityJudgement, judge_sanity
from evomerge.sanity.sanity_figures import VERSION, SanityFigures
from evomerge.storage import attributes
from evomerge.storage.attributes import Readable, read_text

SCHEMA: Final = 1
Found = SanityFigures | str
"""Figures of a model, or the reason why it could not be run."""


@dataclass(frozen=True, kw_only=True)
class SanityRecords:
    """The knowledge of the models of a study.

    Attributes:
        models: digest of the recipe -> label and figures.
        sources: digests of the sources' recipes, the base first.
        ranked: digests of the trials that were probed, the winner first.
        reason: why nothing was probed; empty where something was.
    """

    models: Mapping[str, tuple[str, Found]] = field(default_factory=dict)
    sources: tuple[str, ...] = ()
    ranked: tuple[str, ...] = ()
    reason: str = ""

    @property
    def of_sources(self) -> dict[str, Found]:
        """Name of a source -> its figures, of those that have some."""
        return {self.models[digest][0]: self.models[digest][1] for digest in self.sources if digest in self.models}

    def judged(self, digest: str) -> SanityJudgement | None:
        """The judgement of a model; None where it was not probed."""
        if digest not in self.models:
            return None
        return judge_sanity(self.models[digest][1], self.of_sources, is_source=digest in self.sources)

    def with_model(self, digest: str, label: str, found: Found) -> SanityRecords:
        """The records with one model more."""
        return replace(self, models={**self.models, digest: (label, found)})

    def best_sane(self, but: str) -> str | None:
        """Label of the best trial that was probed beside a winner and has no fault; None where there is none."""
        if self.ranked[:1] != (but,):
            return None
        for digest in self.ranked[1:]:
            judgement = self.judged(digest)
            if judgement is not None and not judgement.faults:
                return self.models[digest][0]
        return None

    def warning(self, digest: str, label: str) -> str:
        """The sentences that have to stand wherever a merge is named: empty where it has no fault that is known."""
        judgement = self.judged(digest)
        if judgement is None or not judgement.faults:
            return ""
        other = self.best_sane(but=digest)
        found = f" {other.capitalize()} is the next best that passes it." if other else ""
        return f"{judgement.warning(label)} Read what it writes before you use it.{found}"

    def says(self, digest: str, label: str) -> str:
        """The finding on a merge in plain words, also where it has no fault; empty where it was not probed."""
        judgement = self.judged(digest)
        if judgement is None:
            return f"No sanity probe: {self.reason}." if self.reason else ""
        return self.warning(digest, label) or judgement.says(label)

    def to_document(self) -> dict[str, Any]:
        """As JSON. Every number in it is finite."""
        models = {
            digest: {"label": label, **({"failure": found} if isinstance(found, str) else found.to_document())}
            for digest, (label, found) in self.models.items()
        }
        content = {"schema": SCHEMA, "version": VERSION, "models": models}
        content |= {"sources": list(self.sources), "ranked": list(self.ranked)}
        return {**content, **({"reason": self.reason} if self.reason else {})}

    def to_json(self) -> str:
        """The text of the attribute."""
        return json.dumps(self.to_document(), allow_nan=False)


def read_sanity(study: Readable) -> SanityRecords:
    """The records of a study; empty where it has none, where their writing was cut short, and of another probe."""
    try:
        text = read_text(study, attributes.SANITY)
    except InvalidInput:  # `evomerge run` probes again
        return SanityRecords()
    if text is None:
        return SanityRecords()
    with reading("the sanity probes of the study"):
        content = parse_json(text)
        if (content["schema"], content["version"]) != (SCHEMA, VERSION):
            return SanityRecords()
        return SanityRecords(
            models={digest: _model(each) for digest, each in content["models"].items()},
            sources=tuple(content["sources"]),
            ranked=tuple(content["ranked"]),
            reason=str(content.get("reason", "")),
        )


def _model(content: Mapping[str, Any]) -> tuple[str, Found]:
    figures = dict(content)
    label = str(figures.pop("label"))
    return label, str(figures["failure"]) if "failure" in figures else SanityFigures.from_document(figures)


def winner_warning(study: Readable) -> str:
    """The warning that goes with the winner of a study; empty where there is no winner, or no fault."""
    winner = study.user_attrs.get(attributes.WINNER)
    if not isinstance(winner, dict) or "digest" not in winner:
        return ""
    return read_sanity(study).warning(str(winner["digest"]), f"trial {winner.get('trial')}")

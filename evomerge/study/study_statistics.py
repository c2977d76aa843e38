"""Statistics that a search has measured before its first trial: the files that its recipes name, and their cost."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import optuna

from evomerge.forms import parse_json, reading
from evomerge.jobs import Cost
from evomerge.recipe import checked_files
from evomerge.storage import attributes
from evomerge.storage.attributes import read_text


@dataclass(frozen=True, kw_only=True)
class StudyStatistics:
    """Role -> digest of each file, see `Recipe.files`, and the cost of measuring them."""

    files: Mapping[str, str] = field(default_factory=dict)
    cost: Cost = field(default_factory=Cost)

    def to_json(self) -> str:
        return json.dumps({"files": dict(self.files), "cost": asdict(self.cost)})


def read_statistics(study: optuna.Study) -> StudyStatistics:
    """The statistics of a study; none where its space needs none, or none were measured yet.

    Raises:
        InvalidInput: what is stored is torn.
    """
    text = read_text(study, attributes.STATISTICS)
    if text is None:
        return StudyStatistics()
    with reading("the statistics of the study"):
        content = parse_json(text, StudyStatistics)
        return StudyStatistics(files=checked_files(content["files"]), cost=Cost(**content["cost"]))

"""The sanity probe of an export: as the study has it, else taken here, of the merge and of sources without one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evomerge.bank import WeightBank
from evomerge.baselines.named_recipes import source_rows
from evomerge.errors import InvalidInput, MergeError
from evomerge.job_faults import is_broken_device, is_from_outside, is_service_away, reason_for
from evomerge.messages import first_line
from evomerge.opening.inputs import Inputs
from evomerge.recipe import Recipe
from evomerge.sanity.judgement import SanityJudgement
from evomerge.sanity.probe_records import Found, SanityRecords, read_sanity
from evomerge.sanity.probed_merge import probe_merge, too_large
from evomerge.sanity.sanity_probe import SanityProbe
from evomerge.study.stored_search import StoredSearch


@dataclass(frozen=True, kw_only=True)
class ExportProbe:
    """The judgement of exported models by label, and the sentences on all of them."""

    judged: Mapping[str, SanityJudgement]
    says: str

    @property
    def failed(self) -> bool:
        """Whether one of them has a fault."""
        return any(judgement.faults for judgement in self.judged.values())

    def to_document(self) -> dict[str, Any]:
        """As JSON."""
        return {"says": self.says, "models": {label: each.to_document() for label, each in self.judged.items()}}

    @property
    def note(self) -> str:
        """The same as a paragraph of a model card."""
        return f"**Warning:** {self.says}" if self.failed else self.says


def probe_export(stored: StoredSearch, inputs: Inputs, bank: WeightBank, models: Mapping[str, Recipe]) -> ExportProbe:
    """Judge the models of an export. The study is only read: what is probed here is not stored there.

    Nothing is judged where a probe cannot be run on this machine: an export needs none, and is written without.

    Args:
        bank: of the study's sources and dtype.
        models: label -> recipe.
    """
    records = read_sanity(stored.study)
    if records.reason:
        return ExportProbe(judged={}, says=f"No sanity probe: {records.reason}.")
    refs = [expert.ref for expert in inputs.experts]
    sources = source_rows(inputs.base.ref, refs, inputs.catalogue, inputs.spec.dtype)
    wanted = {row.recipe.digest: (row.label, row.recipe) for row in sources}
    records = SanityRecords(models=records.models, sources=tuple(wanted), ranked=records.ranked)
    wanted = {recipe.digest: (label, recipe) for label, recipe in models.items()} | wanted
    missing = {digest: each for digest, each in wanted.items() if digest not in records.models}
    if missing and (reason := too_large(bank)) is not None:
        return ExportProbe(judged={}, says=f"No sanity probe: {reason}.")
    try:
        records = _probed(records, missing, bank, inputs)
    except BaseException as error:  # out of memory, a missing kernel: of this machine, no fault of a merge
        if is_from_outside(error) or is_service_away(error) or is_broken_device(error):
            raise
        return ExportProbe(judged={}, says=f"No sanity probe: it cannot be run here ({reason_for(error)}).")
    judged = {label: found for label, recipe in models.items() if (found := records.judged(recipe.digest)) is not None}
    return ExportProbe(judged=judged, says=" ".join(records.says(models[label].digest, label) for label in judged))


def _probed(
    records: SanityRecords, missing: Mapping[str, tuple[str, Recipe]], bank: WeightBank, inputs: Inputs
) -> SanityRecords:
    """The records with these models as well."""
    probes: dict[int, SanityProbe] = {}
    for digest, (label, recipe) in missing.items():
        records = records.with_model(digest, label, _found(bank, recipe, probes, inputs))
    return records


def _found(bank: WeightBank, recipe: Recipe, probes: dict[int, SanityProbe], inputs: Inputs) -> Found:
    try:
        return probe_merge(bank, recipe, probes, allow=inputs.spec.allow)
    except (InvalidInput, MergeError) as error:
        return first_line(error)

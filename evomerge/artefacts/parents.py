"""The sources of an export, as its model card tells of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from evomerge.checkpoints.source import Source
from evomerge.licenses import DeclaredLicense, LicenseJudgement, SourceLicense, judge_licenses, read_license
from evomerge.licenses.readme_front_matter import read_front_matter, strings_of


@dataclass(frozen=True, kw_only=True)
class Parent:
    """Facts of the card about one source.

    Attributes:
        name: what the user called it.
        hub_id: its id on the hub, None for a local directory, whose path is nobody's business.
        license: as its files declare it.
        fingerprint: content hash of config and weights.
        datasets: the data sets that its README says it was trained on.
    """

    name: str
    hub_id: str | None
    license: DeclaredLicense
    fingerprint: str | None
    datasets: tuple[str, ...] = ()


def parents_of(sources: Iterable[Source]) -> list[Parent]:
    """The parents of a merge, in the order of its sources: the base first."""
    return [
        Parent(
            name=source.name,
            hub_id=source.hub_id,
            license=read_license(source.directory),
            fingerprint=source.ref.fingerprint,
            datasets=strings_of(read_front_matter(source.directory).get("datasets")),
        )
        for source in sources
    ]


def judgement_of(parents: Sequence[Parent]) -> LicenseJudgement:
    """The meaning of all parents' licences for the merge."""
    return judge_licenses([SourceLicense(parent.name, parent.license) for parent in parents])

"""The licences of all sources of a merge together: what they mean for the result, in plain words. No legal advice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Final

from evomerge.licenses.declared_license import DeclaredLicense
from evomerge.licenses.license_terms import KINDS, UNKNOWN, LicenseTerms, find_terms
from evomerge.messages import listed

OTHER: Final = "other"
MIXED: Final = "licenses-of-the-sources"
NO_ADVICE: Final = "this is a reading of what the files say, and no legal advice"

_MEANING: Final = {
    "permissive": "the merge may be used, changed and shared, also commercially, with the notices that it asks for",
    "weak copyleft": "the merge may be shared, also commercially; what is changed of that source keeps its licence",
    "share-alike": "the merge can only be shared under the same licence",
    "custom terms": "the merge can be shared, and its terms go with it to everyone who gets the merge",
    "non-commercial": "the merge may not be used commercially",
    "no derivatives": "a merge is a changed version, which may not be shared",
    UNKNOWN: "nothing is known to be allowed",
}


@dataclass(frozen=True)
class SourceLicense:
    """A source by the name that the user gave it, and its licence."""

    name: str
    declared: DeclaredLicense


@dataclass(frozen=True, kw_only=True)
class LicenseJudgement:
    """The meaning of the sources' licences for the merge.

    Attributes:
        license: an identifier of the hub, for the field of a model card: that of the sources, or `other`.
        license_name: the name of it where `license` is `other`.
        license_link: a URL of its text, where there is one licence and its text has a place.
        kind: the strictest of `KINDS` among the sources.
        meaning: what the strictest licence means for the merge, in a sentence.
        problems: what stands in the way of sharing the merge, a sentence each.
        duties: what sharing it asks for, a sentence each.
        displays: texts that licences ask to show.
        prefixes: beginning of the merge's name that a licence asks for -> that licence.
    """

    license: str
    license_name: str | None
    license_link: str | None
    kind: str
    meaning: str
    problems: tuple[str, ...]
    duties: tuple[str, ...]
    displays: tuple[str, ...]
    prefixes: dict[str, str]

    def to_data(self) -> dict[str, Any]:
        """The judgement as a JSON object."""
        return {
            "license": self.license,
            "license_name": self.license_name,
            "kind": self.kind,
            "meaning": self.meaning,
            "problems": list(self.problems),
            "duties": list(self.duties),
            "displays": list(self.displays),
            "name_begins": dict(self.prefixes),
        }


def name_problems(prefixes: Mapping[str, str], name: str) -> list[str]:
    """Sentences on licences that ask for another name of a merge than the given one.

    Args:
        prefixes: beginning of the name -> licence that asks for it.
        name: of the model, or its id on the hub, of which the last part counts.
    """
    short = name.rpartition("/")[2]
    return [
        f"{license_} asks for a name that begins with {prefix!r}, which {short!r} does not"
        for prefix, license_ in prefixes.items()
        if not _letters(short).startswith(_letters(prefix))
    ]


def judge_licenses(sources: Sequence[SourceLicense]) -> LicenseJudgement:
    """The meaning of the licences of a merge's sources for it.

    Args:
        sources: the base first.
    """
    terms = {each.id: each for source in sources for each in source.declared.terms}
    license_, name, link = _field(sources)
    kind, meaning = _strictest(sources)
    return LicenseJudgement(
        license=license_,
        license_name=name,
        license_link=link,
        kind=kind,
        meaning=meaning,
        problems=tuple(_problems(sources)),
        duties=tuple(_duty(each) for each in terms.values() if each.asks or each.name_begins or each.display),
        displays=tuple(dict.fromkeys(each.display for each in terms.values() if each.display)),
        prefixes={each.name_begins: each.id for each in terms.values() if each.name_begins},
    )


def _field(sources: Sequence[SourceLicense]) -> tuple[str, str | None, str | None]:
    """The fields `license`, `license_name` and `license_link` of the merge's card."""
    names = {source.declared.all_names for source in sources}
    if len(names) != 1 or len(only := names.pop()) != 1:
        return OTHER, MIXED, None
    terms = find_terms(only[0])
    if terms is not None and terms.hub:
        return terms.id, None, None
    links = (source.declared.link or "" for source in sources)
    link = (terms.url if terms else "") or next((each for each in links if each.startswith("https://")), None)
    return OTHER, only[0], link or None


def _strictest(sources: Sequence[SourceLicense]) -> tuple[str, str]:
    """The strictest kind among the sources, and a sentence on it."""
    kinds = {source.name: _kind(source) for source in sources}
    kind = max(kinds.values(), key=KINDS.index)
    whose = [name for name, each in kinds.items() if each == kind]
    if kind == "permissive":
        return kind, f"all licences are permissive: {_MEANING[kind]}"
    named = "an unknown licence" if kind == UNKNOWN else f"a licence of the kind “{kind}”"
    return kind, f"{_names(whose, sources)} {'has' if len(whose) == 1 else 'have'} {named}: {_MEANING[kind]}"


def _names(names: list[str], sources: Sequence[SourceLicense]) -> str:
    return "all sources" if len(names) == len(sources) > 1 else listed([repr(name) for name in names])


def _kind(source: SourceLicense) -> str:
    names, terms = source.declared.all_names, source.declared.terms
    return UNKNOWN if len(terms) < max(1, len(names)) else max((each.kind for each in terms), key=KINDS.index)


def _duty(terms: LicenseTerms) -> str:
    named = [f"begin the name of the merge with “{terms.name_begins}”"] if terms.name_begins else []
    shown = [f"show “{terms.display}”"] if terms.display else []
    return f"{terms.id} asks you to {'; '.join([*named, *shown, *terms.asks])}"


def _problems(sources: Sequence[SourceLicense]) -> Iterator[str]:
    yield from _undeclared(sources)
    for source in sources:
        yield from _problems_of(source)
    yield from _freer_than_base(sources)
    yield from _conflicts(sources)


def _undeclared(sources: Sequence[SourceLicense]) -> Iterator[str]:
    if silent := [source.name for source in sources if not source.declared.all_names]:
        none = "it names none" if len(silent) == 1 else "they name none"
        yield (
            f"the licence of {_names(silent, sources)} is unknown, as {none}: all rights are reserved by default; find "
            "out before you share the merge"
        )


def _problems_of(source: SourceLicense) -> Iterator[str]:
    """The problems that one source has alone."""
    declared = source.declared
    for name in declared.all_names:
        if find_terms(name) is None:
            link = f" ({declared.link})" if declared.link else ""
            yield f"the licence of {source.name!r}, {name}, is not known here{link}; read it before you share the merge"
    if declared.text is not None and declared.text not in declared.names:
        yield (
            f"{source.name!r} says {declared.label} in {declared.file}, but its {declared.text_file} is "
            f"{declared.text}; the stricter of both counts until its authors say which one holds"
        )
    for terms in declared.terms:
        if not terms.derivatives:
            yield f"the licence of {source.name!r}, {terms.id}, forbids derivatives: a merge is one, not to be shared"
        elif not terms.commercial:
            yield f"the licence of {source.name!r}, {terms.id}, forbids commercial use, also of the merge"


def _freer_than_base(sources: Sequence[SourceLicense]) -> Iterator[str]:
    """Claims of experts to a freer licence than that of the base, whose weights they contain."""
    base, *experts = sources
    kind = _kind(base)
    if kind == UNKNOWN or kind in ("permissive", "weak copyleft"):
        return
    freer = [source for source in experts if source.declared.terms and KINDS.index(_kind(source)) < KINDS.index(kind)]
    for source in freer:
        yield (
            f"{source.name!r} says {source.declared.label}, but is made of {base.name!r}, which is under "
            f"{base.declared.label} ({kind}): the claim does not free the merge from that"
        )


def _conflicts(sources: Sequence[SourceLicense]) -> Iterator[str]:
    """Pairs of licences that ask for what cannot both be done, each pair once."""
    owners: dict[str, str] = {}
    for source in sources:
        for terms in source.declared.terms:
            owners.setdefault(terms.id, source.name)
    for first, second in combinations(owners, 2):
        one, other = find_terms(first), find_terms(second)
        if one is not None and other is not None and _conflict(one, other):
            yield (
                f"{first} of {owners[first]!r} and {second} of {owners[second]!r} contradict each other: no licence of "
                "the merge meets both; leave one of these sources out, or keep the merge to yourself"
            )


def _conflict(one: LicenseTerms, other: LicenseTerms) -> bool:
    if not (one.derivatives and other.derivatives):
        return False  # said already
    if other.id in one.incompatible or one.id in other.incompatible:
        return True
    if one.share_alike and other.share_alike:
        return {one.id, *one.compatible}.isdisjoint({other.id, *other.compatible})
    pairs = ((one, other), (other, one))
    return any(first.share_alike and _adds_limits(second, first) for first, second in pairs)


def _adds_limits(terms: LicenseTerms, shared: LicenseTerms) -> bool:
    """Whether a licence has limits that a share-alike licence does not let anyone add."""
    return terms.custom or (not terms.commercial and shared.commercial)


def _letters(text: str) -> str:
    return "".join(character for character in text.casefold() if character.isalnum())

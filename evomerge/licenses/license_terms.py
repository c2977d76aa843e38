"""The table of licences, `licenses.yaml`: what each of them asks of a merge."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Final

from evomerge.documents import Frozen, read_document, validate

TABLE: Final = Path(__file__).with_name("licenses.yaml")
UNKNOWN: Final = "unknown"

# Kinds of licences, from the freest to the strictest; an unknown licence grants nothing.
KINDS: Final = (
    "permissive",
    "weak copyleft",
    "share-alike",
    "custom terms",
    "non-commercial",
    "no derivatives",
    UNKNOWN,
)


class LicenseTerms(Frozen):
    """The terms of one licence. The fields are those of `licenses.yaml`, which explains them."""

    id: str
    name: str
    url: str = ""
    hub: bool = True
    aliases: tuple[str, ...] = ()
    text: tuple[str, ...] = ()
    or_later: str | None = None
    commercial: bool = True
    derivatives: bool = True
    share_alike: bool = False
    weak_copyleft: bool = False
    custom: bool = False
    compatible: tuple[str, ...] = ()
    incompatible: tuple[str, ...] = ()
    asks: tuple[str, ...] = ()
    name_begins: str | None = None
    display: str | None = None

    @property
    def kind(self) -> str:
        """One of `KINDS`: its strictest trait."""
        traits = (
            (not self.derivatives, "no derivatives"),
            (not self.commercial, "non-commercial"),
            (self.custom, "custom terms"),
            (self.share_alike, "share-alike"),
            (self.weak_copyleft, "weak copyleft"),
        )
        return next((kind for holds, kind in traits if holds), "permissive")


@cache
def license_table() -> dict[str, LicenseTerms]:
    """Identifier -> terms of every licence of the table."""
    rows = read_document(TABLE, "table of licences")
    return {name: validate(LicenseTerms, {"id": name, **row}, f"licence {name!r}") for name, row in rows.items()}


def find_terms(name: str) -> LicenseTerms | None:
    """The terms of a licence by its identifier or another spelling, None where the table does not have it."""
    return _spellings().get(_plain(name))


def recognised(text: str) -> LicenseTerms | None:
    """The licence that a text is, by the phrases at its beginning; of several the one with the longest phrases."""
    plain = " ".join(text.casefold().split())
    found = [each for each in license_table().values() if each.text and all(phrase in plain for phrase in each.text)]
    return max(found, key=lambda each: sum(map(len, each.text)), default=None)


@cache
def _spellings() -> dict[str, LicenseTerms]:
    return {_plain(name): terms for terms in license_table().values() for name in (*terms.aliases, terms.id)}


def _plain(name: str) -> str:
    """A name without case, and with one hyphen in the place of blanks and underscores."""
    return re.sub(r"[\s_-]+", "-", name.strip().casefold())

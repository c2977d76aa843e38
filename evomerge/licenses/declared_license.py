"""The licence of a model directory, as its README, its licence file or its config declare it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from evomerge.forms import is_file
from evomerge.licenses.license_terms import LicenseTerms, find_terms, recognised
from evomerge.licenses.readme_front_matter import read_front_matter, strings_of

# Names of the legal texts of a model; many licences ask for a copy with every derivative.
LEGAL: Final = ("LICENSE*", "LICENCE*", "COPYING*", "NOTICE*", "USE_POLICY*")
# Those that hold the text of a licence, the likeliest first.
_TEXT_FILES: Final = ("LICENSE", "LICENSE.md", "LICENSE.txt", "LICENCE", "LICENCE.md", "LICENCE.txt", "COPYING")
_TEXT_LIMIT: Final = 6000  # characters; a licence says its name at the beginning
_NO_LICENSE: Final = ("other", "unknown", "none")


@dataclass(frozen=True, kw_only=True)
class DeclaredLicense:
    """The licence that a model declares.

    Attributes:
        names: identifiers of the table where it has them, else as they were written. Several hold together. None of
            them: not declared.
        file: the file that declares it, None where none does.
        text: identifier of the licence whose text is in the directory, None where there is none, or none that the table
            knows.
        text_file: the file with that text.
        link: the place of its text, as the README gives it.
    """

    names: tuple[str, ...] = ()
    file: str | None = None
    text: str | None = None
    text_file: str | None = None
    link: str | None = None

    @property
    def label(self) -> str | None:
        """The names as text, None where no licence is declared."""
        return ", ".join(self.names) or None

    @property
    def all_names(self) -> tuple[str, ...]:
        """The declared names, and that of the text where it is another licence."""
        return (*self.names, *([self.text] if self.text is not None and self.text not in self.names else []))

    @property
    def terms(self) -> list[LicenseTerms]:
        """The terms of its names, as far as the table has them."""
        return [terms for name in self.all_names if (terms := find_terms(name)) is not None]


def read_license(directory: Path) -> DeclaredLicense:
    """The licence of a model directory: of the README's front matter, else of a licence file, else of config.json.

    Files that cannot be read are no error: the weights do not depend on them.
    """
    front, config = read_front_matter(directory), _config(directory)
    text, text_file = _text_in(directory)
    found = (("README.md", _declared(front)), (text_file, (text,) if text else ()), ("config.json", _declared(config)))
    file, names = next(((file, names) for file, names in found if names), (None, ()))
    if text is not None:  # a licence "or later" has the text of its first version
        text = next((name for name in names if (terms := find_terms(name)) and terms.or_later == text), text)
    link = next(iter(strings_of(front.get("license_link"))), None)
    return DeclaredLicense(names=names, file=file, text=text, text_file=text_file, link=link)


def _config(directory: Path) -> Mapping[str, Any]:
    try:
        content = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _declared(content: Mapping[str, Any]) -> tuple[str, ...]:
    """The names in the fields `license` and, where that is `other`, `license_name`."""
    given = [name for name in strings_of(content.get("license")) if name.casefold() not in _NO_LICENSE]
    if not given:
        given = [name for name in strings_of(content.get("license_name")) if name.casefold() not in _NO_LICENSE]
    return tuple(dict.fromkeys(terms.id if (terms := find_terms(name)) else name for name in given))


def _text_in(directory: Path) -> tuple[str | None, str | None]:
    """The licence whose text a directory has, and the file; the first that the table knows."""
    for name in _TEXT_FILES:
        if is_file(directory / name):
            with (directory / name).open(encoding="utf-8", errors="replace") as file:
                found = recognised(file.read(_TEXT_LIMIT))
            if found is not None:
                return found.id, name
    return None, None

"""URLs of artifacts on an object store: `s3://BUCKET/PREFIX`. They hold no secret, so that they may be shown."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from evomerge.errors import InvalidInput

_SCHEME: Final = re.compile(r"s3://", re.IGNORECASE)
_PLACE: Final = re.compile(r"([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])((?:/[A-Za-z0-9_=.-]+)*)/?")


@dataclass(frozen=True)
class ObjectUrl:
    """A bucket, and the beginning of the names of objects in it: "" or a path without slashes at its ends."""

    bucket: str
    prefix: str

    def __str__(self) -> str:
        return f"s3://{self.root}"

    @property
    def root(self) -> str:
        """Bucket and prefix, as fsspec names a folder."""
        return f"{self.bucket}/{self.prefix}" if self.prefix else self.bucket


def is_object_url(text: str) -> bool:
    """Whether artifacts are on an object store, rather than in a folder."""
    return _SCHEME.match(text) is not None


def read_object_url(text: str) -> ObjectUrl:
    """The parts of a URL. No error shows any of it: it may hold keys that do not belong there.

    Raises:
        InvalidInput: it is not of the form.
    """
    found = _PLACE.fullmatch(text.partition("://")[2])
    if not is_object_url(text) or found is None or {".", ".."} & set(found[2].split("/")):
        raise InvalidInput(
            "artifacts on an object store are s3://BUCKET/PREFIX, of letters, digits and - _ . = /; keys, region and "
            "endpoint come from the environment (AWS_ACCESS_KEY_ID, AWS_PROFILE, AWS_ENDPOINT_URL), never from the URL"
        )
    return ObjectUrl(found[1], found[2].strip("/"))

"""A folder on an object store. Objects are put whole: nobody ever sees half of one.

Keys, region and endpoint are those of the environment, as the library reads them. The text of a foreign error is never
shown, since it may hold parts of them.
"""

from __future__ import annotations

import errno
import importlib.util
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from evomerge.errors import EvomergeError, Interrupted, InvalidInput
from evomerge.object_store.object_url import ObjectUrl

_Result = TypeVar("_Result")

_NO_KEYS: Final = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "NoRegionError")
_CONNECT_SECONDS: Final = 10
_READ_SECONDS: Final = 60
_FIRST_PAUSE: Final = 0.2
_LONGEST_PAUSE: Final = 10.0


class ArtifactsAway(Interrupted):
    """The store of the artifacts cannot be reached; the same command goes on once it can."""


class Patience(Protocol):
    """The time that a store is waited for; `evomerge.storage.patience.StoragePatience` is one."""

    def retry(self, call: Callable[[], _Result], awaited: str) -> _Result:
        """The result of a call that is repeated while it raises an OSError."""
        ...


@dataclass(frozen=True)
class SilentPatience:
    """The patience of somebody who has nobody to tell: of a worker, or of a command that does not wait at all."""

    seconds: float = 0.0

    def retry(self, call: Callable[[], _Result], awaited: str) -> _Result:
        """See `Patience`.

        Raises:
            ArtifactsAway: it was in vain.
        """
        begun, pause = time.monotonic(), _FIRST_PAUSE
        while True:
            try:
                return call()
            except OSError as error:
                if time.monotonic() - begun >= self.seconds:
                    raise ArtifactsAway(f"{awaited} cannot be used: {_reason(error)}") from None
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)


AT_ONCE: Final = SilentPatience()


@dataclass(frozen=True)
class StoredObject:
    """An object: its name below the folder, its bytes, and when it was put, in seconds since 1970."""

    name: str
    size: int
    modified: float


class RemoteFolder:
    """The objects below a URL, by their names without it.

    Args:
        patience: with which the store is waited for.

    Raises, every method:
        Interrupted: the store cannot be reached, or does not let us in, for longer than that.
        InvalidInput: the library that reaches it is not installed, or there are no keys.
    """

    def __init__(self, url: ObjectUrl, patience: Patience = AT_ONCE) -> None:
        self.url = url
        self._patience = patience

    def check(self) -> None:
        """Find out, before anything is done, whether the folder can be listed.

        Raises:
            InvalidInput: there is no such bucket, or the store refuses the keys.
            ArtifactsAway: it cannot be reached at present.
        """
        try:
            with _own_words():
                self._files.call_s3("list_objects_v2", Bucket=self.url.bucket, Prefix=self.url.prefix, MaxKeys=1)
        except (FileNotFoundError, PermissionError) as error:
            raise InvalidInput(f"artifacts {self.url}: {_reason(error)}") from None
        except OSError as error:
            raise ArtifactsAway(
                f"artifacts {self.url} cannot be reached at present: {_reason(error)}; nothing was changed, run the "
                "same command again when it can"
            ) from None

    def put(self, name: str, file: Path) -> None:
        """Store a file as an object, in the place of an earlier one, in one step."""
        self._retry(lambda: self._files.put_file(str(file), self._path(name)))

    def get(self, name: str, file: Path) -> bool:
        """Fetch an object into a file, which is there whole or not at all. Returns False where there is none."""
        file.parent.mkdir(parents=True, exist_ok=True)
        aside = file.with_name(f".{file.name}.writing-{secrets.token_hex(4)}")

        def fetch() -> bool:
            try:
                self._files.get_file(self._path(name), str(aside))
            except FileNotFoundError:
                return False
            aside.replace(file)
            return True

        try:
            return self._retry(fetch)
        finally:
            aside.unlink(missing_ok=True)

    def has(self, name: str) -> bool:
        """Whether there is an object of that name."""
        return self._retry(lambda: bool(self._files.isfile(self._path(name))))

    def listed(self, under: str = "") -> list[StoredObject]:
        """All objects, or those whose names begin with `under` and a slash, by their names."""

        def find() -> dict[str, dict[str, Any]]:
            found: dict[str, dict[str, Any]] = self._files.find(self._path(under), detail=True)
            return found

        start = len(self._path("")) + 1
        return [
            StoredObject(name=path[start:], size=int(each["size"] or 0), modified=_seconds(each))
            for path, each in sorted(self._retry(find).items())
        ]

    def remove(self, name: str) -> None:
        """Delete an object, if there is one of that name."""

        def delete() -> None:
            with suppress(FileNotFoundError):
                self._files.rm_file(self._path(name))

        self._retry(delete)

    @property
    def _files(self) -> Any:
        check_library(self.url)
        import fsspec  # which keeps the file system of these settings, with its connections

        return fsspec.filesystem("s3", use_listings_cache=False, **_options())

    def _path(self, name: str) -> str:
        return f"{self.url.root}/{name}".rstrip("/")

    def _retry(self, call: Callable[[], _Result]) -> _Result:
        def once() -> _Result:
            with _own_words():
                return call()

        return self._patience.retry(once, f"the artifacts {self.url}")


def check_library(url: ObjectUrl) -> None:
    """Refuse a store that no installed library reaches.

    Raises:
        InvalidInput: says what to install.
    """
    if importlib.util.find_spec("s3fs") is None:
        raise InvalidInput(f"artifacts {url} need s3fs, which is not installed: pip install 'evomerge[s3]'")


def _options() -> dict[str, Any]:
    """Settings of the file system. The endpoint is among them, so that another one is another file system."""
    return {
        "endpoint_url": os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None,
        "config_kwargs": {
            "connect_timeout": _CONNECT_SECONDS,
            "read_timeout": _READ_SECONDS,
            "retries": {"max_attempts": 1},  # we are the ones who wait
        },
    }


@contextmanager
def _own_words() -> Iterator[None]:
    """Errors of the libraries as errors of files, which are waited for, or as a fault of the user's set-up."""
    try:
        yield
    except (EvomergeError, OSError):
        raise
    except Exception as error:
        kinds = {kind.__name__ for kind in type(error).__mro__}
        if kinds & set(_NO_KEYS):
            raise InvalidInput(
                "the object store needs keys and a region, which are not in the environment: set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or a role of the machine"
            ) from None
        if not kinds & {"BotoCoreError", "ClientError", "HTTPClientError"}:
            raise
        raise ConnectionError(errno.EHOSTUNREACH, "can't connect") from None


def _reason(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such bucket"
    if isinstance(error, PermissionError):
        return "the store refuses the keys in the environment, or does not allow them to list this bucket"
    if isinstance(error, ConnectionError):
        return "it cannot be reached"
    return os.strerror(error.errno) if error.errno else "it does not answer in time"


def _seconds(entry: dict[str, Any]) -> float:
    modified = entry.get("LastModified")
    return float(modified.timestamp()) if modified is not None else 0.0

"""The place of a study in earlier releases, where relative paths of a spec began in the working directory."""

from __future__ import annotations

import shlex
from contextlib import suppress
from pathlib import Path

from evomerge.errors import InvalidInput
from evomerge.spec import SearchSpec, written_storage
from evomerge.storage.url import absolute_url, local_file
from evomerge.study.stored_search import looking_at


def study_elsewhere(path: Path, spec: SearchSpec) -> str:
    """One line on a study of the same name in the working directory, while there is none beside the file of the spec.

    Args:
        path: the file of the spec.
        spec: with the storage that is used.

    Returns:
        "" where there is none, or it is the one that is used.
    """
    with suppress(InvalidInput):
        written = written_storage(path)
        if written.startswith(("env:", "file:")) or local_file(written) is None:
            return ""
        url = absolute_url(written)
        new, old = local_file(spec.storage_url), local_file(url)
        if new is None or old is None or not old.exists() or old.resolve() == new.resolve() or _is_there(spec):
            return ""
        with looking_at(spec.model_copy(update={"storage": url})):
            return (
                f"note: there is a study {spec.name!r} in {old}, but relative paths of a spec begin at its own folder, "
                f"so that this one is in {new}; to go on with that, give --storage {shlex.quote(url)}, or move it"
            )
    return ""


def _is_there(spec: SearchSpec) -> bool:
    try:
        with looking_at(spec):
            return True
    except InvalidInput:
        return False

"""Command lines of evomerge that work as they are printed, from any working directory."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from evomerge.spec import SearchSpec
from evomerge.storage.url import absolute_url, is_reference, local_file, resolve_url

VARIABLE = "EVOMERGE_STORAGE"


def command_line(spec: SearchSpec, command: str, *options: str, file: Path | None = None) -> str:
    """A command on the study of a spec. The study is named by its storage, so that its own spec serves.

    Printed lines are published: none says where a server is, or by which password. The file that names the storage
    takes the place of its URL, or `env:EVOMERGE_STORAGE`, which asks for the URL in that variable.

    Args:
        command: the name of the command.
        options: appended to it.
        file: the search.yaml that names the storage, where one does.
    """
    return quoted_line([command, *_search(spec, file), *options])


def quoted_line(arguments: Sequence[str]) -> str:
    """A command of evomerge with its arguments, quoted for a shell."""
    line = shlex.join(["evomerge", *arguments])
    return os.fsencode(line).decode("utf-8", "replace")  # names of files that are not UTF-8 are surrogates in Python


def _search(spec: SearchSpec, file: Path | None) -> list[str]:
    given = spec.storage_url
    url = resolve_url(given)
    if local_file(url) is not None:
        return ["--storage", absolute_url(url), "--study", spec.name]
    if is_reference(given):
        return ["--storage", given, "--study", spec.name]
    return [str(file.resolve())] if file is not None else ["--storage", f"env:{VARIABLE}", "--study", spec.name]

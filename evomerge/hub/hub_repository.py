"""The repository of the hub that an export is pushed to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelInfo, get_token
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from evomerge.artefacts.export_names import MARKERS, is_of_an_export
from evomerge.errors import InvalidInput
from evomerge.hub.hub_faults import hub_faults
from evomerge.hub.write_access import lacks_write_access
from evomerge.messages import counted, first_line, in_bytes, some

_OF_A_NEW_ONE: Final = (".gitattributes", "README.md", "LICENSE")  # that the hub itself writes
_NOTHING_MADE: Final = "nothing was made"


@dataclass(frozen=True, kw_only=True)
class PushedExport:
    """An export that is on the hub.

    Attributes:
        url: of the repository.
        commit: id of its commit.
        files, bytes: of the export.
    """

    url: str
    commit: str
    files: int
    bytes: int


class HubRepository:
    """A repository for one export. The endpoint and the token are those of huggingface_hub: `HF_ENDPOINT`; `HF_TOKEN`
    or the login on this machine.

    Args:
        repo_id: OWNER/NAME.
        private: whether a new repository is private; otherwise it is as its owner's are by default.

    Raises:
        InvalidInput: `repo_id` is no id of a repository, or there is no token.
    """

    def __init__(self, repo_id: str, *, private: bool = False) -> None:
        _check_id(repo_id)
        token = get_token()
        if token is None:
            raise InvalidInput(
                f"--push {repo_id} needs a token of the Hugging Face hub with write access: set HF_TOKEN, or run `hf "
                f"auth login`; {_NOTHING_MADE}"
            )
        self.id = repo_id
        self._private = private
        self._api = HfApi(token=token)

    @property
    def url(self) -> str:
        """The address of the repository for a browser."""
        return f"{self._api.endpoint}/{self.id}"

    def check(self) -> None:
        """Ask the hub whether the push can succeed, before anything is made.

        Raises:
            InvalidInput: the token is unknown or may not write there, the repository holds something else than an
                export, or is public although a private one was asked for.
            Interrupted: the hub cannot be reached.
        """
        with hub_faults("a push", repository=self.id, state=_NOTHING_MADE):
            if (reason := lacks_write_access(self._api.whoami(), self.id)) is not None:
                raise InvalidInput(f"--push {self.id}: {reason}; {_NOTHING_MADE}")
            try:
                found = self._api.model_info(self.id)
            except RepositoryNotFoundError:
                return
        self._check_replaceable(found, _NOTHING_MADE)

    def _check_replaceable(self, found: ModelInfo, state: str) -> None:
        if self._private and not found.private:
            raise InvalidInput(
                f"--private: {self.url} exists and is public; change that on its page first, or leave --private out; "
                f"{state}"
            )
        files = _files_of(found)
        foreign = sorted(set(files) - set(_OF_A_NEW_ONE))
        if foreign and not any(marker in files for marker in MARKERS):
            raise InvalidInput(
                f"{self.url} holds {some(foreign)}, but no {' or '.join(MARKERS)}: it is no export of evomerge; give "
                f"another id, so that nothing of it is replaced; {state}"
            )

    def push(self, folder: Path, tell: Callable[[str], None] = lambda _: None) -> PushedExport:
        """Upload an export in one commit: whoever loads the model sees the earlier one or this one, never a mixture.

        Files that the repository has already are not sent again. Those of an earlier export that this one has not got
        are deleted, since they would be taken for parts of this one: tokenizer, settings, code, licences. Files of
        other kinds stay, and all that was there before the first export.

        Args:
            folder: the export.
            tell: takes a sentence before the upload.

        Raises:
            InvalidInput: the hub refuses.
            Interrupted: the network broke; the folder is as it was.
        """
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        size = sum(path.stat().st_size for path in files)
        names = [path.relative_to(folder).as_posix() for path in files]
        tell(f"uploading {counted(len(files), 'file')} ({in_bytes(size)}) to {self.url}")
        state = f"the export is in {folder}"
        with hub_faults("the upload", repository=self.id, state=state):
            self._api.create_repo(self.id, private=True if self._private else None, exist_ok=True)
            found = self._api.model_info(self.id)
            self._check_replaceable(found, state)  # it may have been made since
            operations: list[Any] = [
                CommitOperationAdd(path_in_repo=name, path_or_fileobj=path)
                for name, path in zip(names, files, strict=True)
            ]
            operations += [CommitOperationDelete(path_in_repo=name) for name in _left_over(_files_of(found), names)]
            made = self._api.create_commit(
                self.id, operations, commit_message="Upload a merge made with evomerge", parent_commit=found.sha
            )
        return PushedExport(url=self.url, commit=made.oid, files=len(files), bytes=size)


def _check_id(repo_id: str) -> None:
    try:
        validate_repo_id(repo_id)
        reason = "" if "/" in repo_id else "it names no owner"
    except HFValidationError as error:
        reason = first_line(error)
    if reason:
        raise InvalidInput(f"--push {repo_id}: {reason}; give OWNER/NAME; {_NOTHING_MADE}")


def _files_of(found: ModelInfo) -> list[str]:
    return [each.rfilename for each in found.siblings or []]


def _left_over(present: list[str], names: list[str]) -> Iterator[str]:
    """Files of an earlier export that this one does not have."""
    if not any(marker in present for marker in MARKERS):
        return iter(())
    kept = set(names)
    return (name for name in present if name not in kept and is_of_an_export(name))

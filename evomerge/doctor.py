"""`evomerge doctor`: what a run will find on this machine, on a Ray cluster and at a storage, and what is wrong."""

from __future__ import annotations

import importlib.util
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Literal

from rich.text import Text

from evomerge.cluster.address import refuse_unanswered
from evomerge.cluster.open_cluster import answers_anyone
from evomerge.errors import EvomergeError
from evomerge.forms import nearest_existing
from evomerge.messages import in_bytes, some
from evomerge.object_store.object_url import is_object_url, read_object_url
from evomerge.object_store.remote_folder import RemoteFolder
from evomerge.spec import SearchSpec
from evomerge.storage.opening import open_storage, release
from evomerge.storage.url import local_file, run_directory
from evomerge.study.stored_search import artifacts_folder

SCHEMA: Final = 1
DASHBOARD_PORT: Final = 8265
MOUNTED_SECRETS: Final = Path("/run/secrets")  # of Docker, Podman and Kubernetes
SMALL_SHARED_MEMORY: Final = 1 << 30  # bytes, below which Ray puts its objects on the disk; containers have 64 MiB
SMALL_DISK: Final = 1 << 30  # bytes
_STYLES: Final = {"ok": "", "warning": "yellow", "wrong": "red"}

State = Literal["ok", "warning", "wrong"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `wrong`: a run would fail, or somebody else could do harm."""

    name: str
    state: State
    text: str


def doctor(spec: SearchSpec | None = None, ray: str | None = None) -> dict[str, Any]:
    """Look at this machine; with a spec also at its storage, with the address of a cluster also at that.

    Nothing is started or joined. A storage that is there is opened as by every command: a database without tables gets
    them, and what a crash left of a journal's last line is cut off.
    """
    allowed = spec is not None and spec.workers.allow_open_cluster
    findings = [*_ray(), *_tokens(), _cluster(ray, allowed=allowed), _gpus(), *_shared_memory()]
    if spec is not None:
        findings.append(_storage(spec.storage_url))
        if spec.artifacts is not None and is_object_url(spec.artifacts):
            findings.append(_object_store(spec.artifacts))
    findings += [_disk(name, folder) for name, folder in _folders(spec).items()]
    return {
        "schema": SCHEMA,
        "healthy": all(each.state != "wrong" for each in findings),
        "findings": [asdict(each) for each in findings],
    }


def doctor_text(document: dict[str, Any]) -> Text:
    """The same for a person."""
    text = Text()
    for each in document["findings"]:
        mark = "" if each["state"] == "ok" else f"{each['state']}: "
        text.append(f"{each['name']}: {mark}{each['text']}\n", style=_STYLES[each["state"]])
    return text


def what_is_wrong(document: dict[str, Any]) -> str | None:
    """The trouble in one line; None where there is none."""
    wrong = [each["name"] for each in document["findings"] if each["state"] == "wrong"]
    return f"a run would not be safe or would not succeed: see {some(wrong)} above" if wrong else None


def _ray() -> Iterator[Finding]:
    if importlib.util.find_spec("ray") is None:
        yield Finding("ray", "warning", "not installed: searches have one worker; pip install 'ray[default]'")
        return
    yield Finding("ray", "ok", f"version {version('ray')}; a local cluster listens on free ports of 127.0.0.1")


def _tokens() -> Iterator[Finding]:
    given = os.environ.get("RAY_AUTH_TOKEN_PATH")
    for path in dict.fromkeys(Path(each) for each in (given, Path.home() / ".ray" / "auth_token") if each):
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
        except OSError:
            continue
        yield _token(path, mode)
    if (mode_of := os.environ.get("RAY_AUTH_MODE", "token")) != "token":
        yield Finding("token", "warning", f"RAY_AUTH_MODE is {mode_of}: every account of this machine can use its Ray")


def _token(path: Path, mode: int) -> Finding:
    """Whether others can use the token. A mounted secret belongs to an account of the host, so its mode may be open."""
    text = f"{path} has mode {mode:o}"
    if not mode & 0o077:
        return Finding("token", "ok", text)
    if not mode & 0o022 and path.resolve().is_relative_to(MOUNTED_SECRETS):
        return Finding("token", "ok", f"{text}, as a secret that a container reads; keep its folder on the host closed")
    return Finding("token", "wrong", f"{text}: others can use the cluster; chmod 600 {path}")


def _cluster(ray: str | None, *, allowed: bool) -> Finding:
    """Whether a cluster answers at the address, and its dashboard, or one on this machine, takes jobs from anyone.

    Args:
        allowed: the spec allows a cluster that does.
    """
    address = ray or os.environ.get("RAY_ADDRESS") or "auto"
    host = "127.0.0.1" if address in ("auto", "local", "none") else address.rpartition("://")[2].rpartition(":")[0]
    dashboard = f"{host}:{DASHBOARD_PORT}"
    is_open = answers_anyone(dashboard)
    if is_open and not allowed:
        return Finding(
            "cluster",
            "wrong",
            f"http://{dashboard} takes jobs from anyone: start the cluster with RAY_AUTH_MODE=token, or let nobody "
            "else reach it and write workers: {allow_open_cluster: true}",
        )
    if ray not in (None, "local", "none"):
        try:
            refuse_unanswered(str(ray))
        except EvomergeError as error:
            return Finding("cluster", "wrong", str(error))
    if is_open:
        text = f"http://{dashboard} takes jobs from anyone, which the spec allows: let nobody else reach it"
        return Finding("cluster", "warning", text)
    if is_open is None:
        return Finding("cluster", "ok", f"no dashboard of Ray at {dashboard}")
    return Finding("cluster", "ok", f"http://{dashboard} asks for a token")


def _gpus() -> Finding:
    import torch

    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return Finding("gpus", "ok", ", ".join(names) or "none")


def _shared_memory() -> Iterator[Finding]:
    folder = Path("/dev/shm")
    if sys.platform != "linux" or not folder.is_dir():
        return
    total = shutil.disk_usage(folder).total
    if total < SMALL_SHARED_MEMORY:
        text = f"/dev/shm has {in_bytes(total)}, little for Ray; docker run --shm-size=4g"
        yield Finding("shared memory", "warning", text)
    else:
        yield Finding("shared memory", "ok", f"/dev/shm has {in_bytes(total)}")


def _storage(url: str) -> Finding:
    """Whether the storage answers. A file that is not there is not created."""
    try:
        file = local_file(url)
        if file is not None and not file.exists():
            folder = nearest_existing(file)
            if os.access(folder, os.W_OK):
                return Finding("storage", "ok", f"{file} will be made")
            return Finding("storage", "wrong", f"{file} cannot be made: {folder} may not be written to")
        release(open_storage(url))
    except EvomergeError as error:
        return Finding("storage", "wrong", str(error))
    return Finding("storage", "ok", "it answers" if file is None else f"{file} can be read")


def _object_store(text: str) -> Finding:
    """Whether the store of the artifacts can be listed."""
    try:
        RemoteFolder(read_object_url(text)).check()
    except EvomergeError as error:
        return Finding("artifacts", "wrong", str(error))
    return Finding("artifacts", "ok", f"{text} can be listed")


def _folders(spec: SearchSpec | None) -> dict[str, Path]:
    """A folder that a run writes to."""
    found = {"temporary folder": Path(tempfile.gettempdir())}
    if spec is not None:
        try:
            found["run directory"] = run_directory(spec.storage_url, spec.name)
            if spec.artifacts is None or not is_object_url(spec.artifacts):
                found["artifacts"] = artifacts_folder(spec)
        except EvomergeError:
            pass  # the storage says it
    return found


def _disk(name: str, folder: Path) -> Finding:
    there = nearest_existing(folder)
    free = shutil.disk_usage(there).free
    if not os.access(there, os.W_OK):
        return Finding(name, "wrong", f"{there} may not be written to")
    return Finding(name, "warning" if free < SMALL_DISK else "ok", f"{folder}, {in_bytes(free)} free")

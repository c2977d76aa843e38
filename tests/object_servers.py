"""An object store of the tests' own: moto's server in a process, on a free port of this machine."""

from __future__ import annotations

import contextlib
import secrets
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from servers import Server, free_port, needs, running

SECRET = "the-secret-key-of-the-tests"
KEY = "AKIAOFTHETESTS"


@pytest.fixture(scope="session")
def s3_server() -> Iterator[Server]:
    """A store that speaks S3. Its objects are in memory: they are gone when it is killed."""
    needs("s3fs", "s3")
    needs("moto", "dev")
    port = free_port()
    url = f"http://127.0.0.1:{port}"

    def answers() -> None:
        with contextlib.closing(urllib.request.urlopen(f"{url}/moto-api/data.json", timeout=5)):
            pass

    with tempfile.TemporaryDirectory(prefix="evomerge-s3-") as folder:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        with running(Server(command, url, answers, folder=Path(folder))) as server:
            yield server


@dataclass(frozen=True)
class Bucket:
    """An empty bucket, the URL of artifacts in it, and a client that knows nothing of evomerge."""

    name: str
    url: str
    client: Any
    server: Server

    def names(self) -> set[str]:
        """The objects below the URL, by their names without it."""
        found = self.client.list_objects_v2(Bucket=self.name).get("Contents", [])
        return {each["Key"].removeprefix("runs/") for each in found}

    def delete(self, name: str) -> None:
        self.client.delete_object(Bucket=self.name, Key=f"runs/{name}")

    def put(self, name: str, content: bytes) -> None:
        self.client.put_object(Bucket=self.name, Key=f"runs/{name}", Body=content)


@pytest.fixture
def bucket(s3_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """A bucket of one test, with all that the environment has to have, and a cache folder of its own."""
    for name, value in {
        "AWS_ENDPOINT_URL": s3_server.url,
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }.items():
        monkeypatch.setenv(name, value)
    import boto3

    client = boto3.client("s3")
    name = f"evomerge-{secrets.token_hex(6)}"
    client.create_bucket(Bucket=name)
    return Bucket(name, f"s3://{name}/runs", client, s3_server)

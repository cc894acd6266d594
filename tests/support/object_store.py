"""A local S3: the server of moto in a process of its own, which everything in this process and its children reaches."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.remote import Remote, place
from support.waiting import wait_for

BUCKET = "bucket"


class ObjectStore:
    """The server, which can be stopped."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(self._answers, poll_s=0.05)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def variables(self) -> dict[str, str]:
        """The variables of the environment by which pyarrow finds it."""
        return {
            "AWS_ENDPOINT_URL_S3": self.url,
            "AWS_ACCESS_KEY_ID": "nobody",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    @property
    def found(self) -> Callable[[], None]:
        """Has a process of `support.processes` find it, whose environment is from before: for `before` of `start`."""
        return partial(_find, self.variables)

    def _answers(self) -> bool:
        assert self.process.poll() is None, "moto's server ended; pip install 'moto[server]'"
        try:
            urllib.request.urlopen(f"{self.url}/moto-api/data.json", timeout=30).close()
        except (urllib.error.URLError, ConnectionError):
            return False
        return True

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


def _find(variables: dict[str, str]) -> None:
    os.environ |= variables


@contextmanager
def object_store() -> Iterator[ObjectStore]:
    """A server with an empty bucket, and the variables by which pyarrow finds it."""
    before = dict(os.environ)
    store = ObjectStore()
    try:
        os.environ |= store.variables
        make_bucket(BUCKET)
        yield store
    finally:
        store.stop()
        os.environ.clear()
        os.environ |= before


def upload(folder: Path, to: str) -> Remote:
    """Copy a folder into the store, file by file, to BUCKET/KEY."""
    remote = place(f"s3://{to}")
    assert isinstance(remote, Remote)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            (remote / str(path.relative_to(folder))).write(path)
    return remote


def filesystem() -> Any:
    """The store as pyarrow sees it, to look and to damage."""
    from pyarrow.fs import FileSystem

    return FileSystem.from_uri(f"s3://{BUCKET}?allow_bucket_creation=true&allow_bucket_deletion=true")[0]


def make_bucket(name: str) -> None:
    filesystem().create_dir(name)

"""Addresses of object stores (s3://, gs://, az://), which are read and written through `pyarrow.fs`.

An object appears whole or not at all, and is replaced whole. Retries, timeouts and credentials are pyarrow's: variables
of the environment such as AWS_ACCESS_KEY_ID and AWS_ENDPOINT_URL_S3, profiles, and the roles of machines.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote

from pipeline.errors import UserError

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo

_RANGE = 8 << 20  # bytes per request, enough to hide its latency
_ADDRESS = re.compile(r"(s3|gs|az|file):/{1,2}(.*)", re.DOTALL)  # one slash where `Path` took the other away
_FIXES = (
    ("NO_SUCH_BUCKET|bucket does not exist|ContainerNotFound", "fix the name of the bucket, or make the bucket"),
    (
        r"ACCESS_DENIED|INVALID_ACCESS_KEY|SIGNATURE|TOKEN|CREDENTIALS|[Cc]redentials|\b40[13]\b|[Pp]ermission",
        "give this process credentials that may do so (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, "
        "GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_ACCOUNT, or a role of the machine)",
    ),
    ("", "look after the connection and the store's address (AWS_ENDPOINT_URL_S3, AWS_REGION), and type this again"),
)
"""What of a message of pyarrow's says which fix; the first that is found."""


class RemoteError(UserError):
    """An object store cannot be reached, or lacks what it should hold; no fault of the image that was asked for."""


class Status(NamedTuple):
    """What tells one version of a file from another."""

    size: int
    mtime_ns: int


@dataclass(frozen=True)
class Remote:
    """A file or folder in an object store. It is no Path, so nothing takes it for a file of this machine."""

    scheme: str
    path: str
    """The bucket and the key, such as `bucket/shards/birds`."""
    options: str = ""
    """What follows the `?`, such as `endpoint_override=127.0.0.1:9000&scheme=http`."""

    def __str__(self) -> str:
        return f"{self.scheme}://{self.path}{'?' if self.options else ''}{self.options}"

    def __truediv__(self, name: str) -> Remote:
        return replace(self, path=f"{self.path}/{name}")

    @property
    def name(self) -> str:
        """The last part of the path."""
        return PurePosixPath(self.path).name

    @property
    def parent(self) -> Remote:
        """The folder that this lies in."""
        return replace(self, path=str(PurePosixPath(self.path).parent))

    def within(self, folder: Path) -> Path:
        """Where a copy of this lies in a folder of this machine: apart from what another server has at this path."""
        options = f"-{hashlib.blake2b(self.options.encode(), digest_size=4).hexdigest()}" if self.options else ""
        return folder / f"{self.scheme}{options}" / self.path

    # ------------------------------------------------------------------------------------------------------------ reads

    def status(self) -> Status | None:
        """The size and time of a file; None if there is none. Raises UserError if that cannot be known."""
        with self._reached("read"):
            (found,) = self._filesystem().get_file_info([self.path])
        return Status(found.size, found.mtime_ns or 0) if found.is_file else None

    def files(self, *, below: bool = False) -> dict[str, Status]:
        """Name -> status of the files in this folder, and with `below` of those in folders below by relative paths.

        A folder that does not exist has none.

        Raises:
            UserError: it cannot be listed: there is no such bucket, no permission, or no connection. Or it holds an
                object whose name would lead out of a folder of this machine.
        """
        infos = [info for info in self._list(below=below) if info.is_file]
        found = {info.path[len(self.path) + 1 :]: Status(info.size, info.mtime_ns or 0) for info in infos}
        for name in found:  # a file of this machine will have it
            if not {"", ".", ".."}.isdisjoint(name.split("/")):
                raise RemoteError(
                    f"{self} holds {name!r}, which is no name of a file; remove it, or choose another folder"
                )
        return found

    def has_folder(self, name: str) -> bool:
        """Whether there is a folder of this name. Raises UserError as `files` does."""
        return any(True for _ in (self / name)._list(below=False))

    def _list(self, *, below: bool) -> list[FileInfo]:
        from pyarrow.fs import FileSelector

        with self._reached("listed"):
            try:  # with allow_not_found, a bucket that is gone would be an empty one
                found: list[FileInfo] = self._filesystem().get_file_info(FileSelector(self.path, recursive=below))
            except FileNotFoundError:
                return []
        return found

    def chunks(self) -> Iterator[bytes]:
        """Yield the bytes of a file by ranged reads, a few MiB each.

        Raises:
            UserError: it does not exist, or the connection was lost for longer than pyarrow tries again.
        """
        with self._reached("read"):
            file = self._filesystem().open_input_file(self.path)
            size = file.size()
        with file:
            for begin in range(0, size, _RANGE):
                with self._reached("read"):
                    chunk: bytes = file.read_at(min(_RANGE, size - begin), begin)
                yield chunk

    def read(self) -> bytes:
        """All bytes of a file. Raises UserError as `chunks` does."""
        return b"".join(self.chunks())

    # ----------------------------------------------------------------------------------------------------------- writes

    def write(self, source: Path) -> None:
        """Store the bytes of a file of this machine, whole or not at all.

        They are mapped and handed over in one call: pyarrow closes a stream that is left by an error, and closing one
        stores what came so far.

        Raises:
            UserError: there is no such bucket, no permission, or no connection.
        """
        import pyarrow as pa

        with pa.memory_map(str(source)) if source.stat().st_size else contextlib.nullcontext() as file:
            data = file.read_buffer() if file is not None else b""
            with self._reached("written"), self._filesystem().open_output_stream(self.path) as stream:
                stream.write(data)

    # ------------------------------------------------------------------------------------------------------ the library

    def _filesystem(self) -> Any:
        return _filesystem(self.scheme, self.path.partition("/")[0], self.options)

    @contextlib.contextmanager
    def _reached(self, done: str) -> Iterator[None]:
        """Turn what pyarrow raises into a UserError. The block holds calls of pyarrow alone."""
        try:
            yield
        except UserError:
            raise
        except FileNotFoundError as error:
            bucket = self.path.partition("/")[0]
            if bucket != self.path:  # which may be gone too, and then says so
                replace(self, path=bucket).files()
            raise RemoteError(f"{self} does not exist; fix the address, or restore the file") from error
        except (OSError, ValueError, NotImplementedError) as error:  # ArrowInvalid is a ValueError
            why = " ".join(str(error).split())[:300]
            fix = next(fix for pattern, fix in _FIXES if re.search(pattern, why))
            raise RemoteError(f"{self} cannot be {done} ({why}); {fix}") from error


@functools.cache
def _filesystem(scheme: str, bucket: str, options: str) -> Any:
    """The file system that a bucket lies in; its connections are shared by the threads of this process."""
    from pyarrow import fs

    if scheme == "az":
        account = os.environ.get("AZURE_STORAGE_ACCOUNT")
        if not account:
            raise UserError(f"az://{bucket} is in no account; set AZURE_STORAGE_ACCOUNT to the name of the account")
        return fs.AzureFileSystem(account, account_key=os.environ.get("AZURE_STORAGE_KEY"))
    # By its URI, since this way alone pyarrow looks at AWS_ENDPOINT_URL_S3, and finds out the region of a bucket.
    return fs.FileSystem.from_uri(f"{scheme}://{bucket}{'?' if options else ''}{options}")[0]


Place = Path | Remote
"""Where data lie: on a file system of this machine, or in an object store."""


def place(value: str | Path | Remote) -> Place:
    """The place that a text stands for: s3://BUCKET/KEY, gs:// and az:// are remote, and file:// and all else a path.

    A Path serves too, although it has taken a slash away from `s3://`.

    Raises:
        ValueError: an address of another kind, one that holds a secret, or one without a bucket.
    """
    if isinstance(value, Remote):
        return value
    found = _ADDRESS.fullmatch(str(value))
    if found is None:
        if "://" in str(value):
            raise ValueError(
                f"{value} is an address of a kind that is not read; s3://, gs://, az:// and file:// are, or download it"
            )
        return Path(value)
    scheme, rest = found[1], found[2]
    if scheme == "file":
        return Path("/" + unquote(rest).lstrip("/"))
    path, _, options = rest.partition("?")
    path = path.rstrip("/")
    if "@" in path.partition("/")[0] or re.search(r"(^|&)(access_key|secret_key|session_token)=", options):
        raise ValueError(
            f"an address of {scheme}:// holds a secret, which files of runs would keep; take it out, and set variables "
            "such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        )
    if not all(part not in ("", ".", "..") for part in path.split("/")):
        raise ValueError(f"{value} is no address of a bucket or of what is in it; write {scheme}://BUCKET/FOLDER")
    return Remote(scheme, path, options)

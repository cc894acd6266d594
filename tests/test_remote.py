"""What addresses stand for, and what their errors say, without a store."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.errors import UserError
from pipeline.remote import Remote, RemoteError, place


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("s3://bucket/a b/c+d", Remote("s3", "bucket/a b/c+d")),
        (Path("s3://bucket/a/"), Remote("s3", "bucket/a")),  # Path has taken a slash away
        ("gs://bucket", Remote("gs", "bucket")),
        ("az://box/x?y=1", Remote("az", "box/x", "y=1")),
        ("file:///tmp/a%20b", Path("/tmp/a b")),
        ("s3/bucket", Path("s3/bucket")),
        ("C:/x", Path("C:/x")),
    ],
)
def test_an_address_is_remote_and_all_else_a_path(text: str | Path, found: Path | Remote) -> None:
    assert place(text) == found
    assert place(str(place(text))) == found


@pytest.mark.parametrize(
    ("said", "fix"),
    [
        (OSError("AWS Error ACCESS_DENIED during HeadObject operation"), "credentials that may do so"),
        (OSError("AWS Error INVALID_ACCESS_KEY_ID during ListObjectsV2"), "credentials that may do so"),
        (OSError("AWS Error NO_SUCH_BUCKET during ListObjectsV2"), "fix the name of the bucket"),
        (OSError("AWS Error NETWORK_CONNECTION: connect to 127.0.0.1:40312"), "look after the connection"),
        (ValueError("Unexpected query parameter in S3 URI: 'foo'"), "look after the connection"),
    ],
)
def test_what_the_library_raises_is_told_with_the_address_and_a_fix(said: Exception, fix: str) -> None:
    told = pytest.raises(RemoteError, match=f"^s3://bucket/x cannot be read .*{said}.*; .*{fix}")
    with told, Remote("s3", "bucket/x")._reached("read"):
        raise said


def test_azure_without_an_account_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT", raising=False)
    with pytest.raises(UserError, match=r"^az://box is in no account; set AZURE_STORAGE_ACCOUNT"):
        Remote("az", "box/x").files()


@pytest.mark.parametrize("key", ["parts/../../../home/.bashrc", "..", "/etc/passwd", "a//b"])
def test_an_object_whose_name_leads_out_of_a_folder_is_refused(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        SimpleNamespace(path=f"bucket/labels/{name}", is_file=True, size=1, mtime_ns=1) for name in ("a.arrow", key)
    ]
    monkeypatch.setattr(Remote, "_list", lambda self, below: found)
    with pytest.raises(RemoteError, match=f"s3://bucket/labels holds '{key}', which is no name of a file; remove it"):
        Remote("s3", "bucket/labels").files(below=True)


def test_copies_of_two_servers_lie_apart(tmp_path: Path) -> None:
    servers = ["", "endpoint_override=10.0.0.1:9000", "endpoint_override=10.0.0.2:9000"]
    assert len({Remote("s3", "bucket/birds", options).within(tmp_path) for options in servers}) == 3

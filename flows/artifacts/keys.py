"""The keys of artifacts. A key is a page with a history: every run has its own, and a resumed run adds to them."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from pathlib import Path

MAX_NAME = 40


def artifact_key(run_dir: Path, what: str) -> str:
    """The key of one artifact of a run, such as `birds-3f2a-leaderboard`: lowercase letters, digits and single dashes.

    The digest is one of the folder's path, so that two runs of one name have two pages, and a resumed one has one.
    """
    folder = run_dir.resolve()
    digest = hashlib.blake2b(str(folder).encode(errors="surrogateescape"), digest_size=2).hexdigest()
    return "-".join(filter(None, [_dashed(folder.name)[:MAX_NAME].strip("-"), digest, _dashed(what)]))


def _dashed(text: str) -> str:
    """A text in lowercase ASCII letters and digits, with a dash for every run of anything else."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-")

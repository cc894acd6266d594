"""The environment that Prefect reads when it is imported: quiet, offline, with its server in the run folder."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from pathlib import Path

from pipeline.errors import UserError

EXTERNAL_VARIABLES = ("PREFECT_API_URL", "PREFECT_PROFILE")
"""A user who sets one of these has a Prefect of their own, whose settings are left as they are."""

TERMINAL = {
    # The terminal shows our progress bars. Prefect's server still gets every log line.
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "WARNING",
}
EMBEDDED = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_TELEMETRY_ENABLE_RESOURCE_METRICS": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
    "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "false",
    "PREFECT_CLIENT_MAX_RETRIES": "2",  # seconds, not minutes, because a dead server on this machine stays dead
}


def prepare(run_dir: Path) -> bool:
    """Set the variables that are not set yet, before Prefect is imported; returns whether the server is embedded.

    Raises:
        UserError: Prefect's database cannot lie in this folder.
    """
    if "PREFECT_LOGGING_LEVEL" not in os.environ:
        _set_defaults(TERMINAL)
    if any(name in os.environ for name in EXTERNAL_VARIABLES):
        return False
    home = run_dir.resolve() / "prefect"
    if odd := sorted(set("?#%") & set(str(home))):
        raise UserError(
            f"{run_dir.resolve()} has a {odd[0]!r}, after which Prefect's database would lie elsewhere; choose another "
            "--run-dir, or pass --no-prefect"
        )
    _set_defaults({**EMBEDDED, "PREFECT_HOME": str(home), **_nobody_elses()})
    for name in ("no_proxy", "NO_PROXY"):  # a proxy cannot reach our loopback
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), "127.0.0.1"]))
    return True


def import_prefect() -> None:
    """Import Prefect with these variables alone: it would read .env, prefect.toml and pyproject.toml where we are."""
    with contextlib.chdir(os.sep):
        importlib.import_module("prefect.context")


def _nobody_elses() -> dict[str, str]:
    """Settings that a run folder or a current folder from elsewhere could make: a logging.yml names classes, which run.

    Variables come before all files.
    """
    spec = importlib.util.find_spec("prefect")
    assert spec is not None
    assert spec.origin is not None
    logging = Path(spec.origin).parent / "logging" / "logging.yml"
    return {"PREFECT_LOGGING_CONFIG_PATH": str(logging), "PREFECT_PROFILES_PATH": os.devnull}


def _set_defaults(variables: dict[str, str]) -> None:
    for name, value in variables.items():
        os.environ.setdefault(name, value)

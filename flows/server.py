"""The embedded Prefect server: a child process that dies with its parent, on a SQLite file in the run folder.

Prefect would start the same server by itself. But that one survives a kill of its parent, and a Ctrl-C in the terminal
ends it before the flow has reported its end.
"""

from __future__ import annotations

import atexit
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from pipeline.errors import UserError
from pipeline.files import open_to_append
from pipeline.stages.launch import child_variables
from pipeline.stages.owner import die_with_parent

VARIABLES = {
    "PREFECT__SERVER_EPHEMERAL": "1",  # leaves out the services that schedule and clean up
    "PREFECT__SERVER_FINAL": "1",
    "PREFECT_UI_ENABLED": "0",
}
STOP_S = 5.0


class NotStarted(Exception):
    """The embedded server does not answer, as on a machine that is too busy."""


def start_server() -> None:
    """Start the server for the rest of this process, and set the variables by which this process and its children talk
    to it: PREFECT_API_URL, and a password of this run, so that no other user and no web page can.

    It reads PREFECT_HOME and PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS, which flows.settings sets.

    Raises:
        NotStarted: the server did not answer in time, or it ended.
        UserError: its log cannot be written.
    """
    home = Path(os.environ["PREFECT_HOME"])
    log_path = home / "server.log"
    try:
        if home.is_symlink():
            raise UserError(f"{home} is a link to what others may have made; remove it, or choose another --run-dir")
        home.mkdir(parents=True, exist_ok=True)
        log_file = open_to_append(log_path)
    except OSError as error:
        raise UserError(
            f"cannot write in {home}: {error.strerror}; choose another --run-dir, or fix permissions"
        ) from error
    password = f"selftrain:{secrets.token_urlsafe()}"
    # The server takes over a socket that already listens, so no other process can take its port.
    with socket.create_server(("127.0.0.1", 0)) as listener, log_file as log:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/api"
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.server", str(listener.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=os.sep,  # Prefect would read settings from files of the current folder
            env=child_variables({**VARIABLES, "PREFECT_SERVER_API_AUTH_STRING": password}),
            pass_fds=(listener.fileno(),),
            process_group=0,
        )
    atexit.register(_stop, process)
    timeout_s = float(os.environ["PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"])
    if not _wait_until_healthy(url, process, timeout_s):
        ended = process.poll() is not None
        _stop(process)
        raise NotStarted(f"it ended, see {log_path}" if ended else f"it does not answer after {timeout_s:g} s")
    os.environ |= {"PREFECT_API_URL": url, "PREFECT_API_AUTH_STRING": password}


def _wait_until_healthy(url: str, process: subprocess.Popen[bytes], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while process.poll() is None and (left := deadline - time.monotonic()) > 0:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=left) as response:
                return bool(response.status == 200)
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def main() -> None:
    """Serve on the listening socket whose descriptor the command line gives."""
    die_with_parent(signal.SIGKILL)
    import uvicorn

    listener = socket.socket(fileno=int(sys.argv[1]))
    config = uvicorn.Config("prefect.server.api.server:create_app", factory=True, log_level="error", lifespan="on")
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()

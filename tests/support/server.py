"""A real `prefect server start`, as people run it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from support.command import environment
from support.waiting import LIMIT_S, wait_for


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def call(url: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=LIMIT_S) as response:
        return json.loads(response.read())


def answer(url: str, body: Any = None) -> Any:
    """What `call` returns, or None where nobody serves yet."""
    with contextlib.suppress(OSError):
        return call(url, body)


@contextlib.contextmanager
def prefect_server(home: Path, **variables: str) -> Iterator[dict[str, str]]:
    """`prefect server start` on a free port; yields the variables of its clients, and SERVER_PID."""
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    of_clients = {
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": url,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "1",
        "DO_NOT_TRACK": "1",
        **variables,
    }
    home.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with open(home / "server.log", "wb") as log:
        server = subprocess.Popen(
            command, env=environment(**of_clients), stdout=log, stderr=log, start_new_session=True
        )
    try:
        wait_for(lambda: server.poll() is not None or answer(f"{url}/health"), poll_s=0.3)
        assert server.poll() is None, (home / "server.log").read_text()
        yield of_clients | {"SERVER_PID": str(server.pid)}
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()

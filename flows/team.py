"""`make team`: a Prefect server, two pools, their workers and the deployments of prefect.yaml, all on this machine.

It is what docs/operations.md sets up on several machines, to look at and to try. All that it starts ends with it. After
`kill -9` the server and the workers end as well, but a run under way goes on to its end.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import psutil
import typer

from pipeline.errors import EXIT_INTERRUPTED, EXIT_USER_ERROR, Interrupted, UserError
from pipeline.stages.interrupt import SIGNALS
from pipeline.stages.owner import die_with_parent

POOLS = {"gpu": 1, "cpu": 4}
"""The pools, and how many runs each takes at a time."""
STOP_S = 20.0
HEALTHY_S = 600.0
ASK_S = 10.0
QUIET = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    "PREFECT_CLI_PROMPT": "false",
}


def main(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The team's folder: train.yaml, shards, incoming.")],
    prefect_file: Annotated[Path, typer.Option("--prefect-file", help="The deployments.")] = Path("prefect.yaml"),
    port: Annotated[int, typer.Option(help="Of the server; 0 takes a free one.")] = 4200,
) -> None:
    """Start all of it, say where the UI is, and wait for Ctrl-C.

    The database is PREFECT_SERVER_DATABASE_CONNECTION_URL (PostgreSQL) if that is set, else SQLite in DIR/prefect.
    """
    folder = folder.resolve()
    if not (folder / "train.yaml").exists():
        raise UserError(f"{folder} has no train.yaml, the config of the runs; write one, or let `make team` do so")
    (folder / "incoming").mkdir(exist_ok=True)
    stop = threading.Event()
    for number in SIGNALS:
        signal.signal(number, lambda *_: stop.set())
    with team(folder, prefect_file.resolve(), port, stop.is_set) as (url, processes):
        print(f"The UI is at {url}; images go into {folder / 'incoming'}; Ctrl-C ends it all", flush=True)
        while not stop.wait(0.2):
            if ended := [name for name, process in processes.items() if process.poll() is not None]:
                raise UserError(f"{ended[0]} has ended; see {folder / 'prefect' / ended[0]}.log")


@contextlib.contextmanager
def team(
    folder: Path, prefect_file: Path, port: int, stopped: Callable[[], bool]
) -> Iterator[tuple[str, dict[str, subprocess.Popen[bytes]]]]:
    """Start a server, pools, workers and deployments; yields the UI's address, and the processes by name.

    Args:
        folder: The team's folder; the server's home and the logs are in its subfolder `prefect`.
        prefect_file: The deployments.
        port: The server's; 0 takes a free one.
        stopped: Is asked while the server starts, and ends that.

    Raises:
        UserError: the port is taken, the server does not start, or a command of `prefect` fails.
        Interrupted: it was stopped before the server had started.
    """
    port = port or _free_port()
    _check_free(port)
    url = f"http://127.0.0.1:{port}"
    home = folder / "prefect"
    home.mkdir(exist_ok=True)
    variables = {
        **{name: value for name, value in os.environ.items() if name not in ("PREFECT_API_URL", "PREFECT_PROFILE")},
        **QUIET,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": f"{url}/api",
        "PREFECT_SERVER_UI_API_URL": f"{url}/api",
        "SELFTRAIN_TEAM": str(folder),
    }
    processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(name: str, *arguments: str) -> None:
        with open(home / f"{name}.log", "ab") as log:
            processes[name] = subprocess.Popen(
                [sys.executable, "-m", "prefect", *arguments],
                cwd=folder,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_as_a_child,
            )

    try:
        start("server", "server", "start", "--host", "127.0.0.1", "--port", str(port))
        _wait_until_healthy(url, processes["server"], home, stopped)
        _create_pools(f"{url}/api")
        for pool in POOLS:
            start(f"worker-{pool}", "worker", "start", "--pool", pool, "--name", f"{pool}-1")
        _deploy(prefect_file, folder, variables)
        yield url, processes
    finally:
        _stop(list(processes.values()))


def _create_pools(api_url: str) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.settings import PREFECT_API_URL, temporary_settings
    from prefect.workers.process import ProcessWorker

    template = ProcessWorker.get_default_base_job_template()
    with temporary_settings({PREFECT_API_URL: api_url}), get_client(sync_client=True) as client:
        for name, limit in POOLS.items():
            pool = WorkPoolCreate(name=name, type="process", base_job_template=template, concurrency_limit=limit)
            client.create_work_pool(pool, overwrite=True)


def _deploy(prefect_file: Path, folder: Path, variables: dict[str, str]) -> None:
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(prefect_file)]
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{prefect_file} cannot be deployed:\n{done.stdout}{done.stderr}")


def _as_a_child() -> None:
    """Prepare a child. A shell that starts us in the background has SIGINT ignored, and Prefect's worker ends by it."""
    die_with_parent(signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _check_free(port: int) -> None:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError as error:
        raise UserError(f"port {port} is taken ({error.strerror}); name another one with --port") from error


def _wait_until_healthy(url: str, server: subprocess.Popen[bytes], home: Path, stopped: Callable[[], bool]) -> None:
    deadline = time.monotonic() + HEALTHY_S
    while server.poll() is None and time.monotonic() < deadline:
        with (
            contextlib.suppress(urllib.error.URLError, OSError),
            urllib.request.urlopen(f"{url}/api/health", timeout=ASK_S) as answer,
        ):
            if answer.status == 200:
                return
        if stopped():
            raise Interrupted("stopped before the Prefect server had started")
        time.sleep(0.2)
    raise UserError(f"the Prefect server did not start; see {home / 'server.log'}")


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """End the workers, and the server when the runs below them have saved themselves and told it."""
    server, workers = processes[:1], processes[1:]
    below = _end(workers)
    psutil.wait_procs(below, timeout=STOP_S)
    below += _end(server)
    for child in below:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.wait()


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> list[psutil.Process]:
    """Ask processes to end, and wait for it; returns what they had started, which may live on."""
    below = {child for process in processes for child in _descendants(process.pid)}
    for process in processes:
        process.terminate()
    for process in processes:
        below |= set(_descendants(process.pid))
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
    return list(below)


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    try:
        app()
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)

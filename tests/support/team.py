"""A team's Prefect, for real: a server on PostgreSQL (else on SQLite), a work pool, workers, and runs of a deployment.

Processes are killed and restarted by tests, so each has its own handle, and `Team.close` ends what is left.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from uuid import UUID

import psutil
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun, State
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings
from prefect.states import Cancelling, Scheduled

from pipeline.config import Config, dump_yaml
from pipeline.files import read_json
from support.command import environment
from support.server import free_port
from support.waiting import LIMIT_S, wait_for

POSTGRES = max(Path("/usr/lib/postgresql").glob("*/bin"), default=Path("/nowhere"))
HAS_POSTGRES = (POSTGRES / "initdb").exists() and (os.geteuid() != 0 or shutil.which("setpriv") is not None)
POOL = "gpu"
KEEPER = f"{sys.executable} -m flows.engine"


class SameBits(Protocol):
    """Asserts that a run left the same models, labels, selection and result as an undisturbed one in so many
    processes."""

    def __call__(self, run_dir: Path, processes: int = 1) -> None: ...


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """A PostgreSQL of an unprivileged user in a temporary folder; yields the URL of its database."""
    unprivileged: list[str] = []
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        unprivileged = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    data = Path(subprocess.check_output([*unprivileged, "mktemp", "-d", "/tmp/selftrain-pg-XXXXXX"], text=True).strip())
    port = free_port()
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={data} -c fsync=off"
    pg_ctl = [*unprivileged, str(POSTGRES / "pg_ctl"), "-D", str(data / "db"), "-t", str(int(LIMIT_S))]
    initdb = [*unprivileged, str(POSTGRES / "initdb"), "-D", str(data / "db"), "-U", "prefect", "-A", "trust"]
    quiet = {"check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run(initdb, **quiet)  # type: ignore[call-overload]
    subprocess.run([*pg_ctl, "-w", "-o", options, "-l", str(data / "log"), "start"], **quiet)  # type: ignore[call-overload]
    try:
        yield f"postgresql+asyncpg://prefect@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run([*pg_ctl, "-m", "immediate", "-w", "stop"], **quiet)  # type: ignore[call-overload]
        shutil.rmtree(data)


@dataclass
class Team:
    """The server, its workers, and the runs of the deployment, in a folder of logs."""

    folder: Path
    database: str | None = None
    variables: dict[str, str] = field(default_factory=dict)
    """The variables of the server's clients."""
    server: subprocess.Popen[bytes] | None = None
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        url = f"http://127.0.0.1:{free_port()}/api"
        self.variables |= {
            "PREFECT_HOME": str(self.folder / "home"),
            "PREFECT_API_URL": url,
            "PREFECT_SERVER_UI_API_URL": url,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_TELEMETRY_ENABLE_RESOURCE_METRICS": "false",
            "DO_NOT_TRACK": "1",
            "PREFECT_WORKER_QUERY_SECONDS": "2",
        }
        if self.database is not None:
            self.variables["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = self.database
        (self.folder / "home").mkdir(parents=True, exist_ok=True)

    # ------------------------------------------------------------------------------------------------------- processes

    def start_server(self) -> None:
        port = self.variables["PREFECT_API_URL"].split(":")[2].split("/")[0]
        command = ["server", "start", "--host", "127.0.0.1", "--port", port]
        self.server = self._start("server", *command)

        def answers() -> bool:
            assert self.server is not None
            assert self.server.poll() is None, (self.folder / "server.log").read_text()
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.variables['PREFECT_API_URL']}/health"):
                return True
            return False

        wait_for(answers, poll_s=0.3)

    def kill_server(self) -> None:
        assert self.server is not None
        os.killpg(self.server.pid, signal.SIGKILL)  # it is two processes
        self.server.wait()

    def start_worker(self) -> subprocess.Popen[bytes]:
        name = f"worker-{len(self.workers)}"
        self.workers.append(self._start(name, "worker", "start", "--pool", POOL, "--type", "process", "--name", name))
        wait_for(lambda: b"started!" in (self.folder / f"{name}.log").read_bytes(), poll_s=0.3)
        return self.workers[-1]

    def log(self, worker: int) -> bytes:
        """What a worker and its runs have printed."""
        return (self.folder / f"worker-{range(len(self.workers))[worker]}.log").read_bytes()

    def stop_workers(self) -> None:
        for worker in self.workers:
            if worker.poll() is None:
                worker.kill()
            worker.wait()

    def close(self) -> None:
        self.stop_workers()
        if self.server is not None and self.server.poll() is None:
            self.kill_server()
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                process.kill()

    def processes(self, run_dir: Path | None = None) -> list[psutil.Process]:
        """The processes of runs that live: all engines and keepers, or those whose command line names a run folder."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                line = " ".join(process.cmdline())
                mine = process.environ().get("PREFECT_HOME") == self.variables["PREFECT_HOME"]
                if process.status() == psutil.STATUS_ZOMBIE or not mine:
                    continue
                if str(run_dir) in line if run_dir else "flows.engine" in line or "prefect.engine" in line:
                    found.append(process)
        return found

    def engine(self, run_id: UUID) -> psutil.Process:
        """The process that runs the flow."""

        def find() -> psutil.Process | None:
            for process in self.processes():
                with contextlib.suppress(psutil.Error):
                    variables = process.environ()
                    is_engine = "SELFTRAIN_KEPT" in variables or "prefect.engine" in " ".join(process.cmdline())
                    if is_engine and variables.get("PREFECT__FLOW_RUN_ID") == str(run_id):
                        return process
            return None

        found = wait_for(find, poll_s=0.3)
        assert found is not None
        return found

    def _start(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        with open(self.folder / f"{name}.log", "ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "prefect", *command],
                env=environment(**self.variables, OMP_NUM_THREADS="1"),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    # ------------------------------------------------------------------------------------------------- pool, deployment

    @contextlib.contextmanager
    def client(self) -> Iterator[Any]:
        urls = {PREFECT_API_URL: self.variables["PREFECT_API_URL"], PREFECT_HOME: self.folder / "home"}
        with temporary_settings(urls), get_client(sync_client=True) as client:
            yield client

    def set_up(self, limit: int = 1) -> None:
        """Make the pool, with a concurrency limit."""
        with self.client() as client:
            client.create_work_pool(WorkPoolCreate(name=POOL, type="process", concurrency_limit=limit))

    def limit_pool(self, limit: int) -> None:
        with self.client() as client:
            client.update_work_pool(POOL, WorkPoolUpdate(concurrency_limit=limit))

    def run(
        self,
        config: Config,
        run_dir: Path,
        *,
        command: str | None = KEEPER,
        env: Mapping[str, str] | None = None,
        **deployment: Any,
    ) -> UUID:
        """Start a run through a deployment, as its form does, with variables of its own; returns the flow run's id."""
        path = run_dir.with_suffix(".yaml")
        path.write_text(dump_yaml(config))
        parameters = {"config": str(path), "run_dir": str(run_dir)}
        variables: dict[str, Any] = {"env": {"PYTHONPATH": environment()["PYTHONPATH"], **(env or {})}}
        variables |= {"command": command} if command else {}
        with self.client() as client:
            flow_id = client.create_flow_from_name("self-train")
            name = f"{run_dir.parent.name}-{run_dir.name}"
            where = {"entrypoint": "flows.flow.self_train", "work_pool_name": POOL, "job_variables": variables}
            deployment_id = client.create_deployment(flow_id, name, **where, **deployment)
            return client.create_flow_run_from_deployment(deployment_id, parameters=parameters).id  # type: ignore[no-any-return]

    def train(self, config: Config, run_dir: Path, step: int = 20, **options: Any) -> UUID:
        """Start a run, and wait until its teacher has come to a step; returns its id."""
        run = self.run(config, run_dir, **options)
        wait_for(trains(run_dir, step), poll_s=0.3)
        return run

    # ------------------------------------------------------------------------------------------------------------ a run

    def read(self, run_id: UUID) -> FlowRun:
        with self.client() as client:
            return client.read_flow_run(run_id)  # type: ignore[no-any-return]

    def state(self, run_id: UUID) -> State[Any]:
        state = self.read(run_id).state
        assert state is not None
        return state

    def states(self, run_id: UUID) -> list[State[Any]]:
        """All of its states, in order."""
        with self.client() as client:
            return sorted(client.read_flow_run_states(run_id), key=lambda state: state.timestamp)

    def history(self, run_id: UUID) -> list[str]:
        """The names of its states, in order."""
        return [state.name or "" for state in self.states(run_id)]

    def message(self, run_id: UUID, name: str) -> str | None:
        """The message of its last state of a name."""
        return next((state.message for state in reversed(self.states(run_id)) if state.name == name), None)

    def task_states(self, run_id: UUID) -> list[State[Any]]:
        """The states of its tasks, once all of them are final; they arrive as events."""
        ours = FlowRunFilter(id=FlowRunFilterId(any_=[run_id]))

        def final() -> list[State[Any]]:
            with self.client() as client:
                states = [task.state for task in client.read_task_runs(flow_run_filter=ours)]
            return states if all(state and state.is_final() for state in states) else []

        return wait_for(final, poll_s=0.3)

    def until(self, run_id: UUID, *names: str) -> State[Any]:
        """Wait until the run has a state of one of these names; other ends fail at once."""

        def there() -> State[Any] | None:
            state = self.state(run_id)
            assert state.name in names or not state.is_final(), f"{state.name}: {state.message}"
            return state if state.name in names else None

        state = wait_for(there, poll_s=0.5)
        assert state is not None
        return state

    def until_name(self, run_id: UUID, name: str) -> None:
        """Wait until the run has or had a state of this name."""
        wait_for(lambda: name in self.history(run_id), poll_s=0.5)

    def retry(self, run_id: UUID) -> None:
        """Retry, or start a scheduled run at once, as the UI does."""
        with self.client() as client:
            client.set_flow_run_state(run_id, Scheduled(message="now"), force=True)

    def cancel(self, run_id: UUID) -> None:
        """Cancel, as the UI does."""
        with self.client() as client:
            client.set_flow_run_state(run_id, Cancelling())


def trains(run_dir: Path, step: int) -> Callable[[], bool]:
    """Whether the teacher of the run has come to a step."""

    def is_there() -> bool:
        for folder in run_dir.glob("rounds/0/train-*"):
            with contextlib.suppress(OSError, ValueError):
                if read_json(folder / "progress.json")["done"] >= step:
                    return True
        return False

    return is_there

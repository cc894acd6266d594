"""The flow on Prefect's test server, called as the command calls it, and what the server knows of it then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support.waiting import wait_for


def run_watched(folder: Path, config: str = "seed: 5\n", **options: Any) -> dict[str, Any]:
    """Call the flow as the command does, with this config and the run folder FOLDER/run."""
    from flows.flow import self_train
    from flows.watch import watched

    (folder / "birds.yaml").write_text(config)
    options = {"run_dir": str(folder / "run"), **options}
    return watched(lambda: self_train(str(folder / "birds.yaml"), **options))  # type: ignore[no-any-return]


def last_flow_run(num_tasks: int) -> tuple[Any, list[Any]]:
    """The newest flow run, and its task runs once the server has recorded so many, in order."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
    from prefect.client.schemas.sorting import FlowRunSort

    with get_client(sync_client=True) as client:
        (run,) = client.read_flow_runs(limit=1, sort=FlowRunSort.EXPECTED_START_TIME_DESC)
        tasks: list[Any] = []

        def are_recorded() -> bool:
            tasks[:] = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id])))
            return len(tasks) == num_tasks and all(task.state and task.state.is_final() for task in tasks)

        wait_for(are_recorded, poll_s=0.1)  # they arrive as events
    return run, sorted(tasks, key=lambda task: task.start_time or run.created)


def logs_of(run: Any, *expected: str) -> list[str]:
    """The log of a flow run in the UI, once it has these lines."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId

    found: list[str] = []
    with get_client(sync_client=True) as client:

        def are_there() -> bool:
            logs = client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run.id])))
            found[:] = [log.message for log in logs]
            return set(expected) <= set(found)

        wait_for(are_there, poll_s=0.1)  # they are sent in batches
    return found

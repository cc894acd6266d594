"""What a flow run is called, and by which tags it is found."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext

import pipeline
from pipeline.config import Config, load_config
from pipeline.errors import UserError
from pipeline.methods import METHODS
from pipeline.stages.fingerprint import code_version
from pipeline.stages.plugins import load_plugins


def run_name() -> str:
    """The name of the flow run under way, such as `birds: Noisy Student`: its run folder and its method.

    If the config cannot be read, which the run itself tells, it is the folder's name alone.
    """
    context = FlowRunContext.get()
    assert context is not None
    given = context.parameters or {}
    folder = Path(given["run_dir"]).absolute().name
    try:
        load_plugins()
        config = load_config(Path(given["config"]), given["set"])
    except UserError:
        return folder
    return f"{folder}: {METHODS[config.method].title}"


def tags_of(config: Config) -> list[str]:
    """The tags of a run: what it learns from, how, and by which code."""
    commit = code_version(Path(pipeline.__file__).parents[1])
    code = f"selftrain:{pipeline.__version__}" if commit == "unknown" else f"commit:{commit}"
    return [f"data:{data_name(config)}", f"method:{config.method}", code]


def data_name(config: Config) -> str:
    """The name of the folder of the images, or of the first of their folders or tars."""
    data = config.data
    first = next((path for path in (data.root, *data.unlabeled, *data.labeled) if path is not None), Path())
    folder = first.parent if PurePosixPath(first.name).suffix or "*" in first.name else first
    return folder.name or Path.cwd().name


def tag_run(tags: list[str]) -> None:
    """Add tags to the flow run under way, beside those that it has, as of its deployment.

    Raises:
        httpx.HTTPError: the server does not answer.
    """
    context = FlowRunContext.get()
    assert context is not None
    run = context.flow_run
    if run is None or set(tags) <= set(run.tags):
        return
    with get_client(sync_client=True) as client:
        client.update_flow_run(run.id, tags=[*run.tags, *(tag for tag in tags if tag not in run.tags)])

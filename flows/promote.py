"""Promotion and rollback as a Prefect flow, and the link that opens its form filled in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import UUID

from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowFilter, FlowFilterName
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.settings import PREFECT_UI_URL
from prefect.states import Completed

from flows.body import run_body
from pipeline.champions.promotion import promote as promote_model

NAME = "promote"


def _run_name() -> str:
    return Path(flow_run.parameters["champion"]).name


@flow(name=NAME, flow_run_name=_run_name, persist_result=False)
def promote(*, model: str = "", champion: str, reason: str = "", rollback: bool = False) -> State[None]:
    """Make a model the champion of a registry, or go back to the champion before this one.

    Args:
        model: What is promoted: a run folder, a stage folder or an exported file. Leave it empty for a rollback.
        champion: The folder of the registry, which is made if it is new.
        reason: Why, for the history of the registry.
        rollback: Go back to the champion before this one.
    """

    def swap() -> State[Any]:
        done = promote_model(Path(model) if model else None, Path(champion), reason, rollback)
        return Completed(message=f"{champion}: {done}")

    return run_body(swap)


def promotion_link(ui_url: str, deployment_id: UUID | str, model: str, champion: str, reason: str) -> str:
    """The address in the Prefect UI that opens the form of the flow `promote` with these values filled in.

    Args:
        ui_url: The address of the UI, such as http://127.0.0.1:4200.
        deployment_id: The deployment of `promote`.
        model: What is to be promoted.
        champion: The folder of the registry.
        reason: Why, which whoever reads the form may change.
    """
    values = json.dumps({"model": model, "champion": champion, "reason": reason})
    values = values.replace("%", r"\u0025")  # the older of Prefect's two UIs decodes the address twice
    return f"{ui_url.rstrip('/')}/deployments/deployment/{deployment_id}/run?parameters={quote(values)}"


def find_promotion_link(model: str, champion: str, reason: str) -> str | None:
    """That address on the server of this run; None if `promote` is not deployed there, or the UI's address is unknown.

    Raises:
        httpx.HTTPError: the server does not answer.
    """
    ui_url = PREFECT_UI_URL.value()
    with get_client(sync_client=True) as client:
        found = client.read_deployments(flow_filter=FlowFilter(name=FlowFilterName(any_=[NAME])))
    if not found or not ui_url:
        return None
    deployment = min(found, key=lambda one: one.name != NAME)  # the one of prefect.yaml, if there are several
    return promotion_link(ui_url, deployment.id, model, champion, reason)

"""The flow `promote`, and the link that opens its form."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from uuid import uuid4

import pytest
from support.champions import CLASSES
from support.saved import save_random

from pipeline.champions.history import read_history
from pipeline.errors import UserError


def promote(**parameters: Any) -> Any:
    """The final state of the flow."""
    from flows.promote import promote as promote_flow

    return promote_flow(**parameters, return_state=True)


@pytest.mark.usefixtures("prefect_server")
def test_the_final_state_says_what_became_of_the_registry(tmp_path: Path) -> None:
    champion = str(tmp_path / "champions/birds")
    models = [str(save_random(tmp_path / f"{seed}.safetensors", CLASSES, seed=seed)) for seed in range(2)]
    first = promote(model=models[0], champion=champion, reason="the first one")
    assert first.message == f"{champion}: v1 ({models[0]}) is champion"
    assert promote(model=models[0], champion=champion).message.endswith("is the same model")
    second = promote(model=models[1], champion=champion, reason="better")
    assert second.message == f"{champion}: v2 ({models[1]}) is champion, in place of v1"
    back = promote(champion=champion, reason="it sees no owls", rollback=True)
    assert back.message == f"{champion}: v1 ({models[0]}) is champion again, in place of v2"
    assert [entry["reason"] for entry in read_history(Path(champion))] == ["the first one", "better", "it sees no owls"]


@pytest.mark.usefixtures("prefect_server")
def test_what_cannot_be_promoted_is_a_failed_run_with_the_message(tmp_path: Path) -> None:
    state = promote(model=str(tmp_path / "typo"), champion=str(tmp_path / "champions/birds"))
    assert state.is_failed()
    with pytest.raises(UserError, match="typo") as told:
        state.result()
    assert state.message == str(told.value)  # without a traceback
    assert not (tmp_path / "champions").exists()


@pytest.mark.parametrize("ui_url", ["http://prefect:4200", "http://prefect:4200/"])
def test_the_link_holds_every_value_as_it_is(ui_url: str) -> None:
    from flows.promote import promotion_link

    deployment = uuid4()
    values = {"model": "/runs/Vögel & co", "champion": "/champions/birds", "reason": 'test 97.1%, "+2.7"; ok?'}
    url = urlsplit(promotion_link(ui_url, deployment, **values))
    assert f"{url.scheme}://{url.netloc}{url.path}" == f"http://prefect:4200/deployments/deployment/{deployment}/run"
    assert json.loads(parse_qs(url.query)["parameters"][0]) == values
    assert json.loads(unquote(parse_qs(url.query)["parameters"][0])) == values  # Prefect's older UI decodes twice


def test_the_link_fills_in_parameters_of_the_flow() -> None:
    from flows.promote import promote as promote_flow
    from flows.promote import promotion_link

    url = urlsplit(promotion_link("http://x", "id", "m", "c", "r"))
    filled = json.loads(parse_qs(url.query)["parameters"][0])
    assert filled.keys() <= inspect.signature(promote_flow.fn).parameters.keys()


@pytest.mark.usefixtures("prefect_server")
def test_the_link_is_found_by_the_deployment_and_there_is_none_without(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_UI_URL, temporary_settings

    from flows.promote import find_promotion_link
    from flows.promote import promote as promote_flow

    with temporary_settings({PREFECT_UI_URL: "http://ui"}):
        assert find_promotion_link("m", "c", "r") is None
        with get_client(sync_client=True) as client:
            flow_id = client.create_flow(promote_flow)
            client.create_deployment(flow_id, "a copy")
            deployment = client.create_deployment(flow_id, "promote")
        link = find_promotion_link("m", "c", "r")
    assert link is not None
    assert link.startswith(f"http://ui/deployments/deployment/{deployment}/run?")

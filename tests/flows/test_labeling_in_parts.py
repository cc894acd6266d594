"""The flow of docs/scale_out.md that labels in parts, on a real server, with a process that serves its parts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL
from support.command import environment
from support.labeling_examples import example, of_parts, recording, typed
from support.waiting import LIMIT_S, wait_for

pytestmark = [pytest.mark.process, pytest.mark.slow]

CALL = "label_in_parts('birds.yaml', teacher='champion', run_dir='runs/birds', parts=3)"


def is_deployed() -> bool:
    with get_client(sync_client=True) as client:
        try:
            client.read_deployment_by_name("label-part/gpu")
        except ObjectNotFound:
            return False
    return True


def test_child_runs_type_the_parts(prefect_server: None, tmp_path: Path) -> None:
    (tmp_path / "labeling.py").write_text(example("python", "run_deployment"))
    variables = environment(PATH=recording(tmp_path), PREFECT_API_URL=str(PREFECT_API_URL.value()))
    variables |= {"PREFECT_HOME": str(tmp_path / "prefect"), "PYTHONPATH": str(tmp_path), "DO_NOT_TRACK": "1"}

    def python(code: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", f"from labeling import *; {code}"], cwd=tmp_path, env=variables)

    served = python("label_part.serve(name='gpu')")
    try:
        wait_for(lambda: served.poll() is not None or is_deployed(), poll_s=0.5)
        assert python(CALL).wait(LIMIT_S) == 0
    finally:
        served.terminate()
        served.wait(LIMIT_S)
    assert typed(tmp_path) == of_parts(3)

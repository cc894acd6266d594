"""What Prefect reads before a run: nothing that came with the current folder or with a run folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.command import environment

EVIL = """
version: 1
disable_existing_loggers: false
handlers: {evil: {class: evil_handler.Handler}}
root: {handlers: [evil]}
"""
NAMES = {
    ".env": "PREFECT_LOGGING_CONFIG_PATH={evil}\n",
    "prefect.toml": '[logging]\nconfig_path = "{evil}"\n',
    "pyproject.toml": '[tool.prefect.logging]\nconfig_path = "{evil}"\n',
    "run/prefect/logging.yml": EVIL.replace("{", "{{").replace("}", "}}"),
    "run/prefect/profiles.toml": 'active = "x"\n[profiles.x]\nPREFECT_LOGGING_CONFIG_PATH = "{evil}"\n',
}
CODE = """
import os, sys
from pathlib import Path
from flows.settings import import_prefect, prepare
if sys.argv[1] == "prepared":
    prepare(Path("run"))
    import_prefect()
else:
    os.environ["PREFECT_HOME"] = str(Path("run/prefect").resolve())
import prefect
from prefect.logging.configuration import setup_logging
setup_logging()
"""


@pytest.mark.process
@pytest.mark.parametrize("name", NAMES)
def test_a_folder_from_elsewhere_runs_no_code_through_prefects_settings(tmp_path: Path, name: str) -> None:
    (tmp_path / "evil.yml").write_text(EVIL)
    (tmp_path / "evil_handler.py").write_text("import logging\nprint('RAN')\nclass Handler(logging.Handler): pass\n")
    (tmp_path / "run/prefect").mkdir(parents=True)
    (tmp_path / name).write_text(NAMES[name].format(evil=tmp_path / "evil.yml"))
    env = environment()
    env = {**env, "PYTHONPATH": f"{env.get('PYTHONPATH', '')}:{tmp_path}"}
    env = {key: value for key, value in env.items() if not key.startswith("PREFECT")}

    def run(how: str) -> str:
        command = [sys.executable, "-c", CODE, how]
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True).stdout

    assert "RAN" in run("bare"), "so the test would notice"
    assert "RAN" not in run("prepared")


ASK = """
import json, os, urllib.error, urllib.request
from pathlib import Path
from flows.server import start_server
from flows.settings import import_prefect, prepare
prepare(Path("run"))
start_server()
import_prefect()
url = os.environ["PREFECT_API_URL"]
request = urllib.request.Request(f"{url}/flows/filter", b"{}", {"Content-Type": "application/json"})
try:
    urllib.request.urlopen(request)
    print("open")
except urllib.error.HTTPError as error:
    print(error.code)
from prefect.client.orchestration import get_client
with get_client(sync_client=True) as client:
    print(client.request("POST", "/flows/filter", json={}).json())
"""


@pytest.mark.process
def test_the_embedded_server_answers_nobody_without_the_password_of_the_run(tmp_path: Path) -> None:
    command = [sys.executable, "-c", ASK]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["401", "[]"]

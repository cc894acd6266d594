"""Pictures of the Prefect UI for the pages in docs/: `PYTHONPATH=tests python -m support.screenshots docs/images/ui`.

It takes the server of PREFECT_API_URL as it is, with a finished flow run on it, and headless Chromium. Add a page by a
row in PAGES; one whose subject is not on the server is left out, and said so.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from support.server import call

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
LIMIT_S = 300


class Page(NamedTuple):
    """One page of the UI."""

    path: Callable[[str], str | None]
    """From the API's URL to the page's path; None if what it shows is not there."""
    height: int = 1000
    """In pixels of the window, which the picture has too."""


def newest_run(api: str) -> dict[str, Any] | None:
    """The newest completed flow run of `self-train`."""
    which = {
        "flows": {"name": {"any_": ["self-train"]}},
        "flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}},
        "sort": "START_TIME_DESC",
        "limit": 1,
    }
    return next(iter(call(f"{api}/flow_runs/filter", which)), None)


def run_page(tab: str = "") -> Callable[[str], str | None]:
    """The page of the newest run, at one of its tabs."""

    def path(api: str) -> str | None:
        run = newest_run(api)
        return run and f"/runs/flow-run/{run['id']}{f'?tab={tab}' if tab else ''}"

    return path


def artifact(end: str) -> Callable[[str], str | None]:
    """The page of the newest run's artifact whose key ends so."""

    def path(api: str) -> str | None:
        run = newest_run(api)
        which = {"artifacts": {"flow_run_id": {"any_": [run["id"]]}}, "sort": "CREATED_DESC"} if run else {}
        found = call(f"{api}/artifacts/filter", which) if run else []
        first = next((a for a in found if str(a["key"]).endswith(end)), None)
        return first and f"/artifacts/artifact/{first['id']}"

    return path


def deployment(flow: str, page: str) -> Callable[[str], str | None]:
    """A page of the deployment of a flow, such as its form: `deployment("promote", "run")`."""

    def path(api: str) -> str | None:
        found = call(f"{api}/deployments/filter", {"flows": {"name": {"any_": [flow]}}, "limit": 1})
        return f"/deployments/deployment/{found[0]['id']}/{page}" if found else None

    return path


def filled_in(api: str) -> str | None:
    """The form of `promote`, filled in as by the link in the newest run's verdict."""
    run = newest_run(api)
    found = call(f"{api}/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run["id"]]}}}) if run else []
    links = re.findall(r"\]\(http://[^/]+(/\S+/run\?parameters=\S+)\)", "".join(str(a["data"]) for a in found))
    return links[0] if links else None


PAGES = {
    "runs": Page(lambda api: "/runs"),
    "run": Page(run_page("Details"), 1000),
    "logs": Page(run_page("Logs"), 2200),
    "artifacts": Page(run_page("Artifacts"), 1600),
    "leaderboard": Page(artifact("-leaderboard"), 700),
    "pool": Page(artifact("-pool"), 1900),
    "selection": Page(artifact("-selection"), 1100),
    "verdict": Page(artifact("-verdict"), 2850),
    "report": Page(artifact("-report"), 600),
    "progress": Page(artifact("-evaluate-on-test"), 600),
    "form": Page(deployment("self-train", "run"), 1250),
    "promote": Page(filled_in, 1000),
}


def shoot(url: str, file: Path, height: int) -> None:
    """Take a picture of one page once it has settled."""
    assert CHROMIUM is not None, "needs Debian's package chromium"
    with tempfile.TemporaryDirectory() as profile:
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={profile}"]
        flags += [f"--window-size=1400,{height}", "--virtual-time-budget=15000", f"--screenshot={file}"]
        subprocess.run([CHROMIUM, *flags, url], check=True, capture_output=True, timeout=LIMIT_S)
    Image.open(file).convert("P", palette=Image.Palette.ADAPTIVE).save(file, optimize=True)  # a third of the bytes


def main() -> None:
    """Take the pictures of all pages, or of those that are named after the folder."""
    out, names, api = Path(sys.argv[1]), sys.argv[2:] or list(PAGES), os.environ["PREFECT_API_URL"]
    out.mkdir(parents=True, exist_ok=True)
    for name in names:
        path = PAGES[name].path(api)
        if path is None:
            print(f"{name}: not on this server")
            continue
        shoot(f"{api.removesuffix('/api')}/v2{path}", out / f"{name}.png", PAGES[name].height)
        print(out / f"{name}.png")


if __name__ == "__main__":
    main()

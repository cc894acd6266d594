"""The report in a real browser: what people see, not what we wrote."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from support.waiting import LIMIT_S

from pipeline.report.page import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's package chromium"),
]

PROBE = """
<script>
const tiles = [...document.querySelectorAll('.tile')];
const sprites = new Map();
for (const tile of tiles) {
  const source = getComputedStyle(tile).backgroundImage.slice(5, -2);
  if (!sprites.has(source)) { sprites.set(source, new Image()); sprites.get(source).src = source; }
}
const sprite_of = tile => sprites.get(getComputedStyle(tile).backgroundImage.slice(5, -2));
window.onload = () => {  // waits for every image, and the dump waits for it
  document.querySelectorAll('details').forEach(details => details.open = true);
  const found = {
    images: [...document.images].map(image => image.naturalWidth),
    alts: [...document.images].map(image => image.alt),
    sprites: [...sprites.values()].map(image => image.naturalWidth),
    tiles: tiles.length,
    flat: tiles.filter(tile => tile.clientWidth < 32 || tile.clientHeight < 32).length,
    beyond: tiles.filter(tile =>
      tile.clientWidth - parseFloat(getComputedStyle(tile).backgroundPositionX) > sprite_of(tile).naturalWidth).length,
    wide: tiles.filter(tile => tile.clientWidth > tile.parentElement.clientWidth).length,
    rows: [...document.querySelectorAll('table')].map(table => table.tBodies[0].rows.length),
    boxes: document.querySelectorAll('svg.diagram rect').length,
    overflow: document.documentElement.scrollWidth - innerWidth,
    requests: performance.getEntriesByType('resource').map(e => e.name).filter(name => !name.startsWith('data:')),
    smuggled: document.querySelectorAll('td b i, h1 i, li i').length,
    text: document.body.innerText,
  };
  const result = document.createElement('pre');
  result.id = 'probe';
  result.textContent = JSON.stringify(found);
  document.body.append(result);
};
</script>
"""


def look(report: Path, folder: Path, width: int = 1200) -> dict[str, Any]:
    page = folder / "probed.html"
    page.write_text(report.read_text().replace("</body>", PROBE + "</body>"))
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    command += [f"--window-size={width},2000", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=True)
    found = re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stdout[-2000:] + done.stderr[-2000:]
    result: dict[str, Any] = json.loads(unescape(found[1]))
    return result


def test_every_image_and_table_renders(finished_run: Path, tmp_path: Path) -> None:
    seen = look(write_report(finished_run), tmp_path)
    assert len(seen["images"]) == 4 + 2 * 2  # accuracy, curves, calibration, confusion; two of each round
    assert all(width > 300 for width in seen["images"])
    assert all(seen["alts"])
    assert len(seen["sprites"]) == 2 * 3
    assert all(width >= 64 for width in seen["sprites"])
    assert seen["tiles"] > 100
    assert (seen["flat"], seen["beyond"], seen["wide"]) == (0, 0, 0)
    assert len(seen["rows"]) >= 6
    assert all(seen["rows"])
    assert seen["boxes"] == 1 + 2 * 3 + 1
    assert seen["requests"] == []
    assert seen["smuggled"] == 0
    for text in ("digits <i>demo</i>", "<b>four", "Round 2 student", "Kept, but wrong", "student:"):
        assert text in seen["text"]


def test_an_unfinished_run_renders_and_says_so(unfinished_run: Path, tmp_path: Path) -> None:
    seen = look(write_report(unfinished_run), tmp_path)
    assert all(seen["images"])
    assert all(seen["rows"])
    assert "not finished" in seen["text"]
    assert "under way" in seen["text"]


@pytest.mark.parametrize("width", [500, 1400])
def test_the_page_never_scrolls_sideways(finished_run: Path, tmp_path: Path, width: int) -> None:
    assert look(write_report(finished_run), tmp_path, width)["overflow"] <= 0

"""The documents say what holds: their commands run, their options and files exist."""

from __future__ import annotations

import importlib.util
import io
import json
import re
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image
from support.command import ROOT, environment, selftrain_here
from support.images import class_files, digit_files, png, write_files
from support.waiting import LIMIT_S
from typer.core import TyperGroup
from typer.main import get_command

from flows.verbs import app
from pipeline.config import Config, Evaluate, Runtime, Section, load_config
from pipeline.evaluate.on_demand import evaluate_on
from pipeline.stages.machine import resolve

DOCUMENTS = sorted(
    [
        ROOT / "README.md",
        ROOT / "CHANGELOG.md",
        ROOT / "SECURITY.md",
        ROOT / "shards/README.md",
        *(ROOT / "docs").rglob("*.md"),
    ]
)
SNIPPET = re.compile(r"```python\n(.*?)```", re.S)
RUNNABLE = re.compile(r"<!-- runnable -->\n```sh\n(.*?)```", re.S)


def documents() -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


def commands(text: str) -> list[list[str]]:
    """Every `selftrain VERB ...` of code blocks, as words."""
    blocks = re.findall(r"```sh\n(.*?)```", text, re.S) + re.findall(r"^    (selftrain .*)$", text, re.M)
    joined = (block.replace("\\\n", " ") for block in blocks)
    lines = [re.sub(r" --plugin \S+", "", line.strip()) for block in joined for line in block.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith("selftrain ")]


@documents()
def test_every_command_names_a_verb_and_options_that_exist(path: Path) -> None:
    group = get_command(app)
    assert isinstance(group, TyperGroup)
    for words in commands(path.read_text()):
        verb = group.commands[words[1]]
        options = {name for parameter in verb.params for name in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= options, words


@documents()
def test_every_link_leads_to_a_file(path: Path) -> None:
    links = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", path.read_text())
    absent = [link for link in links if "://" not in link and not (path.parent / link).exists()]
    assert absent == []


@documents()
def test_every_file_of_ours_that_is_named_exists(path: Path) -> None:
    named = re.findall(r"(?<![\w/])((?:pipeline|flows|configs|docs|benchmarks)/[\w/.-]*\w)", path.read_text())
    absent = [name for name in named if not (ROOT / name).exists()]
    assert absent == []


@documents()
def test_every_module_that_is_to_be_run_exists(path: Path) -> None:
    """As in `python -m pipeline.demos.digits`."""
    named = re.findall(r"\bpython -m ((?:pipeline|flows)[\w.]*)", path.read_text())
    assert [name for name in named if importlib.util.find_spec(name) is None] == []


@documents()
def test_every_test_that_is_named_exists(path: Path) -> None:
    named = set(re.findall(r"`(test_\w{20,})`", path.read_text()))  # shorter ones are keys, such as test_top1
    defined = {
        name for file in (ROOT / "tests").rglob("test_*.py") for name in re.findall(r"def (test_\w+)", file.read_text())
    }
    assert named - defined == set()


def is_key(key: str) -> bool:
    section: type[Section] | None = Config
    for part in re.sub(r"\.model_args\.\w+$", ".model_args", key).split("."):  # whose keys are the architecture's
        if section is None or part not in section.known_keys():
            return False
        section = section.known_keys()[part]
    return True


@documents()
def test_every_config_key_that_is_named_exists(path: Path) -> None:
    text = path.read_text()
    named = [
        key
        for key in re.findall(r"`([a-z]+\.[a-z_.]+)(?:: [^`]*)?`", text)
        if key.split(".")[0] in Config.model_fields and key.partition(".")[2] not in ("jsonl", "json", "yaml")
    ]
    pairs = [pair for words in commands(text) for pair in pairwise(words)]
    named += [value.partition("=")[0] for option, value in pairs if option == "--set"]
    assert [key for key in named if not is_key(key)] == []


def test_the_readme_has_a_row_for_every_verb() -> None:
    group = get_command(app)
    assert isinstance(group, TyperGroup)
    rows = set(re.findall(r"^\| `selftrain (\w+)", (ROOT / "README.md").read_text(), re.M))
    assert rows == set(group.commands)


@pytest.mark.process
def test_the_runnable_commands_of_the_pages_run(tmp_path: Path) -> None:
    """On made-up images in the folders that they name; `selftrain` is this checkout's."""
    write_files(tmp_path / "photos", class_files(200))
    write_files(tmp_path / "labeled", class_files(3, "cat dog", first=10_000))
    write_files(tmp_path / "crawl", class_files(5, "x y", first=20_000))
    write_files(tmp_path / "val", class_files(3, "cat dog", first=30_000))
    write_files(tmp_path / "test", class_files(3, "cat dog", first=40_000))
    labels = ["T-Shirt", "Pants", "Not sure", "Other"]
    rows = "".join(f"{number},{labels[number % 4]}\n" for number in range(200))
    clothes = {f"images/{number}.png": png(50_000 + number) for number in range(200)}
    write_files(tmp_path / "clothes", {**clothes, "labels.csv": f"image,label\n{rows}".encode()})
    text = "".join((ROOT / page).read_text() for page in ("README.md", "docs/packing.md"))
    blocks = RUNNABLE.findall(text)
    assert len(blocks) == 3
    script = f'set -eu\nselftrain() {{ "{sys.executable}" -m flows.cli "$@"; }}\n' + "\n".join(blocks)
    how = {"cwd": tmp_path, "env": environment(), "capture_output": True, "text": True, "timeout": LIMIT_S}
    done = subprocess.run(["bash", "-c", script], **how)
    assert done.returncode == 0, done.stdout + done.stderr
    config = load_config(tmp_path / "birds.yaml")
    assert config.data.root == Path("shards/birds")


@pytest.mark.process
@pytest.mark.parametrize("crop_pct", [1.0, 0.8])
def test_the_snippet_that_uses_a_model_runs_and_gives_the_accuracy_of_evaluate(
    crop_pct: float, teacher: Path, tmp_path: Path
) -> None:
    """As it stands, on digits of the size that the model sees, and on larger ones of which it sees the centre."""
    selftrain_here("export", teacher, "--out", tmp_path / "birds.safetensors")
    info = json.loads((tmp_path / "birds.json").read_text())
    (tmp_path / "birds.json").write_text(json.dumps({**info, "crop_pct": crop_pct}))
    for name, data in digit_files(-60, classes=info["classes"]).items():
        image = Image.open(io.BytesIO(data))
        if crop_pct < 1:
            wide = Image.new("RGB", (30, 20))  # of which the middle is read at 10 x 10, and the digit is the centre
            wide.paste(image.resize((16, 16), Image.Resampling.BICUBIC), (7, 2))
            image = wide
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    image.convert("RGB").save(tmp_path / "photo.jpg")
    (snippet,) = SNIPPET.findall((ROOT / "README.md").read_text())
    count = (
        "import pathlib\npaths = list(pathlib.Path('images').glob('*/*.png'))\n"
        "print(sum(classify(path)[0] == path.parent.name for path in paths) / len(paths))"
    )
    (tmp_path / "use.py").write_text(snippet + count)
    how = {"cwd": tmp_path, "env": environment(), "capture_output": True, "text": True, "timeout": LIMIT_S}
    done = subprocess.run([sys.executable, "use.py"], **how)
    assert done.returncode == 0, done.stderr
    found = float(done.stdout.splitlines()[-1])
    how_measured = Evaluate(), resolve(Runtime(device="cpu", threads=1, precision="fp32"))
    expected = evaluate_on(tmp_path / "birds.safetensors", tmp_path / "images", "val", *how_measured).metrics.top1
    assert found == expected > 0.5

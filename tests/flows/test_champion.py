"""The champion of a registry is the first teacher of a run, and the run's result succeeds it if it is better."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from support import fake_run
from support.champions import CLASSES, answers, even_model, pack_val, run_with
from support.saved import save_random
from support.watched import last_flow_run, run_watched

from flows.succession import asked, champion_here, config_of, tag_of
from pipeline.champions.history import read_history
from pipeline.champions.promotion import promote
from pipeline.config import Config
from pipeline.errors import UserError

ON_FEATURES = """
teacher:
  {model: wide_resnet10_1, weak: {flip: false}, balance_labeled: 9, start: {model: runs/x, mode: init}, probe: {}}
committee: [{model: wide_resnet16_2, start: {model: runs/y, mode: init}, probe: {}}]
rounds: {on_features: 2, num_rounds: 1}
"""


@pytest.fixture
def registry(tmp_path: Path) -> Path:
    """A registry with two champions."""
    for seed in range(2):
        promote(save_random(tmp_path / f"{seed}.safetensors", CLASSES, seed=seed), tmp_path / "birds")
    return tmp_path / "birds"


# --------------------------------------------------------------------------------------------------- the first teacher


def test_the_champion_is_used_in_place_of_the_whole_teacher(tmp_path: Path, registry: Path) -> None:
    path = tmp_path / "birds.yaml"
    path.write_text(ON_FEATURES)
    champion = champion_here(registry, "never", ())
    config = config_of(path, ["seed=3"], champion)
    assert config.teacher.start is not None
    assert (config.teacher.start.model, config.teacher.start.mode) == (str(registry / "v2.safetensors"), "use")
    assert (config.teacher.probe, config.rounds.on_features, config.committee) == (None, 0, ())
    assert (config.teacher.weak.flip, config.teacher.balance_labeled) == (False, 9)
    assert (config.seed, config.rounds.num_rounds) == (3, 1)


def test_without_a_champion_or_without_rounds_it_is_trained_as_the_config_says(tmp_path: Path, registry: Path) -> None:
    path = tmp_path / "birds.yaml"
    path.write_text(ON_FEATURES)
    assert champion_here(tmp_path / "new", "if better", ()) is None
    assert config_of(path, [], None).teacher.probe is not None
    path.write_text("method: uda\n")
    assert config_of(path, [], champion_here(registry, "never", ())) == Config(method="uda")


def test_a_run_that_starts_again_keeps_its_teacher_though_it_promoted_its_student(registry: Path) -> None:
    first = champion_here(registry, "never", ())
    assert first is not None
    assert tag_of(first) == "teacher:v2"
    promote(save_random(registry.parent / "2.safetensors", CLASSES, seed=2), registry)
    assert champion_here(registry, "never", ("data:birds", tag_of(first))) == first
    assert champion_here(registry, "never", ()) == registry / "v3.safetensors"


def test_what_cannot_be_promoted_is_told_at_the_beginning(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"promote is 'ask', but champion names no registry; name its folder"):
        champion_here(None, "ask", ())
    assert champion_here(None, "never", ()) is None
    (tmp_path / "photo.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"has files, such as photo\.png, but is no registry"):
        champion_here(tmp_path, "if better", ())


def test_who_is_asked_gets_a_link_and_a_command() -> None:
    said = asked("http://team/run?parameters=%7B%7D", Path("/runs/my birds"), Path("/champions/birds"))
    assert "](http://team/run?parameters=%7B%7D)" in said
    (command,) = [part for part in said.split("`") if part.startswith("selftrain promote")]
    assert shlex.split(command)[2:] == ["/runs/my birds", "--to", "/champions/birds"]
    assert "deploy `promote`" in asked(None, Path("/runs/birds"), Path("/champions/birds"))


# ------------------------------------------------------------------------------------------------------------ the flow

N = 60


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, `strong` and `weak`; the val of both is answered without a mistake by the first one's model."""
    folder = tmp_path_factory.mktemp("runs")
    images = pack_val(folder / "base", [0] * N)
    strong, weak = (even_model(folder / f"{name}.safetensors", images, s) for s, name in enumerate(("strong", "weak")))
    data = pack_val(folder / "val", answers(strong, images).tolist())
    for model in (strong, weak):
        run_with(folder / model.stem, model, data)
    return folder


@pytest.mark.usefixtures("prefect_server", "instant_stages", "same_threads")
def test_a_better_result_becomes_champion_and_a_worse_one_is_refused_in_a_completed_run(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows import flow

    seen: list[Config] = []

    def look(config: Config, *arguments: Any, **options: Any) -> dict[str, Any]:
        seen.append(config)
        return fake_run.fake_loop(config, *arguments, **options)

    monkeypatch.setattr(flow, "run_loop", look)
    registry = tmp_path / "birds"
    options = {"champion": str(registry), "promote": "if better"}
    for run_dir, version, name, said in (
        (runs / "weak", 1, "Promoted", f"v1 ({runs / 'weak'}) is champion"),
        (runs / "strong", 2, "Promoted", "in place of v1"),
        (runs / "weak", 2, "Stays", f"v2 ({runs / 'strong'}) stays champion: {runs / 'weak'} is not better. "),
    ):
        for stale in run_dir.glob("label-*/done"):
            stale.unlink()
        run_watched(tmp_path, run_dir=str(run_dir), **options)
        run, tasks = last_flow_run(num_tasks=3)
        assert run.state.name == "Completed"
        assert run.state.message.startswith("test 75.0%")
        assert said in run.state.message
        assert (tasks[-1].name, tasks[-1].state.name) == ("promote if better", name)
        assert tasks[-1].task_inputs["wait_for"]
        entry = read_history(registry)[-1]
        assert entry["version"] == version
        if name == "Promoted":
            assert str(run.id) in entry["reason"]
    assert [config.teacher.start and Path(config.teacher.start.model).name for config in seen] == [
        None,
        "v1.safetensors",
        "v2.safetensors",
    ]
    assert "teacher:v2" in run.tags


@pytest.mark.usefixtures("prefect_server", "instant_stages")
def test_with_ask_the_verdict_says_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows import flow

    link = f"http://team/deployments/deployment/{uuid4()}/run?parameters=%7B%7D"
    given: list[tuple[str, ...]] = []

    def find(*arguments: str) -> str:
        given.append(arguments)
        return link

    monkeypatch.setattr(flow, "find_promotion_link", find)
    verdicts: list[str] = []
    monkeypatch.setattr(flow, "show_verdict", lambda _, said: verdicts.append(said))
    run_watched(tmp_path, champion=str(tmp_path / "new"), promote="ask")
    run, _ = last_flow_run(num_tasks=2)
    assert run.state.message.endswith("Its verdict asks whether it becomes champion")
    assert [f"]({link})" in said for said in verdicts] == [True]
    assert given[0][:2] == (str(tmp_path / "run"), str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()

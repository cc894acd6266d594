"""Several machines for one stage: the command that leads it calls others, which `selftrain join RUN` has made ready.

They meet in a folder `nodes` of the run, on the file system that they share. The command leads: it alone goes through
the run and holds its lock. For each stage of several ranks it chooses machines that are there, numbers them, and calls
them; machine 0, which has rank 0 and so writes, is its own. A machine that is lost ends the stage on all of them, as a
stop does, and the same command goes on with the machines that are there then.
"""

from __future__ import annotations

import contextlib
import logging
import math
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from typing_extensions import TypedDict  # pydantic takes typing's from Python 3.12 on

from pipeline.errors import EXIT_FAILURE, EXIT_INTERRUPTED, EXIT_OK, EXIT_USER_ERROR, Interrupted, UserError
from pipeline.files import write_json
from pipeline.stages.jobs import Job
from pipeline.stages.kinds import kind_of
from pipeline.stages.progress import Progress
from pipeline.stages.ranks import NODE_VARIABLE, STORE_VARIABLE
from pipeline.stages.signs import Observer, Sign

log = logging.getLogger("selftrain.nodes")

NODES, CALL, LEADER, SIGN = "nodes", "call.json", "leader.json", "sign.json"
WAIT_S = 900.0
"""How long a command waits for machines, and a machine for a command."""
TELL_S = 5.0
PATIENCE_S = 5.0
"""How long a stage that failed waits for other machines to fail too, before it ends them."""
POLL_S = 0.2


class Call(TypedDict):
    """The content of call.json: what machines shall run together."""

    id: str
    job: str
    """The path of the job.json."""
    numbers: dict[str, int]
    """Name of a machine's folder -> the number of the machine."""


@contextlib.contextmanager
def leading(folder: Path, nodes: int) -> Iterator[None]:
    """Be the command that other machines follow in `folder`, while the block runs. If it ends well, they end too."""
    if nodes == 1:
        yield
        return
    (folder / NODES / CALL).unlink(missing_ok=True)  # of a command that was killed
    with Sign(folder / NODES / LEADER) as sign:
        yield
        sign.say(over=True)


def place_in(call: Call, folder: Path, number: int) -> Mapping[str, str]:
    """The variables by which the processes of machine `number` find those of the others."""
    return {
        NODE_VARIABLE: f"{number}/{len(call['numbers']) + 1}",
        STORE_VARIABLE: str(folder / f"store-{call['id']}.json"),
    }


class Others:
    """The other machines that take part in a stage: none, unless there was a call.

    Args:
        call: Who was called; None for a stage of this machine alone.
        folder: The folder in which they meet.
    """

    def __init__(self, title: str, folder: Path = Path(), call: Call | None = None) -> None:
        self._title, self._folder, self._call, self._signs = title, folder, call, Observer()
        self.variables = place_in(call, folder, 0) if call else {}

    def withdraw(self) -> None:
        """Take the call back, which ends what others still do of it."""
        if self._call is not None:
            (self._folder / CALL).unlink(missing_ok=True)
            Path(self.variables[STORE_VARIABLE]).unlink(missing_ok=True)

    def wait(self, limit_s: float = math.inf) -> None:
        """Wait until each machine has ended its part, or is lost."""
        deadline = time.monotonic() + limit_s
        while any(self._code(name) is None and not self._is_lost(name) for name in self._names):
            if time.monotonic() > deadline:
                return
            time.sleep(POLL_S)

    def is_broken(self) -> bool:
        """Whether a machine is lost, or has ended its part without finishing it."""
        return any(self._is_lost(name) or self._code(name) not in (None, EXIT_OK) for name in self._names)

    def explain(self, error: BaseException) -> BaseException:
        """What the outcome of this machine's part of the stage is, with the outcomes of others in mind."""
        if isinstance(error, UserError) or (isinstance(error, Interrupted) and not self.is_broken()):
            return error
        from pipeline.stages.launch import StageFailed

        self.wait(PATIENCE_S)  # for their own reasons, of which one may be the cause
        self.withdraw()
        self.wait()
        went_on = "the same command goes on from what is saved"
        if lost := [name for name in self._names if self._code(name) is None]:
            return Interrupted(f"{self._title} was stopped: no sign of life came from {', '.join(lost)}; {went_on}")
        ends: dict[int | None, list[str]] = {}
        for name in self._names:
            said = self._signs.see(self._folder / name / SIGN)["message"]
            ends.setdefault(self._code(name), []).append(f"on {name}: {said}")
        if EXIT_USER_ERROR in ends:
            return UserError(ends[EXIT_USER_ERROR][0])
        if EXIT_INTERRUPTED in ends:
            stopped = Interrupted(f"{self._title} was stopped {ends[EXIT_INTERRUPTED][0]}; {went_on}")
            return error if isinstance(error, Interrupted) else stopped
        failed = ends.get(EXIT_FAILURE, [])
        return StageFailed("\n".join([str(error), *failed])) if failed else error

    @property
    def _names(self) -> Sequence[str]:
        return sorted(self._call["numbers"]) if self._call else ()

    def _is_lost(self, name: str) -> bool:
        return self._signs.is_lost(self._folder / name / SIGN)

    def _code(self, name: str) -> int | None:
        """The exit code of a machine's part; None until it has ended."""
        said = self._signs.see(self._folder / name / SIGN)
        return said.get("code") if self._call and said.get("call") == self._call["id"] else None


@contextlib.contextmanager
def others(
    job: Job, stop: Callable[[], bool] | None = None, on_progress: Callable[[Progress], None] | None = None
) -> Iterator[Others]:
    """Call the other machines that a stage needs, for as long as the block runs; yields them.

    Raises:
        Interrupted: too few came in a quarter of an hour, or it was stopped before.
        UserError: no command leads in a folder around the stage's.
    """
    missing = job.runtime.nodes - 1 if kind_of(job).ranks else 0
    if not missing:
        yield Others(job.title)
        return
    folder = _meeting_place(job.out)
    names = _wait_for(missing, folder, job.title, stop or (lambda: False), on_progress or (lambda _: None))
    numbers = {name: number for number, name in enumerate(names, start=1)}
    call = Call(id=secrets.token_hex(8), job=str(job.out / "job.json"), numbers=numbers)
    write_json(folder / CALL, dict(call))
    called = Others(job.title, folder, call)
    try:
        yield called
        called.wait()
    finally:
        called.withdraw()


def _meeting_place(out: Path) -> Path:
    """The folder of the command that leads, the nearest one around the stage folder."""
    for above in (out, *out.parents):
        if (above / NODES / LEADER).exists():
            return above / NODES
    raise UserError(f"`runtime.nodes`: no other machine can take part in the stage in {out}; set it to 1")


def _wait_for(
    missing: int, folder: Path, title: str, stop: Callable[[], bool], on_progress: Callable[[Progress], None]
) -> Sequence[str]:
    """The names of so many machines that are there and have nothing to do."""
    signs, began, told = Observer(), time.monotonic(), False
    way = f"type `selftrain join {folder.parent}` on each other one"
    while True:
        free = [path.parent.name for path in sorted(folder.glob(f"*/{SIGN}")) if signs.lives(path)]
        free = [name for name in free if not signs.see(folder / name / SIGN).get("busy")]
        if len(free) >= missing:
            return free[:missing]
        waited = time.monotonic() - began
        how_many = f"{1 + len(free)} of {1 + missing} machines are there"
        on_progress(Progress(title, 1 + len(free), 1 + missing, "machines", "waiting for the others"))
        if waited > TELL_S and not told:
            told = True
            log.warning("%s: %s; %s", title, how_many, way)
        if waited > WAIT_S or stop():
            raise Interrupted(f"{title} did not begin: {how_many}; {way}")
        time.sleep(POLL_S)

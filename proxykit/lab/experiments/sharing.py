"""What happens if an L4 proxy puts several clients on one backend connection.

It does not know where a question ends and whose an answer is. So a relay of the lab's own guesses
(``mixing.py``), and clients whose questions and answers carry their names count how often it was
wrong. Then the same clients ask the same through proxykit, which at L4 does not share, and at L7
does, for there it knows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from proxykit.lab.bench import Bench
from proxykit.lab.experiment import Experiment
from proxykit.lab.namespaces import BACKENDS, FRONT
from proxykit.lab.progress import Progress
from proxykit.lab.report import Cell, Plot, Result, Table
from proxykit.lab.talks import MIXED_UP, SERVED

NAMES = ("ann", "ben", "cat", "dan", "eve", "fay", "gus", "hal", "ida", "joe")
CLIENTS, QUESTIONS = len(NAMES), 10
#: Seconds that the backend thinks about an answer; between two pieces of a question; and after
#: which a client gives up and asks the next.
THINKS, PAUSE, PATIENCE = 0.005, 0.01, 0.3
#: The same where no answer gets lost: who gave up on a busy machine would take it for the next one.
LONG_PATIENCE = 5.0
#: Bytes of a long answer.
LONG = 200_000

_FRONT, _BACKEND = f"{FRONT}:8000", f"{BACKENDS[0]}:80"
_PROXY = f"""
[clusters.web]
backends = ["{_BACKEND}"]
max_connections = %d
[[listeners]]
listen = "tcp:8000"
mode = "%s"
cluster = "web"
"""


@dataclass(frozen=True)
class Traffic:
    """What clients do.

    :ivar pieces: that each question comes in.
    :ivar size: of an answer, besides what it says.
    """

    name: str
    clients: int = CLIENTS
    pieces: int = 1
    size: int = 0


@dataclass(frozen=True)
class Found:
    """What has become of the questions.

    :ivar examples: what was asked, and told by mistake.
    :ivar upstream: connections that the backend had.
    """

    outcomes: dict[str, int]
    examples: list[tuple[str, str]]
    upstream: int


TRAFFIC = (
    Traffic("one client", 1),
    Traffic(f"{CLIENTS} clients"),
    Traffic("questions in two pieces", pieces=2),
    Traffic(f"answers of {LONG // 1000} kB", size=LONG),
)


def run(bench: Bench, progress: Progress) -> Result:
    """See above."""
    relays: dict[str, Callable[[], object]] = {
        "L4, shared: to who spoke last": partial(_mix, bench, "last"),
        "L4, shared: in turn": partial(_mix, bench, "turn"),
        "L4, as it is (tcp)": lambda: bench.proxy(_PROXY % (1000, "tcp")),
        "L7, shared (http)": lambda: bench.proxy(_PROXY % (1, "http")),
    }
    progress.phase("clients ask", of=len(relays) * len(TRAFFIC))
    found: dict[str, list[Found]] = {name: [] for name in relays}
    for name, start in relays.items():
        for traffic in TRAFFIC:
            patience = PATIENCE if "last" in name or "turn" in name else LONG_PATIENCE
            found[name].append(_ask(bench, start, traffic, patience))
            progress.at(sum(map(len, found.values())))
    last, turn, _, l7 = found.values()
    wrong = [*last, *turn]
    examples = (pair for each in wrong for pair in each.examples)
    asked, told = next(examples, ("?", "?"))
    mixed, of, right = _sum(wrong, MIXED_UP), _sum(wrong), _sum(l7, SERVED)
    return Result(
        answer=(
            "Answers go to the wrong clients, and questions become nonsense. Over one backend"
            f" connection shared at L4, {mixed:,} of {of:,} answers were somebody else's: who"
            f" asked for /{asked} was told /{told}. A single client notices nothing. At L7"
            f" {right:,} of {_sum(l7):,} were right, over one connection as well, for it knows"
            " where each message ends."
        ),
        tables=[
            Table(
                f"{QUESTIONS} questions of each client, all of them at the same time",
                ("through", *(f"right, %: {traffic.name}" for traffic in TRAFFIC),
                 "somebody else's answer", "no answer, or nonsense", "backend connections"),
                [_row(name, each) for name, each in found.items()],
                notes=["Nonsense is what the backend saw no request in (400)."],
            )
        ],
        plots=[
            Plot.bars(
                "Answers that were wrong, or never came",
                "% of all questions",
                [(name, round(100 - _right(*each))) for name, each in found.items()],
            )
        ],
    )  # fmt: skip


def _sum(found: Iterable[Found], outcome: str = "") -> int:
    """Of all that was asked, how much came to this; or to anything."""
    return sum(
        count for each in found for name, count in each.outcomes.items() if outcome in ("", name)
    )


def _right(*found: Found) -> float:
    return 100 * _sum(found, SERVED) / _sum(found)


def _row(name: str, found: list[Found]) -> tuple[Cell, ...]:
    mixed, right = _sum(found, MIXED_UP), _sum(found, SERVED)
    otherwise = _sum(found) - right - mixed
    upstream = max(each.upstream for each in found)
    return name, *map(_right, found), mixed, otherwise, upstream


def _mix(bench: Bench, guess: str) -> None:
    module = "proxykit.lab.mixing"
    bench.run("the relay", bench.network.proxy, module, _FRONT, _BACKEND, "--guess", guess)


def _ask(bench: Bench, start: Callable[[], object], traffic: Traffic, patience: float) -> Found:
    bench.origin("backend", _BACKEND, delay=THINKS, size=traffic.size)
    start()
    clients = bench.clients()
    clients.open(traffic.clients, to=_FRONT, asks=False, names=NAMES)
    clients.begin("ask", times=QUESTIONS, pieces=traffic.pieces, pause=PAUSE, patience=patience)
    told = clients.wait()
    upstream = bench.sockets().states["ESTAB"]
    bench.clear()
    examples = [
        (asked, told)
        for asked, told in told["mixed_up"]
        if asked.partition("/")[0] != told.partition("/")[0]
    ]
    return Found(told["outcomes"], examples, upstream)


EXPERIMENT = Experiment(
    "sharing", "Why can an L4 proxy not put two clients on one backend connection?", 35, run
)

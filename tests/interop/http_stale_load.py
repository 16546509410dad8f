"""The clients of ``stale_origin.py``: many connections, each with some requests of every kind."""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import time
from collections import Counter
from typing import Any

from attrs import define

#: How often which request is made, of a hundred.
KINDS = {"GET": 40, "HEAD": 15, "PUT": 10, "DELETE": 5, "POST": 5, "POST with a body": 25}
IDEMPOTENT = ("GET", "HEAD", "PUT", "DELETE")
#: Requests on one connection, at the most.
MOST = 40
#: Seconds between two of them, at the most.
PAUSE = 0.004
#: Seconds that an answer may take.
PATIENCE = 20.0

_LENGTH = re.compile(rb"\r\nContent-Length: ([0-9]+)\r\n")

#: What must not be, by the names of a report.
FORBIDDEN = (
    "idempotent, failed",
    "POST, delivered more than once",
    "POST, failed with something else",
    "answered, but not delivered",
    "wrong answers",
)
#: And with ``reuse = "never"``.
FORBIDDEN_NEVER = ("requests on a used connection", "POST, failed with 502")


@define
class Asked:
    """One request.

    :ivar outcome: the status of the answer, or in words why there is none.
    """

    kind: str
    outcome: int | str = "not asked"

    @property
    def idempotent(self) -> bool:
        return self.kind in IDEMPOTENT


class Load:
    """Asks the proxy for so much.

    :param port: the proxy's.
    :param options: as ``stale_origin`` has them.
    """

    def __init__(self, port: int, options: argparse.Namespace) -> None:
        self._port = port
        self._clients: int = options.clients
        self._reuse: str = options.reuse
        self._random = random.Random(options.seed)
        kinds = self._random.choices(list(KINDS), list(KINDS.values()), k=options.requests)
        self.asked = [Asked(kind) for kind in kinds]
        self._next = 0
        self.connections = 0
        self.seconds = 0.0

    async def run(self) -> None:
        """Ask for everything."""
        started = time.monotonic()
        await asyncio.gather(*(self._client() for _ in range(self._clients)))
        self.seconds = time.monotonic() - started

    async def _client(self) -> None:
        """One connection after the other."""
        while self._next < len(self.asked):
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            self.connections += 1
            for _ in range(self._random.randint(1, MOST)):
                number = self._next
                if number >= len(self.asked):
                    break
                self._next += 1
                asked = self.asked[number]
                try:
                    asked.outcome, last = await asyncio.wait_for(
                        self._ask(reader, writer, number, asked.kind), PATIENCE
                    )
                except (OSError, asyncio.IncompleteReadError) as error:
                    asked.outcome, last = repr(error), True
                if last:
                    break
                if self._random.random() < 0.5:
                    await asyncio.sleep(self._random.uniform(0, PAUSE))
            writer.close()

    async def _ask(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int, kind: str
    ) -> tuple[int | str, bool]:
        """Ask once; give the status, or what is wrong with the answer, and whether it is the last
        on this connection."""
        method = kind.partition(" ")[0]
        body = b"x" * self._random.randint(1, 2000) if kind == "POST with a body" else b""
        length = f"Content-Length: {len(body)}\r\n" if method in ("POST", "PUT") else ""
        writer.write(f"{method} /{number} HTTP/1.1\r\nHost: a.example\r\n{length}\r\n".encode())
        if body:
            if self._random.random() < 0.3:
                await asyncio.sleep(self._random.uniform(0, PAUSE))
            writer.write(body)
        head = await reader.readuntil(b"\r\n\r\n")
        status = int(head.split(b" ", 2)[1])
        found = _LENGTH.search(head)
        size = int(found[1]) if found and method != "HEAD" else 0
        answer = await reader.readexactly(size)
        if status == 200:
            own = b"%d" % number
            if b"\r\nX-Number: %b\r\n" % own not in head or answer != (own if size else b""):
                return f"wrong: {head + answer!r}", True
        return status, b"\r\nConnection: close\r\n" in head

    async def counts(self, port: int, path: bytes) -> dict[str, Any]:
        """What the origin has counted."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET %b HTTP/1.1\r\nHost: a.example\r\n\r\n" % path)
        head = await reader.readuntil(b"\r\n\r\n")
        found = _LENGTH.search(head)
        assert found is not None
        counted: dict[str, Any] = json.loads(await reader.readexactly(int(found[1])))
        writer.close()
        return counted

    def report(self, counted: dict[str, Any]) -> dict[str, Any]:
        """The figures, by name."""
        times = [counted["delivered"].get(str(number), 0) for number in range(len(self.asked))]
        both = list(zip(self.asked, times, strict=True))
        idempotent = [(asked, count) for asked, count in both if asked.idempotent]
        others = [(asked, count) for asked, count in both if not asked.idempotent]
        failed = [(asked, count) for asked, count in others if asked.outcome == 502]
        return {
            "requests": len(both),
            **{f"  {kind}": sum(asked.kind == kind for asked, _ in both) for kind in KINDS},
            "seconds": round(self.seconds, 1),
            "client connections": self.connections,
            "upstream connections": counted["connections"],
            **{f"  closed {how}": n for how, n in sorted(counted["endings"].items())},
            "requests on a used connection": counted["reused"],
            "idempotent, failed": sum(asked.outcome != 200 for asked, _ in idempotent),
            "idempotent, delivered more than once": sum(count > 1 for _, count in idempotent),
            "idempotent, delivered at the most": max((n for _, n in idempotent), default=0),
            "POST, delivered more than once": sum(count > 1 for _, count in others),
            "POST, failed with 502": len(failed),
            "  and were delivered": sum(count for _, count in failed),
            "POST, failed with something else": sum(
                asked.outcome not in (200, 502) for asked, _ in others
            ),
            "answered, but not delivered": sum(
                asked.outcome == 200 and not count for asked, count in both
            ),
            "wrong answers": sum(str(asked.outcome).startswith("wrong") for asked, _ in both),
            "outcomes": dict(Counter(str(asked.outcome) for asked, _ in both).most_common(6)),
        }

    def wrong(self, report: dict[str, Any]) -> list[str]:
        """What must not be, and is."""
        forbidden = FORBIDDEN + (FORBIDDEN_NEVER if self._reuse == "never" else ())
        return [what for what in forbidden if report[what]]

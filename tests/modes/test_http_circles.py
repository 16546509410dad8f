"""The mode http: what is over is gone at once, and what is idle holds little.

What refers to itself in a circle stays until the garbage collector comes by, which then stops
everything else for a while. So nothing that happens for each request may end in one.
"""

from __future__ import annotations

import gc
import re
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from twisted.trial.unittest import TestCase

from proxykit.model import Address
from tests.http_sockets import (
    CLOSE,
    SILENCE,
    HttpProxy,
    Step,
    answer,
    head,
    start_http,
    start_origin,
)
from tests.modes.test_http_bodies import OK
from tests.sockets import HOST, TIMEOUT, free_port, reactor, turns, unanswering, until

#: How often each thing is done: what it leaves behind is there as often.
TIMES = 10
#: Twisted's client connections refer to their connectors in a circle. What these drag along is not
#: ours to prevent; errors, exchanges and both protocols must not be among it.
STOCK = not hasattr(reactor, "pipes")
DRAGGED_ALONG = re.compile(
    r"builtins\.(?!frame|traceback)"
    r"|twisted\.internet\.tcp\."
    r"|collections\.OrderedDict$"
    r"|proxykit\.core\.(accountant\.Lease|deadlines\.)"
    r"|proxykit\.net\.connector\._Connecting"
).match
ASKING = ("Connection: upgrade", "Upgrade: websocket")


def garbage() -> dict[str, int]:
    """What only the collector would have found, by its types: what there is of it each time."""
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        gc.collect()
        found = Counter(f"{type(each).__module__}.{type(each).__name__}" for each in gc.garbage)
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
    return {
        name: count
        for name, count in found.items()
        if count >= TIMES and not (STOCK and DRAGGED_ALONG(name))
    }


class CirclesTests(TestCase):
    """Nothing of a request, or of a connection, waits for the garbage collector."""

    timeout = TIMEOUT

    def setUp(self) -> None:
        self.addCleanup(gc.enable)

    async def start(self, *script: Step, **more: Any) -> None:
        """A client of a proxy in front of one origin."""
        self.origin = await start_origin(self, *([script] if script else []))
        self.proxy: HttpProxy = start_http(self, self.origin, **more)
        self.client = await self.proxy.connect()

    async def leaves_nothing(self, do: Callable[[], Awaitable[object]]) -> None:
        """Do it some times over."""
        for _ in range(2):  # What is made once, and kept, is no matter.
            await do()
        await turns()
        # What others have left, as matplotlib does, may set free more, found the next time.
        for _ in range(10):
            if not gc.collect():
                break
        gc.disable()
        for _ in range(TIMES):
            await do()
        await turns(10)
        self.assertEqual(garbage(), {})

    async def asked(self, status: int) -> None:
        """One more request of the same client's."""
        self.assertEqual((await self.client.get()).status, status)

    async def test_requests_on_one_connection(self) -> None:
        await self.start(OK)
        await self.leaves_nothing(lambda: self.asked(200))

    async def test_connections(self) -> None:
        await self.start(OK)

        async def do() -> None:
            client = await self.proxy.connect()
            await client.get()
            client.close()
            await client.lost()

        await self.leaves_nothing(do)

    async def test_long_bodies(self) -> None:
        await self.start(answer(b"x" * 1_000_000))

        async def do() -> None:
            self.client.ask("POST", "/", b"z" * 300_000)
            await self.client.response()

        await self.leaves_nothing(do)

    async def test_malformed_requests(self) -> None:
        await self.start(OK)

        async def do() -> None:
            client = await self.proxy.connect()
            client.send(b"GET / HTTP/1.1\r\nHost: a\r\nbad field\r\n\r\n")
            self.assertEqual((await client.response()).status, 400)
            client.close()
            await client.lost()

        await self.leaves_nothing(do)

    async def test_no_room(self) -> None:
        """An error that flow raises, and one that it tells later of somebody who waited."""
        await self.start(SILENCE, max_connections=1, queue=0)
        self.client.ask()
        await until(lambda: self.origin.requests)
        self.client = await self.proxy.connect()
        await self.leaves_nothing(lambda: self.asked(503))

    async def test_no_room_in_time(self) -> None:
        await self.start(SILENCE, max_connections=1, queue=1, queue_timeout=1.0)
        self.client.ask()
        await until(lambda: self.origin.requests)
        self.client = await self.proxy.connect()

        async def do() -> None:
            self.client.ask()
            await until(lambda: self.proxy.leftovers()["waiting"])
            self.proxy.clock.advance(2)
            self.assertEqual((await self.client.response()).status, 503)

        await self.leaves_nothing(do)

    async def test_no_answer_in_time(self) -> None:
        await self.start(SILENCE)

        async def do() -> None:
            count = len(self.origin.requests)
            self.client.ask()
            await until(lambda: len(self.origin.requests) > count)
            self.proxy.clock.advance(61)
            self.assertEqual((await self.client.response()).status, 504)

        await self.leaves_nothing(do)

    async def test_refused_connects(self) -> None:
        proxy = start_http(self, Address(HOST, free_port(self)))
        self.client = await proxy.connect()
        await self.leaves_nothing(lambda: self.asked(502))

    async def test_a_backend_that_closes(self) -> None:
        """Without an answer, and instead of the next one."""
        await self.start(CLOSE)
        await self.leaves_nothing(lambda: self.asked(502))

    async def test_a_repeated_request(self) -> None:
        await self.start(OK, CLOSE)

        async def do() -> None:
            self.proxy.clock.advance(2)  # so many may be repeated in any ten seconds
            await self.asked(200)
            await self.proxy.at_rest()

        await self.leaves_nothing(do)

    async def test_upgrades(self) -> None:
        await self.start()

        async def do() -> None:
            client = await self.proxy.connect()
            client.ask("GET", "/", None, *ASKING)
            served = await self.origin.accepted()
            await served.request()
            served.send(head(*ASKING, status="101 Switching Protocols"))
            await client.response()
            served.close()
            client.close()
            await client.lost()
            await until(lambda: not self.proxy.leftovers()["connections"])

        await self.leaves_nothing(do)

    async def test_clients_that_leave(self) -> None:
        await self.start(SILENCE)

        async def do() -> None:
            client = await self.proxy.connect()
            count = len(self.origin.requests)
            client.ask()
            await until(lambda: len(self.origin.requests) > count)
            client.reset()
            await client.lost()
            await until(lambda: not self.proxy.leftovers()["connections"])

        await self.leaves_nothing(do)

    async def test_clients_that_leave_before_there_is_a_backend(self) -> None:
        proxy = start_http(self, unanswering(self))

        async def do() -> None:
            client = await proxy.connect()
            client.ask()
            await until(lambda: proxy.leftovers()["opening"])
            client.reset()
            await client.lost()
            await until(lambda: not proxy.leftovers()["clients"])

        await self.leaves_nothing(do)

    async def test_connections_that_are_private(self) -> None:
        await self.start(OK)

        async def do() -> None:
            client = await self.proxy.connect()
            await client.get("/", "Authorization: NTLM abc")
            client.close()
            await client.lost()
            await until(lambda: not self.proxy.leftovers()["connections"])

        await self.leaves_nothing(do)


class IdleTests(TestCase):
    """Connections that wait for the next request have let go of the last one."""

    timeout = TIMEOUT

    async def test_what_an_idle_connection_holds(self) -> None:
        """No part of a body that came with its head, and no head that is unlike most."""
        origin = await start_origin(self, [answer(b"x" * 60_000)])
        proxy = start_http(self, origin)
        client = await proxy.connect()
        client.ask("POST", "/", b"z" * 60_000, "X-Long: " + "y" * 30_000)
        await client.response()
        await proxy.at_rest()
        (side,) = proxy.sides()
        ((upstream, *_),) = [shelf.free for shelf in proxy.service.pool._shelves.values()]
        self.assertEqual((bytes(side._reader.rest), bytes(upstream._reader.rest)), (b"", b""))
        self.assertLess(len(side.forwarding._block), 4096)
        client.ask("GET", "/again")
        self.assertEqual(len((await client.response()).body), 60_000)
        self.assertNotIn("X-Long", origin.requests[1])

"""Server-sent events: one text for all, once a second, and nobody is waited for."""

from __future__ import annotations

import json
import socket
from typing import Any

from attrs import evolve

from proxykit.ops.events import PATIENCE
from tests.ops.admins import TOKEN, AdminCase
from tests.sockets import End, blocking, held, turns, until

ASK = b"GET /api/events HTTP/1.1\r\nHost: localhost\r\n\r\n"


def states(end: End) -> list[Any]:
    """What the events so far say, of an answer in HTTP/1.0."""
    _, _, text = bytes(end.received).partition(b"\r\n\r\n")
    return [
        json.loads(event.partition(b"\ndata: ")[2])
        for event in text.split(b"\n\n")
        if event.startswith(b"event: state\n")
    ]


class EventsTests(AdminCase):
    @property
    def site(self) -> Any:
        return self.proxy.service._site

    @property
    def events(self) -> Any:
        return self.site.admin.events

    def count_states(self) -> list[int]:
        """How often the state is looked at from now on, as the length of a list."""
        made: list[int] = []
        state = self.events._state
        self.patch(self.events, "_state", lambda: made.append(1) or state())
        return made

    async def reader(self, many: int = 1, ask: bytes = ASK.replace(b"1.1", b"1.0")) -> End:
        """One more, who has had the first event."""
        end = await self.talk(ask)
        await end._until(lambda: b"\n\ndata" in end.received or b"}\n\n" in end.received)
        self.assertEqual(len(self.events), many)
        return end

    async def test_the_first_comes_at_once(self) -> None:
        proxy = await self.start()
        end = await self.reader()
        self.assertIn(b"\r\nContent-Type: text/event-stream\r\n", end.received)
        self.assertIn(b"\r\nCache-Control: no-store\r\n", end.received)
        text = end.received.partition(b"\r\n\r\n")[2]
        self.assertTrue(text.startswith(b"retry: 2000\n\nevent: state\ndata: {"), text[:60])
        (state,) = states(end)
        self.assertEqual(
            list(state),
            [
                "time",
                "uptime",
                "version",
                "draining",
                "listeners",
                "clusters",
                "budgets",
                "loop_lag_seconds",
            ],
        )
        (listener,), (cluster,), (budget,) = (
            state[each] for each in ("listeners", "clusters", "budgets")
        )
        self.assertEqual((listener.pop("history"), len(budget.pop("history"))), ([], 1))
        self.assertEqual(listener, proxy.listener.snapshot())
        self.assertEqual((cluster["name"], cluster["pool"]["idle"]), ("web", 0))
        self.assertEqual(budget["destination"], str(self.backend.address))
        self.assertEqual((state["draining"], state["uptime"]), (False, 0))

    async def test_one_each_second(self) -> None:
        proxy = await self.start()
        end = await self.reader()
        for count in range(1, 4):
            proxy.clock.advance(1)
            await end._until(lambda count=count: len(states(end)) == 1 + count)
        self.assertEqual([state["uptime"] for state in states(end)], [0, 1, 2, 3])
        self.assertEqual(len(states(end)[-1]["budgets"][0]["history"]), 2)

    async def test_in_chunks(self) -> None:
        proxy = await self.start()
        end = await self.reader(ask=ASK)
        self.assertIn(b"Transfer-Encoding: chunked\r\n", end.received)
        proxy.clock.advance(1)
        await end._until(lambda: end.received.count(b"event: state") == 2)

    async def test_all_get_the_same(self) -> None:
        proxy = await self.start()
        made = self.count_states()
        ends = [await self.reader(many) for many in range(1, 6)]
        self.assertEqual(len(made), 1)
        for count in range(1, 4):
            proxy.clock.advance(1)
            for end in ends:
                await end._until(lambda end=end, count=count: len(states(end)) == 1 + count)
            self.assertEqual(len(made), 1 + count)
        self.assertEqual({bytes(end.received) for end in ends}, {bytes(ends[0].received)})

    async def test_nobody_is_there(self) -> None:
        """Nothing is made then; the history is kept all the same."""
        proxy = await self.start()
        made = self.count_states()
        proxy.clock.advance(10)
        self.assertEqual(made, [])
        end = await self.reader()
        self.assertEqual(len(states(end)[0]["budgets"][0]["history"]), 6)
        end.close()
        await until(lambda: len(self.events) == 0)
        proxy.clock.advance(10)
        self.assertEqual(len(made), 1)

    async def test_what_is_old_is_not_shown(self) -> None:
        proxy = await self.start()
        (await self.reader()).close()
        await until(lambda: len(self.events) == 0)
        proxy.clock.advance(0.9)
        end = await self.reader()
        self.assertEqual(states(end)[0]["uptime"], 0)
        end.close()
        await until(lambda: len(self.events) == 0)
        proxy.clock.advance(0.2)
        self.assertAlmostEqual(states(await self.reader())[0]["uptime"], 1.1)

    def never_reads(self) -> socket.socket:
        """A client that has asked, and takes little of the answer."""
        made = blocking(self, self.port, receive_buffer=4096)
        made.sendall(ASK)
        return made

    async def stuck(self) -> socket.socket:
        """One whose transport takes no more."""
        connection = self.never_reads()
        reader = await until(lambda: next(iter(self.events._readers), None))
        clock = self.proxy.clock
        # A short stop is none: the socket takes more in the next turn.
        while reader._stuck is None or clock.seconds() < reader._stuck + 2:
            clock.advance(1)
            await turns()
        return connection

    async def test_who_does_not_read_is_dropped(self) -> None:
        proxy = await self.start()
        self.patch(self.events, "_state", lambda: "x" * 400_000)
        connection = self.never_reads()
        reader = await until(lambda: next(iter(self.events._readers), None))
        transport, stuck = reader._request.transport, 0.0
        # The kernel takes some megabytes first.
        for _ in range(20 * int(PATIENCE)):
            self.assertLess(held(transport), 800_000)
            stuck = reader._stuck
            proxy.clock.advance(1)
            await turns()
            if not self.events:
                break
        self.assertEqual(len(self.events), 0)
        self.assertLess(proxy.clock.seconds() - stuck, PATIENCE + 2)
        await until(lambda: len(self.site) == 0)
        self.assertEqual(len(proxy.service.deadlines), 0)
        connection.close()

    async def test_who_reads_slowly_misses_some(self) -> None:
        proxy = await self.start()
        self.patch(self.events, "_state", lambda: "x" * 400_000)
        connection = await self.stuck()
        proxy.clock.advance(PATIENCE / 2)
        (reader,) = self.events._readers
        connection.setblocking(False)

        def read() -> bool:
            try:
                while connection.recv(1 << 16):
                    pass
            except BlockingIOError:
                pass
            return reader._stuck is None

        await until(read)
        proxy.clock.advance(1)
        for _ in range(int(PATIENCE)):
            proxy.clock.advance(0.9)
            await until(read)
        self.assertEqual(len(self.events), 1)

    async def test_whoever_leaves_leaves_nothing(self) -> None:
        proxy = await self.start()
        ends = [await self.reader(many) for many in range(1, 4)]
        ends[0].close()
        ends[1].reset()
        ends[2].finish()
        await until(lambda: len(self.events) == 0)
        await until(lambda: len(self.site) == 0)
        self.assertEqual(len(proxy.service.deadlines), 0)
        proxy.clock.advance(2)

    async def test_only_its_beginning(self) -> None:
        await self.start()
        answer = await self.ask("/api/events", "HEAD")
        self.assertEqual((answer.status, answer.body), (200, b""))
        self.assertEqual(answer.header["content-type"], "text/event-stream")
        self.assertEqual(len(self.events), 0)

    async def test_another_token(self) -> None:
        """Whoever has shown the former one is let go; other changes disturb nobody."""
        service = (await self.start()).service
        end = await self.reader()
        service.apply(evolve(service.config, admin_hosts=("a.example",)))
        self.assertEqual(len(self.events), 1)
        service.apply(evolve(service.config, admin_token=TOKEN))
        await end.ended()
        self.assertEqual(len(self.events), 0)

    async def test_it_stops(self) -> None:
        """Nobody is left waiting, and no timer is."""
        proxy = await self.start()
        events = self.events
        end = await self.reader()
        chunked = await self.reader(2, ASK)
        await proxy.service.stopService()
        await end.ended()
        await chunked.ended()
        self.assertTrue(chunked.received.endswith(b"0\r\n\r\n"))
        self.assertEqual((len(events), events._timer), (0, None))
        proxy.clock.advance(1)
        self.assertEqual(proxy.clock.getDelayedCalls(), [])

"""The admin listener's HTTP: its bounds, and what it says when things go wrong."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.defer import Deferred, fail

from proxykit.ops import admin_web
from proxykit.ops.admin_web import BODY, DISCARDED, IDLE_TIMEOUT, REQUEST_TIMEOUT, SAFETY
from tests.ops.admins import AdminCase
from tests.sockets import End, blocking, in_thread, read_all, until

GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"


def parsed(end: End) -> tuple[int, dict[str, str], Any]:
    """The first answer that has come: status, header, JSON."""
    head, _, body = bytes(end.received).partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    fields = dict(line.lower().split(": ", 1) for line in lines)
    return int(first.split()[1]), fields, json.loads(body[: int(fields["content-length"])])


class WebCase(AdminCase):
    @property
    def site(self) -> Any:
        return self.proxy.service._site

    async def closed(self, end: End) -> tuple[int, dict[str, str], Any]:
        """The answer after which the connection was closed."""
        await end.ended()
        return parsed(end)

    def refused(self, answer: tuple[int, dict[str, str], Any], status: int, text: str) -> None:
        """It is JSON, and as safe as the others."""
        self.assertEqual(answer[0], status)
        self.assertIn(text, answer[2]["error"])
        self.assertNotIn("\n", answer[2]["error"])
        fields = {**SAFETY, "content-type": "application/json"}
        self.assertEqual(
            {name: answer[1].get(name) for name in fields},
            {name: value.lower() for name, value in fields.items()},
        )


class RefusedTests(WebCase):
    async def test_no_http(self) -> None:
        await self.start()
        for text in (
            b"hello\r\n\r\n",
            b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
            b"GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nabc",
            b"GET / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n",
            b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nz\r\n",
            b"GET / HTTP/1.1\r\nbad name: 1\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n",
        ):
            self.refused(await self.closed(await self.talk(text)), 400, "no request of HTTP")

    async def test_a_long_head(self) -> None:
        await self.start()
        for text in (
            b"GET /" + b"x" * 17000,
            b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 600 + b"\r\n",
            b"GET / HTTP/1.1\r\n" + (b"a: " + b"b" * 4000 + b"\r\n") * 5 + b"\r\n",
        ):
            self.refused(await self.closed(await self.talk(text)), 431, "too long")

    async def test_a_long_body(self) -> None:
        await self.start()
        answer = await self.ask("/api/reload", "POST", b"x" * (BODY + 1), x_proxykit="write")
        self.assertEqual(
            (answer.status, answer.error), (413, "the body is longer than 65536 bytes")
        )
        answer = await self.ask("/api/reload", "POST", b"x" * BODY, x_proxykit="write")
        self.assertEqual(answer.status, 409)

    async def test_a_body_without_an_end(self) -> None:
        """It is not kept, nor read for ever."""
        await self.start()
        end = await self.talk(
            b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        chunk = b"8000\r\n" + b"x" * 0x8000 + b"\r\n"
        for _ in range(DISCARDED // 0x8000):
            end.send(chunk)
        channel = await until(lambda: next(iter(self.site._channels), None))
        await until(lambda: channel.requests and channel.requests[0]._size == DISCARDED)
        self.assertLessEqual(len(channel.requests[0].content.getvalue()), BODY)
        self.assertEqual(bytes(end.received), b"")
        end.send(b"1\r\nx\r\n0\r\n\r\n")
        self.refused(await self.closed(end), 413, "longer than 65536 bytes")

    async def test_forms_are_not_looked_at(self) -> None:
        await self.start()
        for kind in ("multipart/form-data", "application/x-www-form-urlencoded"):
            answer = await self.ask("/api/clusters", "POST", b"a=b", content_type=kind)
            self.assertEqual(answer.status, 405)

    async def test_an_error_of_ours(self) -> None:
        """It is in the log, and nothing of it in the answer."""
        await self.start()
        admin = self.site.admin

        def broken(request: object) -> Any:
            raise ZeroDivisionError("secret")

        for answer in (broken, lambda request: fail(ZeroDivisionError("secret"))):
            self.patch(admin, "answer", answer)
            found = await self.ask("/api/clusters")
            self.assertEqual(found.status, 500)
            self.assertIn("its log says what", found.error)
            self.assertNotIn("secret", found.body.decode())
            self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    async def test_an_error_in_the_middle_of_an_answer(self) -> None:
        await self.start()

        def broken(request: Any) -> None:
            request.write(b"a part")
            raise ZeroDivisionError

        self.patch(self.site.admin, "answer", broken)
        end = await self.talk(GET)
        self.assertTrue(await end.lost())
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)


class TimeTests(WebCase):
    async def test_a_request_that_comes_slowly(self) -> None:
        """However often there is a byte."""
        await self.start()
        end = await self.talk()
        channel = await until(lambda: next(iter(self.site._channels), None))
        for count in range(1, 10):
            end.send(GET[count - 1 : count])
            await until(lambda count=count: channel._buffer == GET[:count])
            self.proxy.clock.advance(1)
        self.assertEqual(bytes(end.received), b"")
        self.proxy.clock.advance(REQUEST_TIMEOUT - 8)
        answer = await self.closed(end)
        self.refused(answer, 408, "did not come within 10 seconds")
        self.assertEqual(len(self.site), 0)

    async def test_a_body_that_comes_slowly(self) -> None:
        await self.start()
        end = await self.talk(GET[:-2] + b"Content-Length: 5\r\n\r\n12")
        channel = await until(lambda: next(iter(self.site._channels), None))
        await until(lambda: channel.requests and channel.requests[0]._size == 2)
        self.proxy.clock.advance(REQUEST_TIMEOUT + 2)
        self.refused(await self.closed(end), 408, "did not come")

    async def test_one_request_after_the_other(self) -> None:
        await self.start()
        end = await self.talk()
        for _ in range(3):
            end.received.clear()
            end.send(GET)
            await end._until(lambda: b'"ok"' in end.received)
            self.proxy.clock.advance(IDLE_TIMEOUT - 5)
            self.assertEqual(parsed(end)[0], 200)
        self.assertEqual(len(self.site), 1)
        self.proxy.clock.advance(10)
        await end.ended()

    async def test_the_next_one_comes_slowly(self) -> None:
        await self.start()
        end = await self.talk(GET)
        await end._until(lambda: b'"ok"' in end.received)
        end.received.clear()
        end.send(b"GET")
        channel = next(iter(self.site._channels))
        await until(lambda: not channel._resting)
        self.proxy.clock.advance(REQUEST_TIMEOUT + 2)
        self.refused(await self.closed(end), 408, "did not come")

    async def test_several_at_once(self) -> None:
        await self.start()
        end = await self.talk(GET * 5)
        await end._until(lambda: bytes(end.received).count(b'"ok"') == 5)
        self.assertEqual(len(self.proxy.service.deadlines), 1)

    async def test_an_answer_that_nobody_takes(self) -> None:
        await self.start()
        self.patch(self.site.admin, "answer", lambda r: r.send_json("x" * (16 << 20)))
        end = await self.talk()
        end.transport.pauseProducing()
        end.send(GET.replace(b"1.1", b"1.0"))
        channel = await until(lambda: next(iter(self.site._channels), None))
        await until(lambda: channel._resting)  # The answer is in its transport.
        self.proxy.clock.advance(IDLE_TIMEOUT + 3)
        await until(lambda: len(self.site) == 0)
        self.assertEqual(len(self.proxy.service.deadlines), 0)

    async def test_whoever_leaves_leaves_nothing(self) -> None:
        await self.start()
        waiting: Deferred[None] = Deferred()
        for text in (b"", b"GET", GET):
            end = await self.talk(text)
            await until(lambda: len(self.site) == 1)
            end.close()
            await until(lambda: len(self.site) == 0)
            self.assertEqual(len(self.proxy.service.deadlines), 0)
        # In the middle of an answer that is still to come.
        self.patch(self.site.admin, "answer", lambda r: waiting.addCallback(r.send_json))
        end = await self.talk(GET)
        await until(lambda: any(each.busy for each in self.site._channels))
        end.reset()
        await until(lambda: len(self.site) == 0)
        waiting.callback(None)


class NumberTests(WebCase):
    async def test_who_waits_makes_room(self) -> None:
        await self.start()
        self.patch(admin_web, "CONNECTIONS", 3)
        ends = []
        for number in range(3):
            ends.append(await self.talk())
            await until(lambda number=number: len(self.site) == number + 1)
        ends[1].send(b"GET ")
        another = await self.talk(GET)
        await another._until(lambda: b'"ok"' in another.received)
        self.assertEqual([end.reason is None for end in ends], [False, True, True])
        self.assertTrue(await ends[0].lost())

    async def test_many_at_once(self) -> None:
        """In one turn of the reactor, before any that was aborted is gone."""
        await self.start()
        self.patch(admin_web, "CONNECTIONS", 3)
        ends = [blocking(self, self.port) for _ in range(12)]
        ends[-1].sendall(GET.replace(b"1.1", b"1.0"))
        self.assertIn(b'"ok"', await in_thread(read_all, ends[-1]))
        channels = list(self.site._channels)
        self.assertEqual(len(channels), 2)
        for end in ends[:9]:
            self.assertRaises(ConnectionResetError, end.recv, 1)

    async def test_all_are_busy(self) -> None:
        await self.start()
        self.patch(admin_web, "CONNECTIONS", 1)
        end = await self.talk(GET.replace(b"healthz", b"api/events"))
        await end._until(lambda: b"data: " in end.received)
        another = await self.talk(GET)
        self.refused(await self.closed(another), 503, "there are 1 connections")
        end.close()
        await until(lambda: len(self.site) == 0)
        last = await self.talk(GET)
        await last._until(lambda: b'"ok"' in last.received)


class EndTests(WebCase):
    async def test_it_stops(self) -> None:
        """Who waits is let go at once; who is being answered, afterwards."""
        await self.start()
        later: Deferred[None] = Deferred()
        idle = await self.talk()
        await until(lambda: len(self.site) == 1)
        self.patch(
            self.site.admin, "answer", lambda r: later.addCallback(lambda _: r.send_json("done"))
        )
        busy = await self.talk(GET)
        await until(lambda: any(each.busy for each in self.site._channels))
        site = self.site
        await self.proxy.service._stop_admin()
        await idle.ended()
        self.assertEqual(len(site), 1)
        later.callback(None)
        await busy.ended()
        self.assertEqual(parsed(busy)[2], "done")
        self.assertEqual(len(site), 0)

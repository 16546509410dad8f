"""The mode http never passes on a message that was cut off, or breaks a rule, as a whole one."""

from __future__ import annotations

from twisted.trial.unittest import TestCase

from tests.http_sockets import answer, head, request, start_http, start_origin
from tests.modes.test_http_bodies import CHUNKED, OK, start
from tests.sockets import TIMEOUT, until


class CutOffTests(TestCase):
    """A message that is cut off is never passed on as a whole one."""

    timeout = TIMEOUT

    async def answer_and(self, end: str, reply: bytes, *lines: str, version: str = "1.1") -> bool:
        """A backend's answer begins and comes to an end.

        :returns: whether the client saw a reset.
        """
        origin, proxy = await start(self)
        client = await proxy.connect()
        client.send(request("GET", "/", None, *lines, version=version))
        served = await origin.accepted()
        await served.request()
        served.send(reply)
        await until(lambda: client.received)
        getattr(served, end)()
        reset: bool = await client.lost()
        self.assertEqual(len(proxy.entries), 1)
        self.assertTrue(proxy.entries[0].error)
        self.assertEqual(list(proxy.stats["failed"]), ["http_response_incomplete"])
        await proxy.empty()
        return reset

    async def test_an_answer(self) -> None:
        for reply in (
            answer(b"0123456789")[:-1],
            head(CHUNKED) + b"a\r\n0123456789\r\n",
            head(CHUNKED) + b"a\r\n01234",
            head(CHUNKED) + b"a\r\n0123456789\r\n0\r\n",
            head(CHUNKED) + b"a\r\n0123456789\r\n0\r\nX: y\r\n",
        ):
            for end in ("close", "reset"):
                self.assertTrue(await self.answer_and(end, reply), (end, reply))

    async def test_an_answer_without_a_length(self) -> None:
        """Its end is the connection's, but a reset is none."""
        self.assertTrue(await self.answer_and("reset", head() + b"0123456789"))

    async def test_for_http_1_0(self) -> None:
        """Where an orderly end would say that this was all."""
        for reply in (
            answer(b"0123456789")[:-1],
            head(CHUNKED) + b"a\r\n0123456789\r\n",
        ):
            for end in ("close", "reset"):
                self.assertTrue(await self.answer_and(end, reply, version="1.0"), (end, reply))
        self.assertTrue(await self.answer_and("reset", head() + b"0123456789", version="1.0"))

    async def test_chunks_that_break_a_rule(self) -> None:
        for bad in (b"x\r\n", b"1\nA\r\n", b"1\r\nAB\r\n", b"0\r\nBad Name: x\r\n\r\n", b"-1\r\n"):
            origin, proxy = await start(self)
            client = await proxy.connect()
            client.ask()
            served = await origin.accepted()
            await served.request()
            served.send(head(CHUNKED) + b"1\r\nA\r\n")
            await until(lambda client=client: client.received)
            served.send(bad)
            self.assertTrue(await client.lost(), bad)
            self.assertTrue(await served.lost(), bad)
            self.assertEqual(list(proxy.stats["failed"]), ["http_protocol_error"])
            await proxy.empty()

    async def request_and(self, end: str, sent: bytes) -> None:
        origin, proxy = await start(self)
        client = await proxy.connect()
        client.send(sent)
        served = await origin.accepted()
        await served.request_head()
        await served.rest(1)
        getattr(client, end)()
        self.assertTrue(await served.lost(), "an orderly end could be taken for the whole")
        await proxy.empty()
        self.assertEqual([each.status for each in proxy.entries], [0])

    async def test_a_request(self) -> None:
        for sent in (
            request("POST", "/", b"0123456789")[:-1],
            request("POST", "/", None, CHUNKED) + b"a\r\n0123456789\r\n",
            request("POST", "/", None, CHUNKED) + b"a\r\n0123456789\r\n0\r\n",
        ):
            for end in ("close", "finish", "reset"):
                await self.request_and(end, sent)

    async def test_a_request_whose_chunks_break_a_rule(self) -> None:
        for bad in (b"x\r\n", b"1\nA\r\n", b"1\r\nAB\r\n", b"0\r\nBad Name: x\r\n\r\n", b"-1\r\n"):
            origin, proxy = await start(self)
            client = await proxy.connect()
            client.send(request("POST", "/", None, CHUNKED) + b"1\r\nA\r\n")
            served = await origin.accepted()
            await served.request_head()
            client.send(bad + request("GET", "/smuggled"))
            response = await client.response()
            self.assertEqual((response.status, response["Connection"]), (400, "close"), bad)
            await client.nothing_more()
            self.assertTrue(await served.lost(), bad)
            self.assertNotIn(b"smuggled", served.received)
            client.close()
            await proxy.empty()

    async def test_a_first_chunk_that_breaks_a_rule(self) -> None:
        """It came with the head: then nobody need be asked."""
        origin = await start_origin(self, [OK])
        proxy = start_http(self, origin)
        client = await proxy.connect()
        client.send(request("POST", "/", None, CHUNKED) + b"x\r\n")
        self.assertEqual((await client.response()).status, 400)
        await client.nothing_more()
        self.assertEqual(origin.ends, [])

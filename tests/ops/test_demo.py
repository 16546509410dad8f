"""The demo: it says where it is, and what it says is true."""

from __future__ import annotations

import json
import re
import socket
import ssl
from pathlib import Path
from urllib.request import urlopen

from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from proxykit.ops import demo
from proxykit.ops.demo import DemoService
from tests.sockets import (
    HOST,
    TIMEOUT,
    ClockedReactor,
    free_port,
    in_thread,
    start_backend,
)


def fetch(url: str) -> bytes:
    with urlopen(url, timeout=20) as response:
        answer: bytes = response.read()
        return answer


def ask(authority: str, host: str, port: str, name: str) -> str:
    """What is answered over TLS, by whom the authority says is of that name."""
    context = ssl.create_default_context(cafile=authority)
    with (
        socket.create_connection((host, int(port)), 20) as plain,
        context.wrap_socket(plain, server_hostname=name) as secure,
    ):
        secure.sendall(f"GET / HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: secure.recv(4096), b""))
    return answer.decode().partition("\r\n\r\n")[2]


class DemoTests(TestCase):
    timeout = TIMEOUT

    def start(self) -> str:
        self.said: list[str] = []
        self.service = DemoService(ClockedReactor(), self.said.append)
        self.addCleanup(lambda: Deferred.fromCoroutine(self.stop()))
        self.service.privilegedStartService()
        self.service.startService()
        (text,) = self.said
        return text

    async def stop(self) -> None:
        await self.service.stopService()
        await self.service.abort_connections()

    def ports(self, tcp: int = 0, http: int = 0, admin: int = 0) -> None:
        self.patch(demo, "TLS_PORT", 0)
        self.patch(demo, "TCP_PORT", tcp)
        self.patch(demo, "HTTP_PORT", http)
        self.patch(demo, "ADMIN_PORT", admin)

    async def test_what_it_says_to_try(self) -> None:
        self.ports()
        tcp, http, again, two, ports = re.findall(r"http://\S+(?=.*\n)", self.start())[1:]
        self.assertEqual(http, again)
        for url in (tcp, http):
            answers = sorted([(await in_thread(fetch, url)).decode() for _ in range(2)])
            self.assertRegex(answers[0], rf"^origin (one|two) answers / to {HOST}:\d+\n$")
            self.assertRegex(answers[1], r"^origin two answers / to ")
        self.assertRegex((await in_thread(fetch, two)).decode(), "^origin two answers /two/ to ")
        budgets = json.loads(await in_thread(fetch, ports))["budgets"]
        self.assertEqual(len(budgets), 3)

    async def test_tls(self) -> None:
        """The same certificate authority for what ends in the proxy and what goes through it."""
        self.ports()
        text = self.start()
        commands = re.findall(r"--cacert (\S+) --connect-to ::(\S+):(\d+) https://(\S+)/", text)
        answers = [await in_thread(ask, *each) for each in commands]
        self.assertRegex(answers[0], rf"^origin (one|two) answers / to {HOST}:\d+\n$")
        self.assertRegex(answers[1], rf"^origin three answers / to {HOST}:\d+\n$")
        authority = Path(commands[0][0])
        self.assertTrue(authority.exists())
        await self.service.stopService()
        self.assertFalse(authority.parent.exists())

    async def test_a_port_that_is_free(self) -> None:
        with_port = free_port(self)
        # That one is bound, but nobody listens there; bind() with SO_REUSEADDR may share it or not.
        self.ports(with_port)
        self.assertIn("curl http://127.0.0.1:", self.start())

    async def test_ports_that_are_taken(self) -> None:
        taken = await start_backend(self)
        self.ports(*[taken.address.port] * 3)
        for url in re.findall(r"http://\S+", self.start()):
            self.assertNotIn(f":{taken.address.port}/", url)

    async def test_once_it_is_stopped_nobody_listens(self) -> None:
        self.ports()
        origins = re.findall(rf"origins ({HOST}:\d+) and ({HOST}:\d+)", self.start())
        await self.service.stopService()
        for address in origins[0]:
            with self.assertRaises(OSError):
                await in_thread(fetch, f"http://{address}/")

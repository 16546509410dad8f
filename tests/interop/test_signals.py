"""twistd and its signals: SIGHUP reads the file again, SIGTERM drains, a second one ends at once;
and systemd, which hands sockets over and is told how it goes."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.trial.unittest import TestCase

from tests.interop.programs import TWICE, TWISTD, Child
from tests.sockets import HOST, blocking, start_backend, until

FILE = """
drain_timeout = {drain}
[clusters.web]
backends = ["{backend}"]
[[listeners]]
name = "raw"
listen = "{listen}"
mode = "tcp"
cluster = "web"
"""
LISTENS = r"raw: listening on 127\.0\.0\.1:(\d+)"


class SignalTests(TestCase):
    """twistd ends by the signal that it was told to end by, as a shell or systemd expects."""

    skip = TWICE
    timeout = 60

    async def start(
        self,
        *,
        drain: float = 30.0,
        listen: str = f"tcp:0:interface={HOST}",
        wrap: tuple[str, ...] = (),
        rundir: bool = False,
    ) -> None:
        made = tempfile.TemporaryDirectory()
        self.addCleanup(made.cleanup)
        self.path = Path(made.name, "proxykit.toml")
        self.backend = await start_backend(self)
        self.fill = {"drain": drain, "listen": listen, "backend": self.backend.address}
        self.path.write_text(FILE.format(**self.fill))
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.addCleanup(self.notify.close)
        where = os.path.join(made.name, "notify")
        self.notify.bind(where)
        self.told: list[str] = []
        service = [sys.executable, *TWISTD, "proxykit", "--config", str(self.path)]
        if rundir:
            # The backend is in a file there; the configuration is named from here.
            os.mkdir(os.path.join(made.name, "there"))
            Path(made.name, "there", "backends").write_text(f"{self.backend.address}\n")
            discover = '[clusters.web.discover]\nby = "file"\npath = "backends"\n'
            text = FILE.format(**self.fill).replace("[[listeners", f"{discover}[[listeners")
            self.path.write_text(re.sub("backends = .*", "", text))
            where_to = os.path.join(made.name, "there")
            service = [sys.executable, *TWISTD, "-d", where_to, "proxykit"]
            service += ["--config", os.path.relpath(self.path)]
        environ = {**os.environ, "NOTIFY_SOCKET": where}
        self.service = Child.start(self, [*wrap, *service], env=environ)
        match = await self.service.wait_for(LISTENS)
        self.port = int(match[1])
        await self.hears("READY=1")

    async def hears(self, state: str) -> None:
        """Wait until systemd has been told so; what came before is forgotten."""

        def heard() -> bool:
            try:
                while True:
                    self.told += self.notify.recv(1000).decode().split("\n")
            except BlockingIOError:
                pass
            return state in self.told

        await until(heard)
        self.told = self.told[self.told.index(state) + 1 :]

    def send(self, number: signal.Signals) -> None:
        self.service.signal(number.name.removeprefix("SIG"))

    async def client(self) -> Any:
        connection = blocking(self, self.port)
        served = await self.backend.accepted()
        return connection, served

    async def test_reload(self) -> None:
        """A wrong file changes nothing, and the log names the place; a right one does, and the
        connection that is there lives on."""
        await self.start()
        connection, served = await self.client()
        self.path.write_text(FILE.format(**self.fill) + "\nidle_timeout = 'x'\n")
        self.send(signal.SIGHUP)
        place = re.escape(f"{self.path}:11: listeners[0].idle_timeout: expected a number")
        await self.service.wait_for(f"not reloaded, and nothing has changed: {place}")
        await self.hears("RELOADING=1")
        await self.hears("READY=1")
        self.path.write_text(FILE.format(**{**self.fill, "drain": 1.5}) + "max_connections = 7\n")
        self.send(signal.SIGHUP)
        await self.service.wait_for("reloaded: drain_timeout ")
        await self.service.wait_for("reloaded: listener raw: max_connections 10000 -> 7")
        await self.hears("READY=1")
        connection.sendall(b"still here")
        await served.got(b"still here")
        self.path.unlink()
        self.send(signal.SIGHUP)
        await self.service.wait_for(f"nothing has changed: {re.escape(str(self.path))}: cannot")
        connection.close()
        self.assertEqual(await self.service.stop(), -signal.SIGTERM)
        self.assertNotIn("Traceback", self.service.output)

    async def test_elsewhere(self) -> None:
        """Relative paths are those of the directory that twistd runs in, then and later."""
        await self.start(rundir=True)
        connection, _ = await self.client()
        self.path.write_text(self.path.read_text().replace("= 30", "= 0", 1))
        self.send(signal.SIGHUP)
        await self.service.wait_for("reloaded: drain_timeout ")
        connection.close()
        await self.service.stop()
        self.assertNotIn("no backends", self.service.output)

    async def test_drain(self) -> None:
        await self.start()
        connection, served = await self.client()
        self.send(signal.SIGTERM)
        await self.service.wait_for(r"draining: 1 connection to end within 30 s \(raw: 1\)")
        await self.hears("STOPPING=1")
        connection.sendall(b"one more thing")
        await served.got(b"one more thing")
        connection.close()
        served.close()
        self.assertEqual(await self.service.ended(), -signal.SIGTERM)
        self.assertIn("proxykit: drained in ", self.service.output)
        self.assertNotIn("Traceback", self.service.output)

    async def test_a_second_time(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            await self.start()
            await self.client()
            self.send(number)
            await self.service.wait_for("draining: 1 connection")
            self.send(number)
            await self.service.wait_for("told to end at once: 1 connection cut off")
            self.assertEqual(await self.service.ended(), -number)
            self.assertNotIn("Traceback", self.service.output)

    async def test_time_is_over(self) -> None:
        await self.start(drain=0.2)
        await self.client()
        self.send(signal.SIGTERM)
        await self.service.wait_for(r"drain_timeout, 0\.2 s, is over: 1 connection cut off")
        self.assertEqual(await self.service.ended(), -signal.SIGTERM)

    async def test_a_socket_of_systemds(self) -> None:
        """It is there before the service is, and stays as it is over a reload."""
        listening = socket.socket()
        self.addCleanup(listening.close)
        listening.bind((HOST, 0))
        listening.listen()
        # As systemd does it: the first descriptor is 3, and the process knows its own number.
        names = "LISTEN_FDS=1 LISTEN_FDNAMES=front LISTEN_PID=$$"
        script = f'export {names}; exec "$@"'
        self.as_descriptor_3(listening.fileno())
        await self.start(listen="systemd:domain=INET:index=0", wrap=("sh", "-c", script, "sh"))
        self.assertEqual(self.port, listening.getsockname()[1])
        connection, served = await self.client()
        self.path.write_text(FILE.format(**self.fill) + "max_connections = 7\n")
        self.send(signal.SIGHUP)
        await self.service.wait_for("reloaded: listener raw: max_connections 10000 -> 7")
        await self.client()
        connection.sendall(b"!")
        await served.got(b"!")
        self.send(signal.SIGTERM)
        await self.service.wait_for("draining: 2 connections")
        self.send(signal.SIGTERM)
        await self.service.ended()

    def as_descriptor_3(self, number: int) -> None:
        """Let the next process have this descriptor, too."""
        spawn = reactor.spawnProcess  # type: ignore[attr-defined]

        def with_one_more(*args: Any, **more: Any) -> Any:
            return spawn(*args, **{**more, "childFDs": {0: "w", 1: "r", 2: "r", 3: number}})

        self.patch(reactor, "spawnProcess", with_one_more)

"""What tests of source ports have in common: a proxy that has few, backends, and many clients.

All of them are real programs. The proxy and its clients are on the near side of a network, the
backends, of nginx, on its far side; clients have ports that the proxy never uses::

    await self.start_network()
    await self.start_backends()
    await self.start_proxy("tcp")
    held = await self.hold(400)
    self.assertEqual(held.outcomes, {"200": 196, "ECONNRESET": 204})
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen
from twisted.trial.unittest import TestCase

from proxykit.lab.bench import Sockets
from tests.interop import programs
from tests.interop.namespaces import Network
from tests.interop.ports_clients import Client
from tests.sockets import BLOCKING
from tests.tls_certificates import pem

#: The kernel's, unless a test says otherwise; and what the proxy uses of so many.
PORTS = (40000, 40199)
SIZE, LIMIT = 200, 196
#: Where clients connect to.
FRONT = "127.0.0.1:8080"
BACKEND = "10.0.1.1:80"
SOURCE = "10.0.0.1"
#: What nobody should ever see.
KERNEL_SAYS = ("Cannot assign requested address", "Address already in use", "Traceback")
#: What a budget's ports are used for.
USES = ("active", "idle", "reserved", "time_wait", "foreign")

# From another port than the proxy uses: a port that is plainly bound is lost for whoever lets the
# kernel pick one.
_ASK = "curl -sS --local-port 31000-32000 http://127.0.0.1:9901"

_NGINX = """
keepalive_timeout 300s;
keepalive_requests 1000000;
limit_req_zone $server_port zone=all:1m rate={rate}r/s;
{tls}
server {{
    {listen}
    root {{directory}};
    # There is nothing; a "return" right here would come before the wait.
    error_page 403 404 =200 @ok;
    limit_req zone=all burst=100000;
    location @ok {{ return 200 "ok\\n"; }}
}}
"""

_FILE = """
[admin]
listen = "tcp:9901:interface=127.0.0.1"
[sources]
{sources}
[clusters.web]
backends = {backends}
{cluster}
[[listeners]]
name = "front"
listen = "tcp:8080:interface=127.0.0.1"
mode = "{mode}"
cluster = "web"
"""


@frozen
class Held:
    """Clients that have connected and stay.

    :ivar each: what has become of them.
    """

    child: programs.Child
    each: list[Client]

    @property
    def outcomes(self) -> Counter[str]:
        """How many have come to what."""
        return Counter(client.outcome for client in self.each)

    def seconds(self, *outcomes: str) -> list[float]:
        """How long these took, in order."""
        return sorted(client.seconds for client in self.each if client.outcome in outcomes)


@frozen
class Both:
    """The book, and what ``ss`` has shown before and after it."""

    before: Sockets
    budgets: list[dict[str, Any]]
    after: Sockets


class PortsTestCase(TestCase):
    """See above.

    :ivar service: the proxy that was started last.
    """

    timeout = 60

    async def start_network(self, **named: Any) -> None:
        """Make the two sides; sets ``network``. Without arguments there is one backend's address,
        one source, and 200 ports."""
        self._sources = 1
        self.network = await Network.start(self, **{"ports": PORTS, **named})

    def directory(self) -> Path:
        """A new one."""
        directory = Path(self.mktemp()).resolve()
        directory.mkdir(parents=True)
        return directory

    async def start_backends(
        self, *addresses: str, tls: bool = False, rate: int = 1000000
    ) -> programs.Child:
        """One nginx that listens at all of these.

        :param rate: how many requests it answers in a second, at the most.
        """
        addresses = addresses or (BACKEND,)
        lines = ""
        if tls:
            path = self.directory() / "both.pem"
            path.write_bytes(pem("a.example"))
            lines = f"ssl_certificate {path}; ssl_certificate_key {path};"
        tail = " ssl" if tls else ""
        listen = " ".join(f"listen {each} backlog=4096{tail};" for each in addresses)
        text = _NGINX.format(listen=listen, tls=lines, rate=rate)
        return await programs.nginx(self, text, within=self.network.far.within)

    async def start_proxy(
        self,
        mode: str,
        *backends: str,
        sources: str = "",
        cluster: str = "queue_timeout = 1",
        twistd: Sequence[str] = (),
    ) -> programs.Child:
        """The proxy, in front of the one backend, or of these."""
        path = self.directory() / "proxykit.toml"
        backends = backends or (BACKEND,)
        text = _FILE.format(
            mode=mode, backends=json.dumps(backends), sources=sources, cluster=cluster
        )
        path.write_text(text)
        self.service = await programs.service(
            self, ["--config", str(path)], twistd=twistd, within=self.network.near.within
        )
        return self.service

    def start_clients(self, what: str, *options: str, to: str = FRONT) -> programs.Child:
        """The program of ``ports_clients``, its clients having an address of their own."""
        if "--picked" not in options:
            self._sources += 1
            options = ("--source", f"127.0.0.{self._sources}", *options)
        argv = [sys.executable, "-m", "tests.interop.ports_clients", what, to, *options]
        return programs.Child.start(
            self,
            argv,
            env=programs.environment(),
            cwd=programs.TREE,
            within=self.network.near.within,
        )

    async def hold(self, count: int, *options: str, to: str = FRONT) -> Held:
        """So many clients that connect at once, and stay."""
        child = self.start_clients("hold", "--clients", str(count), *options, to=to)
        match = await child.wait_for(r"^\[.*\]$")
        return Held(child, [Client(**each) for each in json.loads(match[0])])

    async def eat(self, count: int, source: str = SOURCE, backend: str = BACKEND) -> Held:
        """Another program, which takes so many of the ports."""
        options = ("--send", "nothing", "--picked", "--source", source)
        held = await self.hold(count, *options, to=backend)
        self.assertEqual(held.outcomes, {"served": count})
        return held

    async def book(self) -> list[dict[str, Any]]:
        """The budgets of ``/api/ports``."""
        return (await self.both()).budgets

    async def closed_first(self) -> dict[str, int]:
        """How often who was the first to close a connection to the one backend."""
        clusters = json.loads(await self.network.near.run(*f"{_ASK}/api/clusters".split()))
        (backend,) = clusters["clusters"][0]["backends"]
        counts: dict[str, int] = backend["closed_first"]
        return counts

    async def both(self, *peers: str) -> Both:
        """The budgets of ``/api/ports``, and the sockets around that.

        :param peers: the backends.
        """
        script = f"ss -Htan; echo =; {_ASK}/api/ports; echo =; ss -Htan"
        before, book, after = (await self.network.near.run("sh", "-ec", script)).split("=\n")
        peers = peers or (BACKEND,)
        return Both(
            Sockets.parse(before).to(*peers),
            json.loads(book)["budgets"],
            Sockets.parse(after).to(*peers),
        )

    async def sockets(self, *peers: str) -> Sockets:
        """The proxy's sockets to backends (and those of others)."""
        return await self.network.near.sockets(*(peers or (BACKEND,)))

    async def established(self, *peers: str) -> int:
        """How many of them are connected."""
        return (await self.sockets(*peers)).states["ESTAB"]

    async def becomes(self, look: Callable[[], Awaitable[Any]], wanted: Any) -> None:
        """Look again and again, until what is seen is this."""
        given_up = time.monotonic() + BLOCKING
        while (seen := await look()) != wanted and time.monotonic() < given_up:
            pass
        self.assertEqual(seen, wanted)

    def assert_no_word_of_the_kernel(self) -> None:
        """Nothing that the kernel has said got as far as the log."""
        for said in KERNEL_SAYS:
            self.assertNotIn(said, self.service.output)

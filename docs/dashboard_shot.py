"""Make docs/dashboard.png, the dashboard of a real service that is short of ports.

The service, its clients, its backends and the browser run in a network of their own (as root, or
where users may make namespaces), in which the kernel gives 1,000 ports to each destination. Takes
about as long as the history on the page should be: ``make dashboard-shot``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.interop import chromium, programs  # noqa: E402

#: The proxy's own address, and those of its backends.
PROXY = "10.0.0.1"
BACKENDS = ("10.1.0.1", "10.1.0.2", "10.2.0.1", "10.3.0.1")
PORTS = "32768 33767"

CONFIG = """
[admin]
listen = "tcp:9901:interface=127.0.0.1"

[sources]
addresses = ["10.0.0.1"]

[clusters.web]
backends = ["10.1.0.1:80", "10.1.0.2:80"]
[clusters.web.health]
path = "/healthz"
interval = 1.0

[clusters.database]
backends = ["10.2.0.1:5432"]
max_connections = 2000

[clusters.mail]
backends = ["10.3.0.1:25"]

[[listeners]]
name = "www"
listen = "tcp:8080:interface=10.0.0.1"
mode = "http"
cluster = "web"

[[listeners]]
name = "database"
listen = "tcp:5432:interface=10.0.0.1"
mode = "tcp"
cluster = "database"
max_connections = 2000

[[listeners]]
name = "mail"
listen = "tcp:25:interface=10.0.0.1"
mode = "tcp"
cluster = "mail"
"""


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A web server, one of which is not well."""
    address = writer.get_extra_info("sockname")[0]
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            well = b"/healthz" not in head or address != BACKENDS[1]
            body = b"x" * 20000
            status = b"200 OK" if well else b"503 Service Unavailable"
            await asyncio.sleep(0.004 if address == BACKENDS[0] else 0.012)
            writer.write(b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body))
            await writer.drain()
    writer.close()


async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A server that says a word, and is spoken to for a while."""
    with contextlib.suppress(OSError):
        writer.write(b"220 hello\r\n")
        await reader.read()
    writer.close()


async def browse(rate: float) -> None:
    """Clients who ask again and again."""
    reader, writer = await asyncio.open_connection(PROXY, 8080)
    while True:
        writer.write(b"GET / HTTP/1.1\r\nHost: example\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(20000)
        await asyncio.sleep(rate)


async def hold(port: int, seconds: float) -> None:
    """A client who stays."""
    reader, writer = await asyncio.open_connection(PROXY, port)
    with contextlib.suppress(OSError, TimeoutError):
        await asyncio.wait_for(reader.read(), seconds)
    writer.close()


async def come(port: int, each: float, seconds: float) -> None:
    """Another client every so often, each of whom stays for so many seconds."""
    async with asyncio.TaskGroup() as group:
        while True:
            group.create_task(hold(port, seconds))
            await asyncio.sleep(each)


@contextlib.asynccontextmanager
async def program(*argv: str, **options: object) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a program, and end it."""
    made = await asyncio.create_subprocess_exec(*argv, **options)  # type: ignore[arg-type]
    try:
        yield made
    finally:
        with contextlib.suppress(ProcessLookupError):
            made.send_signal(signal.SIGKILL)
        await made.wait()


async def said(stream: asyncio.StreamReader, pattern: bytes) -> re.Match[bytes]:
    """Wait for a line."""
    async for line in stream:
        if match := re.search(pattern, line):
            return match
    raise SystemExit("ended too early")


async def make(out: Path, seconds: float) -> None:
    """Start everything, wait, and take the picture."""
    with tempfile.TemporaryDirectory(prefix="proxykit-shot-") as name:
        home = Path(name)
        (home / "proxykit.toml").write_text(CONFIG)
        for address in BACKENDS[:2]:
            await asyncio.start_server(answer, address, 80)
        await asyncio.start_server(greet, BACKENDS[2], 5432)
        await asyncio.start_server(greet, BACKENDS[3], 25)
        service = program(
            *(sys.executable, *programs.TWISTD, "proxykit", "--config", "proxykit.toml"),
            cwd=home,
            env=programs.environment(),
            stdout=subprocess.PIPE,
        )
        browser = program(
            *("chromium", *chromium.FLAGS, f"--user-data-dir={home / 'profile'}", "about:blank"),
            cwd=home,
            env=chromium.environment(home),
            stderr=subprocess.PIPE,
        )
        async with service as running, browser as shown:
            assert running.stdout is not None
            assert shown.stderr is not None
            await said(running.stdout, rb"admin.* listening on|mail: listening on")
            rest = asyncio.create_task(said(running.stdout, rb"never"))
            where = (await said(shown.stderr, rb"^DevTools listening on (ws://\S+)$"))[1].decode()
            loads = [
                *(asyncio.create_task(browse(0.02 + at / 1000)) for at in range(20)),
                asyncio.create_task(come(5432, 0.2, 10**6)),
                asyncio.create_task(come(25, 0.12, 6.0)),
            ]
            try:
                await asyncio.sleep(seconds)
                await asyncio.to_thread(shoot, where, out)
            finally:
                for task in (rest, *loads):
                    task.cancel()
                await asyncio.gather(rest, *loads, return_exceptions=True)


def shoot(browser: str, out: Path) -> None:
    """The page, as soon as it shows what goes on."""
    with chromium.Page(browser) as page:
        page.resize(1100, 1190)
        page.command("Emulation.setScrollbarsHidden", hidden=True)
        page.goto("http://127.0.0.1:9901/")
        page.until("document.querySelectorAll('.budget').length === 4")
        # The rates are known from the second event on.
        page.until("/out [1-9]/.test(document.querySelector('#listeners').innerText)")
        page.shot(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=150.0, help="of load before it is taken")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "dashboard.png")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not arguments.inside:
        # Processes of its own, too: none of them is left behind.
        how = ["--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
        how += [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
        os.execvp("unshare", ["unshare", *how, sys.executable, *sys.argv, "--inside"])
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    for address in (PROXY, *BACKENDS):
        subprocess.run(["ip", "address", "add", f"{address}/32", "dev", "lo"], check=True)
    Path("/proc/sys/net/ipv4/ip_local_port_range").write_text(PORTS)
    asyncio.run(make(arguments.out.resolve(), arguments.seconds))


if __name__ == "__main__":
    main()

"""For tests of the admin listener: a proxy that has one, and clients of it."""

from __future__ import annotations

import json
from http.client import HTTPConnection, HTTPMessage
from typing import Any

from attrs import evolve, frozen
from twisted.trial.unittest import TestCase

from tests.sockets import HOST, TIMEOUT, End, Proxy, connect, in_thread, start_backend, start_proxy

TOKEN = "0123456789abcdef"
BEARER = {"authorization": f"Bearer {TOKEN}"}


@frozen
class Answer:
    status: int
    header: HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        found: str = self.json["error"]
        return found


class AdminCase(TestCase):
    timeout = TIMEOUT

    async def start(self, token: str = "", hosts: tuple[str, ...] = ()) -> Proxy:
        self.backend = await start_backend(self)
        self.proxy = start_proxy(self, self.backend, admin=True, slow_start=0.0)
        service = self.proxy.service
        if token or hosts:
            service.apply(evolve(service.config, admin_token=token, admin_hosts=hosts))
        return self.proxy

    @property
    def port(self) -> int:
        assert self.proxy.service.admin_port is not None
        port: int = self.proxy.service.admin_port.getHost().port  # type: ignore[attr-defined]
        return port

    async def ask(
        self, path: str, method: str = "GET", body: bytes | None = None, **header: str | None
    ) -> Answer:
        """One request on a connection of its own.

        :param header: more fields, ``_`` for ``-``; a Host is sent unless there is one, or None.
        """

        def talk() -> Answer:
            connection = HTTPConnection(HOST, self.port, timeout=20)
            try:
                connection.putrequest(method, path, skip_host="host" in header)
                fields = {"connection": "close", **header}
                if body is not None:
                    fields.setdefault("content_length", str(len(body)))
                for name, value in fields.items():
                    if value is not None:
                        connection.putheader(name.replace("_", "-"), value)
                connection.endheaders(body)
                response = connection.getresponse()
                return Answer(response.status, response.headers, response.read())
            finally:
                connection.close()

        answer: Answer = await in_thread(talk)
        return answer

    async def talk(self, text: bytes = b"") -> End:
        """A connection, on which this was sent."""
        end: End = await connect(self, self.port)
        if text:
            end.send(text)
        return end

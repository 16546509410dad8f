"""The proxy that one writes with aiohttp: ``python -m benchmarks.aiohttp_proxy PORT BACKEND``."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Mapping

from aiohttp import ClientSession, ClientTimeout, DummyCookieJar, TCPConnector, web
from multidict import CIMultiDict
from yarl import URL

#: What is said of one connection, and not passed on (RFC 9110 section 7.6.1).
OF_ONE_HOP = {"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"}


def passed_on(fields: Mapping[str, str]) -> CIMultiDict[str]:
    """The fields of a message that are for its other end, too."""
    return CIMultiDict(each for each in fields.items() if each[0].lower() not in OF_ONE_HOP)


def application(backend: str) -> web.Application:
    """A server whose every answer is the backend's; bodies are streamed both ways."""

    async def session(app: web.Application) -> AsyncIterator[None]:
        async with ClientSession(
            connector=TCPConnector(limit=0, keepalive_timeout=600),
            timeout=ClientTimeout(total=None, sock_connect=5, sock_read=600),
            cookie_jar=DummyCookieJar(),
            auto_decompress=False,
        ) as app[SESSION]:
            yield

    async def relay(request: web.Request) -> web.StreamResponse:
        async with request.app[SESSION].request(
            request.method,
            URL(f"http://{backend}{request.raw_path}", encoded=True),
            headers=passed_on(request.headers),
            data=request.content if request.body_exists else None,
            allow_redirects=False,
        ) as answer:
            response = web.StreamResponse(
                status=answer.status, reason=answer.reason, headers=passed_on(answer.headers)
            )
            await response.prepare(request)
            async for part in answer.content.iter_any():
                await response.write(part)
            await response.write_eof()
            return response

    app = web.Application()
    app.cleanup_ctx.append(session)
    app.router.add_route("*", "/{path:.*}", relay)
    return app


SESSION = web.AppKey("session", ClientSession)


def main(port: str, backend: str) -> None:
    """Pass requests on until a signal comes."""
    web.run_app(
        application(backend),
        host="127.0.0.1",
        port=int(port),
        access_log=None,
        backlog=4096,
        keepalive_timeout=600,
        print=None,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])

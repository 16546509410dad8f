"""Backends by their names in the DNS, asked for again whenever an answer has run out.

An answer is good for its time to live, and a name server that fails, has nothing or knows no such
name takes no backend away: the last good answer stands for as long as there is no other. So does it
where a part of what is needed cannot be found out, such as one of the targets of an SRV record.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from attrs import field, frozen
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.names import dns
from zope.interface import implementer

from proxykit.checks import Check, Each, one_of, positive_seconds, whole_between
from proxykit.interfaces import IBackendSource
from proxykit.model import Address, Backend
from proxykit.sources.lookup import NoAnswer, Resolver, Server

if TYPE_CHECKING:
    from twisted.internet.interfaces import IDelayedCall

#: How many aliases may lead to one another.
LONGEST_CHAIN = 8
#: The most that a backend can weigh.
_HEAVIEST = 256
_HIGHEST_PORT = 65535
_log = Logger(namespace="proxykit.sources.dns")
_LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_NAME = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(\.{_LABEL})*\.?")
_SERVICE = re.compile(r"\A(_[^.]*\.)+")
_KINDS = {"A": (dns.A,), "AAAA": (dns.AAAA,), "A+AAAA": (dns.A, dns.AAAA)}
_SRV = "SRV"


def _is_name(text: str) -> bool:
    return bool(_NAME.fullmatch(text)) and not text.replace(".", "").isdigit()


def server(text: str) -> Server:
    """A name server as users write it: an IP address, and a port where it is not 53.

    :raises ValueError: it is none.
    """
    try:
        return str(ipaddress.ip_address(text)), dns.PORT
    except ValueError:
        pass
    try:
        address = Address.parse(text)
    except ValueError:
        address = Address("", 0)
    if not address.is_ip:
        raise ValueError(
            "expected an IP address such as 10.0.0.53, 10.0.0.53:5353 or [fd00::53]:53"
        )
    return address.host, address.port


@frozen
class DnsSettings:
    """
    :ivar name: what is asked for; it is whole, no search domain is tried.
    :ivar port: of the backends; an SRV record says it itself.
    :ivar type: of the records.
    :ivar servers: who is asked; empty: those of ``/etc/resolv.conf``.
    :ivar timeout: seconds for one question to one server; each is asked twice.
    :ivar min_ttl: seconds that an answer is good for at the least, ``max_ttl``: at the most.
    :ivar retry_max: seconds between two tries at the most, while all fail; the first comes after
        ``min_ttl``, and each takes twice as long to come.
    """

    name: str = field(metadata={"check": Check("a name such as web.internal", _is_name)})
    port: int | None = field(default=None, metadata={"check": whole_between(1, _HIGHEST_PORT)})
    type: str = field(default="A", metadata={"check": one_of(*_KINDS, _SRV)})
    servers: tuple[str, ...] = field(default=(), metadata={"check": Each(server)})
    timeout: float = field(default=2.0, metadata={"check": positive_seconds})
    min_ttl: float = field(default=1.0, metadata={"check": positive_seconds})
    max_ttl: float = field(default=300.0, metadata={"check": positive_seconds})
    retry_max: float = field(default=30.0, metadata={"check": positive_seconds})

    def __attrs_post_init__(self) -> None:
        if self.type == _SRV and self.port is not None:
            raise ValueError("expected no port: SRV records say it")
        if self.type != _SRV and self.port is None:
            kind = self.type
            raise ValueError(f'expected a port, which {kind} records do not say, or type = "SRV"')
        if self.min_ttl > self.max_ttl:
            raise ValueError("expected a min_ttl that is not above max_ttl")


@frozen
class Answer:
    """What was found.

    :ivar ttl: seconds that it is good for: the least of all records that were used.
    """

    backends: tuple[Backend, ...]
    ttl: float


async def find(settings: DnsSettings, resolver: Resolver) -> Answer:
    """Look for the backends, all of them.

    :raises NoAnswer: there are none, or not all of what is needed could be found out.
    """
    search = _Search(resolver)
    if settings.type == _SRV:
        backends = await search.services(settings.name)
    else:
        name, port = settings.name.rstrip("."), settings.port or 0
        hosts = [host for kind in _KINDS[settings.type] for host in await search.hosts(name, kind)]
        backends = [Backend(Address(host, port), name=f"{name}:{port}") for host in hosts]
    if not backends:
        raise NoAnswer(search.nothing or f"{settings.name} has no {settings.type} record")
    # Servers give them in another order each time.
    unique = {each.address: each for each in reversed(backends)}
    found = sorted(unique.values(), key=lambda each: (":" in each.address.host, str(each.address)))
    return Answer(tuple(found), min(search.ttls))


class _Search:
    """All questions that one answer takes.

    :ivar ttls: of the records that were used.
    :ivar nothing: why there may be none, if somebody has said.
    """

    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver
        self._extra: list[Any] = []
        self.ttls: list[float] = []
        self.nothing = ""

    async def services(self, name: str) -> list[Backend]:
        """The backends that SRV records name (RFC 2782), the most wanted ones first."""
        answers = await self._records(name, dns.SRV)
        self.ttls += map(_ttl, answers)
        # A target that is the root says that there is no such service.
        records = [each.payload for each in answers if _text(each.payload.target)]
        records.sort(key=lambda each: (each.priority, -each.weight))
        if not records:
            return []
        first, heaviest = records[0].priority, max(each.weight for each in records)
        scale = min(1.0, _HEAVIEST / max(1, heaviest))
        # Whoever forges a target has a certificate for that (RFC 9525 section 6.1).
        known_as = _SERVICE.sub("", name.rstrip("."))
        hosts: dict[str, list[str]] = {}
        found: list[Backend] = []
        for record in records:
            target = _text(record.target)
            if target not in hosts:
                hosts[target] = await self._target(target)
            weight = max(1, int(record.weight * scale))
            backup = record.priority > first
            found += [
                Backend(Address(host, record.port), weight, backup, f"{known_as}:{record.port}")
                for host in hosts[target]
                if record.port
            ]
        return found

    async def _target(self, name: str) -> list[str]:
        """The IPv4 addresses of one target, or else those of IPv6: it is one backend, not two."""
        for kind in (dns.A, dns.AAAA):
            known = [each for each in self._extra if (_text(each.name), each.type) == (name, kind)]
            if hosts := self._usable(known) or await self.hosts(name, kind):
                return hosts
        # Somebody has named it, so that something is amiss.
        raise NoAnswer(self.nothing or f"{name} has no address")

    async def hosts(self, name: str, kind: int) -> list[str]:
        """The IP addresses of a name."""
        return self._usable(await self._records(name, kind))

    def _usable(self, records: Iterable[Any]) -> list[str]:
        hosts = []
        for record in records:
            address = ipaddress.ip_address(record.payload.address)
            # What answers for names that it blocks, and what no server has.
            if not (address.is_unspecified or address.is_multicast):
                hosts.append(str(address))
                self.ttls.append(_ttl(record))
        return hosts

    async def _records(self, name: str, kind: int) -> list[Any]:
        """The records of a name and type, by whatever aliases; none where there are none."""
        at = name.rstrip(".").lower()
        for _ in range(LONGEST_CHAIN):
            asked, message = at, await self._resolver.ask(at, kind)
            self._extra += filter(_is_known, message.additional)
            records = [each for each in message.answers if _is_known(each)]
            while aliases := _named(records, at, dns.CNAME):
                records.remove(aliases[0])
                self.ttls.append(_ttl(aliases[0]))
                at = _text(aliases[0].payload.name)
            if found := _named(records, at, kind):
                return found
            if message.rCode == dns.ENAME:
                self.nothing = f"there is no name {at}"
                return []
            if at == asked:
                return []
        raise NoAnswer(f"{name} leads from alias to alias, and nowhere")


def _is_known(record: Any) -> bool:
    return record.cls == dns.IN and isinstance(record.payload, _PAYLOADS)


_PAYLOADS = (dns.Record_A, dns.Record_AAAA, dns.Record_CNAME, dns.Record_SRV)


def _named(records: Iterable[Any], name: str, kind: int) -> list[Any]:
    return [each for each in records if (_text(each.name), each.type) == (name, kind)]


def _text(name: dns.Name) -> str:
    return name.name.decode("ascii", "backslashreplace").rstrip(".").lower()


def _ttl(record: Any) -> float:
    # RFC 2181 section 8: with the highest bit it is none.
    return float(record.ttl) if 0 <= record.ttl < 1 << 31 else 0.0


@implementer(IBackendSource)
class DnsSource:
    """The source ``dns``."""

    settings = DnsSettings

    def check(self, settings: DnsSettings) -> None:
        """See ``IBackendSource.check``: nobody is asked, for that would be waited for."""

    def watch(
        self,
        settings: DnsSettings,
        tell: Callable[[tuple[Backend, ...]], object],
        reactor: Any,
        cluster: str,
    ) -> Callable[[], object]:
        """See ``IBackendSource.watch``."""
        return _Watch(settings, tell, reactor, cluster).stop


class _Watch:
    """One name that is asked for again and again."""

    def __init__(
        self,
        settings: DnsSettings,
        tell: Callable[[tuple[Backend, ...]], object],
        reactor: Any,
        cluster: str,
    ) -> None:
        self._settings = settings
        self._tell = tell
        self._reactor = reactor
        self._cluster = cluster
        self._resolver = Resolver([*map(server, settings.servers)], settings.timeout, reactor)
        self._told: tuple[Backend, ...] | None = None
        #: Tries that have failed, since the last that has not.
        self._failures = 0
        self._next: IDelayedCall | None = None
        self._asking = self._ask()

    def stop(self) -> None:
        """Ask no more, and do not wait for an answer, either."""
        if self._next is not None:
            self._next.cancel()
            self._next = None
        self._asking.cancel()

    def _ask(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self._look()).addErrback(
            lambda bug: _log.failure("{cluster}: dns", bug, cluster=self._cluster)
        )

    def _ask_again(self) -> None:
        self._next = None
        self._asking = self._ask()

    async def _look(self) -> None:
        """Ask once, and see to it that it is asked again."""
        settings = self._settings
        try:
            answer = await find(settings, self._resolver)
        except CancelledError:
            return
        except Exception as error:
            self._later(min(settings.retry_max, settings.min_ttl * 2.0 ** min(self._failures, 64)))
            if not isinstance(error, NoAnswer):
                _log.failure("{cluster}: dns: {why!r}", cluster=self._cluster, why=error)
            self._failed(str(error))
        else:
            self._later(min(settings.max_ttl, max(settings.min_ttl, answer.ttl)))
            self._found(answer.backends)

    def _later(self, delay: float) -> None:
        self._next = self._reactor.callLater(delay, self._ask_again)

    def _failed(self, why: str) -> None:
        self._failures += 1
        if self._failures == 1:
            stay = "there are no backends from it yet" if self._told is None else _STAY
            _log.error("{cluster}: dns: {why}; {stay}", cluster=self._cluster, why=why, stay=stay)

    def _found(self, backends: tuple[Backend, ...]) -> None:
        failures, self._failures = self._failures, 0
        before, self._told = self._told, backends
        if failures or before != backends:
            _log.info(
                "{cluster}: dns: {count} {word} from {name}{after}",
                cluster=self._cluster,
                count=len(backends),
                word="backend" if len(backends) == 1 else "backends",
                name=self._settings.name,
                failures=failures,
                after=f", after {failures} failed tries" if failures > 1 else "",
            )
        if before != backends:
            self._tell(backends)


_STAY = "the backends stay those of before"

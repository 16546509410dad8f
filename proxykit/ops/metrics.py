"""All that is counted, for Prometheus.

``render(service)`` gives it at once. Where there are a thousand backends that takes a fifth of a
second, in which nothing else is done; so the admin listener has a :class:`Metrics`, which lets the
loop go round every few milliseconds. prometheus_client only writes down what it is given: one
registry for each service, and nothing of it where requests pass.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from math import inf
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample
from twisted.internet.defer import Deferred, succeed
from twisted.python.failure import Failure

from proxykit.ops.metric_names import (
    ALL_BUDGETS,
    BACKENDS,
    BUDGETS,
    CLUSTERS,
    LISTENERS,
    SERVICE,
    Family,
)
from proxykit.ops.metric_rows import (
    Row,
    Rows,
    budget_rows,
    cluster_rows,
    listener_rows,
    service_rows,
)

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from proxykit.ops.service import ProxyService

#: Of what ``render`` gives.
CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
#: How many samples are written down in one go: some milliseconds' worth.
SLICE = 250
#: Seconds for which an answer is good for further scrapes.
GOOD_FOR = 1.0

#: What is sent for a scrape: the text and its type.
Scraped = tuple[bytes, str]


def render(service: ProxyService) -> bytes:
    """All metrics, in Prometheus' text format."""
    return b"".join(text for text, _ in Metrics(service, None).slices(""))


class _Service(Collector):
    """What proxykit itself counts."""

    def __init__(self, service: ProxyService) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        """Family by family. What belongs together is read at one moment."""
        service = self._service
        yield from _metrics(SERVICE, service_rows(service))
        yield from _metrics(LISTENERS, listener_rows(service.listeners.values()))
        yield from _metrics((*CLUSTERS, *BACKENDS), cluster_rows(service))
        yield from _metrics((*BUDGETS, *ALL_BUDGETS), budget_rows(service.accountant.snapshot()))


class _Part(Collector):
    """A few samples of one metric, which is all that an encoder asks for."""

    def __init__(self, metric: Metric, samples: list[Sample]) -> None:
        self._part = Metric(metric.name, metric.documentation, metric.type, metric.unit)
        self._part.samples = samples

    def collect(self) -> list[Metric]:
        """Them."""
        return [self._part]


class Metrics:
    """The metrics of one service.

    :param clock: whose turns the work is spread over; None: it is not.
    :ivar registry: further collectors may be added; each metric of theirs is one slice of work.
    """

    def __init__(self, service: ProxyService, clock: IReactorTime | None) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_Service(service))
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self._clock = clock
        # By type: what was answered last and when; and who waits for what is being written.
        self._last: dict[str, tuple[float, bytes]] = {}
        self._waiting: dict[str, list[Deferred[Scraped]]] = {}

    def scrape(self, accept: str = "") -> Deferred[Scraped]:
        """All metrics, in the format that is wanted.

        :param accept: an Accept header: OpenMetrics, or else Prometheus' text format.
        :returns: fires, perhaps at once, with the text and its type. Several that ask within
            ``GOOD_FOR`` seconds get the same text.
        """
        clock = self._clock
        assert clock is not None, "without a clock there is only render()"
        kind = choose_encoder(accept)[1]
        at, text = self._last.get(kind, (0.0, b""))
        if text and 0 <= clock.seconds() - at < GOOD_FOR:
            return succeed((text, kind))
        answer: Deferred[Scraped] = Deferred()
        if kind in self._waiting:
            self._waiting[kind].append(answer)
        else:
            self._waiting[kind] = [answer]
            self._write(clock, kind, self.slices(accept), [])
        return answer

    def _write(
        self, clock: IReactorTime, kind: str, slices: Iterator[tuple[bytes, int]], done: list[bytes]
    ) -> None:
        """Go on, for one turn."""
        # What is made here is gone by the end of the turn, and nothing of it is garbage. So much of
        # it would have the collector look through all that this process has: 50 ms.
        collects = gc.isenabled()
        gc.disable()
        try:
            whole = self._slice(slices, done)
        except Exception:
            for each in self._waiting.pop(kind):
                each.errback(Failure())
            return
        finally:
            if collects:
                gc.enable()
        if not whole:
            clock.callLater(0, self._write, clock, kind, slices, done)
            return
        text = b"".join(done)
        self._last[kind] = (clock.seconds(), text)
        for each in self._waiting.pop(kind):
            each.callback((text, kind))

    def _slice(self, slices: Iterator[tuple[bytes, int]], done: list[bytes]) -> bool:
        """
        :returns: whether that was the last one.
        """
        left = SLICE
        for text, count in slices:
            done.append(text)
            left -= count
            if left <= 0:
                return False
        return True

    def slices(self, accept: str) -> Iterator[tuple[bytes, int]]:
        """The text in pieces, and how many samples are in each."""
        encode, kind = choose_encoder(accept)
        end = b""
        for metric in self.registry.collect():
            samples = metric.samples
            # One that has no samples yet is named all the same, for whoever looks for it.
            for start in range(0, max(1, len(samples)), SLICE):
                part = samples[start : start + SLICE]
                text = encode(_Part(metric, part))
                if kind.startswith("application/openmetrics-text"):
                    end = b"# EOF\n"
                    text = text.removesuffix(end)
                if start:
                    text = _without_comments(text)
                yield text, len(part)
        yield end, 0


def _without_comments(text: bytes) -> bytes:
    """What goes on with a family has no second heading."""
    while text.startswith(b"#"):
        text = text.partition(b"\n")[2]
    return text


def _metrics(families: Iterable[Family], rows: Rows) -> Iterator[Metric]:
    for family in families:
        yield _metric(family, rows.found.get(family.name, ()))


def _metric(family: Family, rows: Iterable[Row]) -> Metric:
    name = family.name
    if family.kind in ("counter", "info"):
        name = name.removesuffix("_total").removesuffix("_info")
    metric = Metric(name, family.help, family.kind)
    for values, value in rows:
        labels = dict(zip(family.labels, values, strict=True))
        if isinstance(value, tuple):
            metric.samples += _histogram(name, labels, *value)
        else:
            metric.samples.append(Sample(family.name, labels, value))
    return metric


def _bound(value: float) -> str:
    """As OpenMetrics has it: always with a point."""
    return "+Inf" if value == inf else repr(float(value))


def _histogram(name: str, labels: dict[str, str], buckets: Any, total: float) -> Iterator[Sample]:
    """Prometheus' buckets have all that is in the smaller ones, too."""
    count = 0
    for bound in sorted(buckets):
        count += buckets[bound]
        yield Sample(f"{name}_bucket", {**labels, "le": _bound(bound)}, count)
    yield Sample(f"{name}_count", labels, count)
    yield Sample(f"{name}_sum", labels, total)

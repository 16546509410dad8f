"""What the service has counted, as rows for the families of metric_names.py.

All is read from plain integers and snapshots, when somebody asks: nothing is done for it before.
What a mode's snapshot has is looked at with care, for a mode may come from anywhere.
"""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Iterable, Mapping
from math import inf
from typing import TYPE_CHECKING, Any

import twisted
from proxykit import __version__
from proxykit.core.forecast import Level
from proxykit.core.registry import STATES
from proxykit.net.listener import STARVED

if TYPE_CHECKING:
    from proxykit.core.stats import Answers, Histogram
    from proxykit.net.listener import Listener
    from proxykit.ops.service import ProxyService

#: How many backends, and how many budgets, have series of their own; and how many values a label
#: has that is one of a fixed set of words, which OpenSSL or a mode may have the last word on. What
#: came first stays, so that no sum of the others ever goes down.
MOST = 1000
MOST_WORDS = 64
#: What the others are called together.
OTHER = "other"
#: How many ports of a budget are used for what.
USES = ("active", "idle", "reserved", "time_wait", "foreign")

#: The values of labels, and a number; of a histogram, its buckets (each for itself, by their upper
#: bounds) and the sum of all that was observed.
Buckets = tuple[Mapping[float, int], float]
Row = tuple[tuple[str, ...], float | Buckets]


class Rows:
    """Rows by the names of their families.

    :ivar found: no row has the same labels as another one of its name.
    """

    def __init__(self) -> None:
        self.found: dict[str, list[Row]] = {}

    def add(self, name: str, value: float | Buckets, *labels: str) -> None:
        """One more row."""
        self.found.setdefault(name, []).append((labels, value))

    def words(self, name: str, counts: object, *labels: str) -> None:
        """A row for each word that something was counted by."""
        rest = 0.0
        for number, (word, count) in enumerate(_numbers(counts).items()):
            if number < MOST_WORDS:
                self.add(name, count, *labels, word)
            else:
                rest += count
        if rest:
            self.add(name, rest, *labels, OTHER)


def service_rows(service: ProxyService) -> Rows:
    """For ``SERVICE``."""
    rows, lag = Rows(), service.lag
    rows.add("proxykit_build_info", 1, __version__, platform.python_version(), twisted.__version__)
    rows.add("proxykit_start_time_seconds", service.started)
    rows.add("proxykit_draining", service.draining)
    every = sum(len(each.connections) for each in service.all_listeners)
    named = sum(len(each.connections) for each in service.listeners.values())
    rows.add("proxykit_leaving_connections", every - named)
    rows.add("proxykit_loop_lag_seconds", _buckets(lag.lateness))
    rows.add("proxykit_loop_lag_max_seconds", lag.worst)
    return rows


def listener_rows(listeners: Iterable[Listener]) -> Rows:
    """For ``LISTENERS``."""
    rows = Rows()
    for listener in listeners:
        shown, name = listener.snapshot(), listener.name
        rows.add("proxykit_listener_connections", shown["connections"], name)
        rows.add("proxykit_listener_connections_limit", shown["max_connections"], name)
        rows.add("proxykit_listener_accepted_total", shown["accepted"], name)
        paused = shown["paused"]
        starved = paused == STARVED
        rows.add("proxykit_listener_paused", bool(paused) and not starved, name, "connections")
        rows.add("proxykit_listener_paused", starved, name, "descriptors")
        refused = Counter(shown.get("refused", {}))
        traffic = shown.get("traffic")
        if isinstance(traffic, Mapping):
            _traffic(rows, name, traffic, refused)
        rows.words("proxykit_listener_refused_total", refused, name)
        tls = shown.get("tls")
        if tls is not None:
            rows.add("proxykit_listener_tls_handshakes_total", tls["handshakes"], name)
            rows.add("proxykit_listener_tls_resumed_total", tls["resumed"], name)
            rows.words("proxykit_listener_tls_failures_total", tls["failed"], name)
    return rows


def _traffic(rows: Rows, name: str, traffic: Mapping[str, object], refused: Counter[str]) -> None:
    """What a mode says of itself.

    :param refused: connections that were turned away; those that a mode turned away are added.
    """
    by_requests = "statuses" in traffic
    if by_requests:
        rows.words("proxykit_listener_requests_total", traffic["statuses"], name)
        rows.words("proxykit_listener_malformed_total", traffic.get("refused"), name)
        rows.words("proxykit_listener_failed_total", traffic.get("failed"), name)
        _number(rows, "proxykit_listener_reused_total", traffic.get("reused"), name)
        _number(rows, "proxykit_listener_repeated_total", traffic.get("repeated"), name)
    else:
        rows.words("proxykit_listener_ended_total", traffic.get("ended"), name)
        own = traffic.get("own")
        if isinstance(own, Mapping):
            rows.add("proxykit_listener_relayed_total", sum(_numbers(own).values()), name)
        _refused(rows, name, traffic, refused)
    for direction in ("up", "down"):
        count = traffic.get(f"bytes_{direction}")
        _number(rows, "proxykit_listener_bytes_total", count, name, direction)
    seconds = traffic.get("seconds")
    if isinstance(seconds, Mapping) and {"buckets", "sum"} <= seconds.keys():
        buckets = {float(bound): count for bound, count in seconds["buckets"].items()}
        what = "request" if by_requests else "connection"
        family = f"proxykit_listener_{what}_duration_seconds"
        rows.add(family, (buckets, seconds["sum"]), name)


def _refused(rows: Rows, name: str, traffic: Mapping[str, object], refused: Counter[str]) -> None:
    """Connections that a mode turned away: before it had looked for a backend, and after."""
    in_all, hellos = traffic.get("refused"), traffic.get("hellos")
    before: dict[str, int] = {}
    if isinstance(hellos, Mapping):
        before = _numbers(hellos.get("refused"))
        refused.update(before)
        handed_over = hellos.get("handed_over")
        _number(rows, "proxykit_listener_handed_over_total", handed_over, name)
    if isinstance(in_all, int):
        refused["no upstream"] += in_all - sum(before.values())


def _numbers(counts: object) -> dict[str, Any]:
    """What a mode has counted by words, if that is what it is."""
    if not isinstance(counts, Mapping):
        return {}
    return {str(word): count for word, count in counts.items() if isinstance(count, int | float)}


def _number(rows: Rows, name: str, value: object, *labels: str) -> None:
    if isinstance(value, int | float):
        rows.add(name, value, *labels)


def cluster_rows(service: ProxyService) -> Rows:
    """For ``CLUSTERS`` and ``BACKENDS``."""
    rows, pools = Rows(), service.pool.snapshots()
    left = MOST
    for cluster in service.registry:
        shown = cluster.snapshot()
        name, backends = shown["name"], shown["backends"]
        for each in backends[:left]:
            _backend(rows, name, each)
        rows.add("proxykit_cluster_backends_unlisted", max(0, len(backends) - left), name)
        left = max(0, left - len(backends))
        _cluster(rows, shown, cluster.stats)
        _pool(rows, name, pools.get(name) or service.pool.snapshot(name))
    return rows


def _cluster(rows: Rows, shown: dict[str, Any], stats: Answers) -> None:
    name, queue, backends = shown["name"], shown["queue"], shown["backends"]
    rows.add("proxykit_cluster_queue_waiting", queue["waiting"], name)
    rows.add("proxykit_cluster_queue_limit", queue["limit"], name)
    rows.add("proxykit_cluster_queue_timeouts_total", queue["timed_out"], name)
    rows.add("proxykit_cluster_queue_refused_total", queue["refused"], name)
    counts = Counter(each["state"] for each in backends)
    for state in (*STATES, "removed"):
        rows.add("proxykit_cluster_backends", counts[state], name, state)
    usable = sum(_is_usable(each) for each in backends)
    rows.add("proxykit_cluster_backends_usable", usable, name)
    rows.add("proxykit_cluster_panic", shown["panic"], name)
    retries = shown["retries"]
    rows.add("proxykit_cluster_requests_total", retries["requests"], name)
    rows.add("proxykit_cluster_retries_total", retries["retried"], name)
    rows.add("proxykit_cluster_retries_refused_total", retries["refused"], name)
    for digit, count in enumerate(stats.statuses[1:6], 1):
        rows.add("proxykit_cluster_answers_total", count, name, f"{digit}xx")
    rows.add("proxykit_cluster_answer_latency_seconds", _buckets(stats.latency), name)
    for what in ("served", "failures", "ejections"):
        count = getattr(stats, what) + sum(each[what] for each in backends)
        rows.add(f"proxykit_cluster_{what}_total", count, name)
    for who, count in stats.closed_first.items():
        count += sum(each["closed_first"][who] for each in backends)
        rows.add("proxykit_cluster_closed_first_total", count, name, who)


def _pool(rows: Rows, name: str, pool: dict[str, Any]) -> None:
    rows.add("proxykit_pool_idle", pool["idle"], name)
    rows.add("proxykit_pool_opening", pool["opening"], name)
    rows.words("proxykit_pool_opened_total", pool["own"], name)
    rows.add("proxykit_pool_reused_total", pool["reused"], name)
    rows.words("proxykit_pool_not_kept_total", pool["not_kept"], name)


def _is_usable(shown: dict[str, Any]) -> bool:
    """Whether a backend may be sent new work."""
    return shown["state"] == "up" and shown["health"] != "down" and not shown["ejected_seconds"]


def _backend(rows: Rows, name: str, shown: dict[str, Any]) -> None:
    where, add = (name, shown["address"]), rows.add
    add("proxykit_backend_up", _is_usable(shown), *where)
    add("proxykit_backend_state", 1, *where, shown["state"])
    if shown["health"] != "unknown":
        add("proxykit_backend_healthy", shown["health"] == "up", *where)
    add("proxykit_backend_ejected", bool(shown["ejected_seconds"]), *where)
    add("proxykit_backend_ejections_total", shown["ejections"], *where)
    add("proxykit_backend_weight", shown["weight"] * shown["share"], *where)
    add("proxykit_backend_in_flight", shown["in_flight"], *where)
    add("proxykit_backend_connections", shown["connections"], *where)
    add("proxykit_backend_served_total", shown["served"], *where)
    add("proxykit_backend_failures_total", shown["failures"], *where)
    if shown["latency_seconds"] is not None:
        add("proxykit_backend_latency_seconds", shown["latency_seconds"], *where)
    for who, count in shown["closed_first"].items():
        add("proxykit_backend_closed_first_total", count, *where, who)


def budget_rows(budgets: list[dict[str, Any]]) -> Rows:
    """For ``BUDGETS`` and ``ALL_BUDGETS``.

    :param budgets: as ``/api/ports`` shows them.
    """
    rows = Rows()
    counts = Counter(each["level"] for each in budgets)
    for level in Level:
        word = level.name.lower()
        rows.add("proxykit_budgets", counts[word], word)
    if len(budgets) > MOST:
        # Those that are scarce are the ones to be seen.
        budgets = sorted(budgets, key=lambda each: -_level(each))
    rows.add("proxykit_budgets_unlisted", max(0, len(budgets) - MOST))
    for each in budgets[:MOST]:
        where = (each["protocol"], each["source"], each["destination"])
        left = each["forecast_seconds"]
        _budget(rows, each, inf if left is None else left, _level(each), *where)
    if rest := budgets[MOST:]:
        summed = {
            key: sum(each[key] for each in rest)
            for key in ("size", "headroom", "free", "denied", *USES)
        }
        lefts = [each["forecast_seconds"] for each in rest]
        least = min((left for left in lefts if left is not None), default=inf)
        worst = max(map(_level, rest))
        _budget(rows, summed, least, worst, OTHER, OTHER, OTHER)
    return rows


def _level(shown: dict[str, Any]) -> Level:
    return Level[shown["level"].upper()]


def _budget(rows: Rows, shown: dict[str, Any], left: float, level: Level, *where: str) -> None:
    rows.add("proxykit_budget_size", shown["size"], *where)
    rows.add("proxykit_budget_limit", shown["size"] - shown["headroom"], *where)
    for use in USES:
        rows.add("proxykit_budget_ports", shown[use], *where, use)
    rows.add("proxykit_budget_free", shown["free"], *where)
    rows.add("proxykit_budget_denied", shown["denied"], *where)
    rows.add("proxykit_budget_forecast_seconds", left, *where)
    rows.add("proxykit_budget_level", level, *where)


def _buckets(histogram: Histogram) -> Buckets:
    bounds = (*histogram.bounds, inf)
    return dict(zip(bounds, histogram.counts, strict=True)), histogram.total

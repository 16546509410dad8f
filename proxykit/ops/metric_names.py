"""The names of all metrics, what each is, and its labels: docs/metrics.rst has the same.

Names are those of Prometheus: base units (seconds, bytes), ``_total`` for what only grows. Nothing
that a client sends is a label: each value of one is a name in the configuration, an address of a
backend, or one of a fixed set of words.
"""

from __future__ import annotations

from typing import Literal

from attrs import frozen

Kind = Literal["counter", "gauge", "histogram", "info"]


@frozen
class Family:
    """Some series of one name.

    :ivar name: as it is scraped; a histogram's without its suffixes.
    :ivar labels: what tells them apart.
    :ivar help: one line.
    """

    name: str
    labels: tuple[str, ...]
    help: str
    kind: Kind


def _families(labels: str, *rows: tuple[str, str, str]) -> tuple[Family, ...]:
    """Some that have labels in common.

    :param rows: the name, further labels, and the help; those whose names do not tell their kind
        are gauges.
    """
    return tuple(
        Family(name, tuple(f"{labels} {more}".split()), text, _kind(name))
        for name, more, text in rows
    )


def _kind(name: str) -> Kind:
    if name.endswith("_total"):
        return "counter"
    if name.endswith("_info"):
        return "info"
    return "histogram" if name in _HISTOGRAMS else "gauge"


_HISTOGRAMS = {
    "proxykit_listener_request_duration_seconds",
    "proxykit_listener_connection_duration_seconds",
    "proxykit_cluster_answer_latency_seconds",
    "proxykit_loop_lag_seconds",
}

SERVICE = _families(
    "",
    ("proxykit_build_info", "version python twisted", "What runs here; always 1."),
    ("proxykit_start_time_seconds", "", "When the service was started, in Unix time."),
    ("proxykit_draining", "", "Whether it is about to end: 1 while it drains."),
    (
        "proxykit_leaving_connections",
        "",
        "Connections of listeners that a reload has removed, which have time to end.",
    ),
    (
        "proxykit_loop_lag_seconds",
        "",
        "How late the event loop was, looked at twice a second.",
    ),
    (
        "proxykit_loop_lag_max_seconds",
        "",
        "The most that the event loop was late within the last minute.",
    ),
)

LISTENERS = _families(
    "listener",
    ("proxykit_listener_connections", "", "Connections of clients that are open."),
    (
        "proxykit_listener_connections_limit",
        "",
        "How many it may have (max_connections); then it stops accepting.",
    ),
    ("proxykit_listener_accepted_total", "", "Connections that were accepted."),
    (
        "proxykit_listener_paused",
        "reason",
        "Whether it does not accept at the moment, and for want of what: connections, descriptors.",
    ),
    (
        "proxykit_listener_refused_total",
        "reason",
        "Connections that were turned away, by the reason.",
    ),
    (
        "proxykit_listener_requests_total",
        "code",
        "Requests that are over, by the class of the answer's status; none: the client left.",
    ),
    (
        "proxykit_listener_malformed_total",
        "rule",
        "Messages, of clients or backends, that broke a rule of HTTP, by the rule.",
    ),
    (
        "proxykit_listener_failed_total",
        "error",
        "Requests that no backend answered, by the type of error (RFC 9209).",
    ),
    (
        "proxykit_listener_reused_total",
        "",
        "Requests that went on a connection that had been used before.",
    ),
    (
        "proxykit_listener_repeated_total",
        "",
        "Requests that were sent again, for the connection turned out to be dead.",
    ),
    (
        "proxykit_listener_relayed_total",
        "",
        "Connections of clients (L4) that got a backend's connection of their own.",
    ),
    (
        "proxykit_listener_handed_over_total",
        "",
        "Connections that went on to another listener, by their server name.",
    ),
    (
        "proxykit_listener_ended_total",
        "reason",
        "Connections (L4) that are over, by what ended them.",
    ),
    (
        "proxykit_listener_bytes_total",
        "direction",
        "Bytes of the requests (L7) and connections (L4) that are over: up, from clients; down.",
    ),
    (
        "proxykit_listener_request_duration_seconds",
        "",
        "From the beginning of a request to the end of its answer.",
    ),
    (
        "proxykit_listener_connection_duration_seconds",
        "",
        "How long connections (L4) lasted that are over.",
    ),
    ("proxykit_listener_tls_handshakes_total", "", "TLS handshakes that were done."),
    (
        "proxykit_listener_tls_resumed_total",
        "",
        "Those of them that went on from an earlier session.",
    ),
    (
        "proxykit_listener_tls_failures_total",
        "reason",
        "TLS handshakes that came to nothing, by the reason.",
    ),
)

CLUSTERS = _families(
    "cluster",
    ("proxykit_cluster_queue_waiting", "", "Who waits for a port or a slot."),
    ("proxykit_cluster_queue_limit", "", "How many may wait (queue)."),
    (
        "proxykit_cluster_queue_timeouts_total",
        "",
        "Those who waited in vain, until queue_timeout.",
    ),
    ("proxykit_cluster_queue_refused_total", "", "Those who found the queue full."),
    (
        "proxykit_cluster_backends",
        "state",
        "Backends by the operator's word (up, drain, down), or removed with connections left.",
    ),
    (
        "proxykit_cluster_backends_usable",
        "",
        "Backends that may be sent new work: up, not unwell, and not ejected.",
    ),
    (
        "proxykit_cluster_backends_unlisted",
        "",
        "Backends that have no series of their own, being beyond the first 1,000 of all.",
    ),
    (
        "proxykit_cluster_panic",
        "",
        "Whether all backends are used, for too many are unwell (panic).",
    ),
    (
        "proxykit_cluster_answers_total",
        "code",
        "Answers (L7) that its backends began, by the class of the status.",
    ),
    (
        "proxykit_cluster_answer_latency_seconds",
        "",
        "From a request that was sent to a backend to the beginning of its answer (L7).",
    ),
    (
        "proxykit_cluster_served_total",
        "",
        "Attempts at a backend that succeeded, at those that are gone included.",
    ),
    (
        "proxykit_cluster_failures_total",
        "",
        "Attempts at a backend that failed, at those that are gone included.",
    ),
    (
        "proxykit_cluster_ejections_total",
        "",
        "How often backends were ejected, those that are gone included.",
    ),
    (
        "proxykit_cluster_closed_first_total",
        "by",
        "Connections to backends, by who closed first, and so keeps the port; after a reset none.",
    ),
    (
        "proxykit_cluster_requests_total",
        "",
        "Requests and connections that wanted a backend: the retry budget is a share of them.",
    ),
    ("proxykit_cluster_retries_total", "", "Further attempts, after one had failed."),
    (
        "proxykit_cluster_retries_refused_total",
        "",
        "Further attempts that were not made, for the retry budget was used up.",
    ),
    ("proxykit_pool_idle", "", "Connections to backends that lie idle in the pool."),
    ("proxykit_pool_opening", "", "Requests that wait for a connection that is being opened."),
    (
        "proxykit_pool_opened_total",
        "reason",
        "Connections that were opened, by why none that was there would do.",
    ),
    ("proxykit_pool_reused_total", "", "Requests that got a connection from the pool."),
    (
        "proxykit_pool_not_kept_total",
        "reason",
        "Connections that nobody else may have any more, by the reason.",
    ),
)

BACKENDS = _families(
    "cluster backend",
    (
        "proxykit_backend_up",
        "",
        "Whether it may be sent new work: up, not unwell, and not ejected.",
    ),
    (
        "proxykit_backend_state",
        "state",
        "The operator's word (up, drain, down), or removed; always 1.",
    ),
    (
        "proxykit_backend_healthy",
        "",
        "What the checks say; there is none where they do not, or not yet.",
    ),
    ("proxykit_backend_ejected", "", "Whether it is left alone for what was seen of it."),
    ("proxykit_backend_ejections_total", "", "How often it was left alone."),
    (
        "proxykit_backend_weight",
        "",
        "Its share of the load beside the others', as it is now (slow start).",
    ),
    (
        "proxykit_backend_in_flight",
        "",
        "Requests (L7) or connections (L4) that it serves, those being connected included.",
    ),
    (
        "proxykit_backend_connections",
        "",
        "Sockets that are connected to it, or being connected.",
    ),
    ("proxykit_backend_served_total", "", "Attempts that succeeded."),
    ("proxykit_backend_failures_total", "", "Attempts that failed."),
    (
        "proxykit_backend_latency_seconds",
        "",
        "A moving average: to the beginning of an answer (L7), or of a connect (L4).",
    ),
    (
        "proxykit_backend_closed_first_total",
        "by",
        "Connections to it, by who closed first, and so keeps the port; after a reset none.",
    ),
)

BUDGETS = _families(
    "protocol source destination",
    ("proxykit_budget_size", "", "Source ports that the kernel has for this way."),
    (
        "proxykit_budget_limit",
        "",
        "How many of them are handed out: the size less the headroom.",
    ),
    (
        "proxykit_budget_ports",
        "use",
        "Ports that are taken, by what for: active, idle, reserved, time_wait, foreign.",
    ),
    ("proxykit_budget_free", "", "How many more may be handed out now."),
    (
        "proxykit_budget_denied",
        "",
        "Ports that the kernel does not give, though by the book it has them.",
    ),
    (
        "proxykit_budget_forecast_seconds",
        "",
        "In how many seconds none will be free; 0: none is; +Inf: not within an hour.",
    ),
    (
        "proxykit_budget_level",
        "",
        "How scarce its ports are: 0 ok, 1 half of them are used, 2 nearly all.",
    ),
)

ALL_BUDGETS = _families(
    "",
    ("proxykit_budgets", "level", "How many budgets are at which level, the unlisted included."),
    (
        "proxykit_budgets_unlisted",
        "",
        "Budgets that have no series of their own, beyond 1,000; one named other is their sum.",
    ),
)

FAMILIES: tuple[Family, ...] = (
    *SERVICE,
    *LISTENERS,
    *CLUSTERS,
    *BACKENDS,
    *BUDGETS,
    *ALL_BUDGETS,
)

"""What is said when ports get scarce, and when they are not any more; and what to do about it.

At half of a budget it is time to know of it, for two reasons. One is that there is as much again,
and no more. The other is that from there on each connect takes the kernel longer. Since Linux 4.2
connect() looks for a port among those of one parity first, as a rule the even ones, and leaves the
others to bind() (commits 07f4c90062f8 and 1580ab63fc9a). When all of these are taken towards a
destination, each connect looks at every one of them in vain before it comes to the others. With
28,232 ports, on Linux 6.18, it took 15 us of CPU time up to half and 900 us at once above, in
which a proxy of one thread does nothing else; with a plain bind() first, 5 ms. Cloudflare has told
the like (*connect() - why are you so slow?*, 8 February 2024). Since Linux 6.8 a socket that has
IP_LOCAL_PORT_RANGE, be it the whole range, looks at all ports alike (commit 207184853dbd): 16 us
up to 95%, then 21. The connector asks for that when half of a budget is taken, and it is as good.
"""

from __future__ import annotations

from typing import NamedTuple

from proxykit.core.forecast import Level

#: Ports of a range that can hardly be wider.
WIDE = 50_000
#: How many remedies are named.
MOST = 4


class Figures(NamedTuple):
    """What is known of a budget whose level has changed.

    :ivar way: from where to where.
    :ivar size: how many ports the kernel has.
    :ivar limit: how many of them are handed out.
    :ivar taken: how many of those cannot be.
    :ivar active: how many carry traffic, or will at once; ``idle``: wait in a pool; ``time_wait``:
        rest, and nobody gets them; ``foreign``: somebody else has.
    :ivar left: the forecast, in seconds.
    :ivar plain: whether sockets are bound before the kernel knows where to: then a port that is
        taken is taken for all destinations.
    :ivar halves: whether the kernel looks at every second port first.
    """

    way: str
    size: int
    limit: int
    taken: int
    active: int
    idle: int
    time_wait: int
    foreign: int
    left: float | None
    plain: bool = False
    halves: bool = True


def message(level: Level, before: Level, figures: Figures) -> str:
    """One line for the log: that a budget has come to a level from another."""
    counts = _counts(figures)
    if level is Level.OK:
        return f"there are enough source ports {figures.way} again: {counts}"
    if level < before:
        return f"source ports {figures.way} do not run out any more: {counts}"
    if level is Level.HALF:
        slower = ", and each further connect takes the kernel longer" if figures.halves else ""
        text = f"half of the source ports {figures.way} are taken{slower}: {counts}"
    elif figures.left == 0:
        text = f"there is no source port left {figures.way}: {counts}"
    else:
        text = f"source ports {figures.way} are running out: {counts}"
    if figures.left:
        text += f"; as it goes on there is none in {_time(figures.left)}"
    return f"{text}; what helps: {'; or '.join(remedies(level, figures))}"


def _counts(figures: Figures) -> str:
    parts = (
        (figures.active, "active"),
        (figures.idle, "idle"),
        (figures.time_wait, "in TIME_WAIT"),
        (figures.foreign, "of other processes"),
    )
    told = ", ".join(f"{count} {what}" for count, what in parts if count)
    return f"{figures.taken} of {figures.limit}" + (f" ({told})" if told else "")


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def remedies(level: Level, figures: Figures) -> list[str]:
    """What to do, the cheapest first; what would hardly help is left out."""
    most = max(figures.active, figures.idle, figures.time_wait, figures.foreign)
    found = []
    if figures.plain:
        found.append("the proxykit reactor, on which each backend has as many ports for itself")
    elif level is Level.HALF and figures.halves:
        found.append(
            "port_range in [sources], be it the whole range, with Linux 6.8 or later: then"
            " connects are not slowed down"
        )
    if figures.time_wait == most > figures.active:
        found.append(
            "connections that last (mode http with its pool), or that the backend closes first"
        )
        if not figures.plain:
            found.append("the sysctl net.ipv4.tcp_tw_reuse = 1")
        found.append('close = "reset" for the cluster, at a risk')
    elif figures.idle == most > figures.active:
        found.append("a smaller max_idle, or a shorter idle_timeout, in [clusters.NAME.pool]")
    if figures.size < WIDE:
        found.append("a wider sysctl net.ipv4.ip_local_port_range")
    if figures.foreign == most > figures.active:
        found.append("an address in [sources] that the other processes do not use")
    else:
        found.append("another address in [sources]")
    if not figures.plain:
        found.append("another address or port of the backend")
    return found[:MOST]

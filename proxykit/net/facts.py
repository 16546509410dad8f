"""What a plan takes from this machine: see :class:`proxykit.core.capacity.Facts`."""

from __future__ import annotations

from contextlib import suppress

from twisted.internet.task import Clock

from proxykit.core.capacity import Facts
from proxykit.model import Config
from proxykit.net import kernel
from proxykit.net.listener import SPARE_DESCRIPTORS


def facts(config: Config, late: bool = True) -> Facts:
    """Ask the kernel what matters to a configuration. Nothing is sent.

    :param late: whether the service picks a source port when it knows where to, as it does on the
        proxykit reactor.
    :raises ValueError: the kernel says something that cannot be read.
    """
    # It stands still, so that each address is asked about once.
    source_of = kernel.SourceAddresses(Clock())
    ways = {}
    backends = (backend for cluster in config.clusters for backend in cluster.backends)
    for host in dict.fromkeys(each.address.host for each in backends if not each.address.is_unix):
        with suppress(OSError):
            ways[host] = source_of(host)
    sources = config.sources.addresses
    return Facts(
        kernel.port_range(),
        ways,
        kernel.time_wait_reuse(),
        kernel.descriptors(),
        SPARE_DESCRIPTORS,
        late,
        tuple(address for address in sources if not kernel.is_local(address)),
        kernel.time_waits(),
    )

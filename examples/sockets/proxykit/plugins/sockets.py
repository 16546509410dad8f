"""The name of the source, for proxykit to find; the module is imported when a cluster uses it."""

from proxykit.components import Component

sockets = Component(
    "source", "sockets", "proxykit_sockets:SocketsSource", "all sockets in a directory"
)

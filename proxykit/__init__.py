"""proxykit: proxy components for Twisted, and a service made of them."""

__version__ = "0.1.0"

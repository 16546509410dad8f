"""The experiments behind ``proxykit lab``: the real service, real sockets, namespaces of their own.

``bench.py`` is what an experiment works with; ``experiments/limit.py`` is one to begin with.
"""

"""What a proxied unit of work costs, side by side with other proxies. See ``__main__``.

One row with one proxy, and a look into it meanwhile, from another terminal::

    python -m benchmarks get --peers proxykit --rounds 1 --seconds 30 --no-write
    py-spy record --pid "$(pgrep -nf '[p]roxykit -c')" --duration 20 --output get.svg

The same beside HAProxy, for the ratio: ``--peers proxykit,haproxy``.
"""

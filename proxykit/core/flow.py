"""The main flow: one upstream choice, from "who takes this?" to a connected upstream.

An L4 mode makes one choice per connection, HTTP/1 one per request, HTTP/2 one per stream::

    choice = Choice(registry.cluster("web"), info, connector, protocol)
    got = flow.upstream(choice)             # an Attempt at once, or a Deferred of one
    ...
    attempt.upstream                        # what the connector made: use it
    attempt.end()                           # once, when the work is done

1. the cluster picks a backend that is up, has room and has not been tried by this choice;
2. the connector makes one attempt at it, which is ready at once (a pooled connection), under way,
   refused for want of room (then the cluster picks another one), or failed;
3. when all that are left are full, the choice waits in the cluster's one queue;
4. when an attempt failed and another try is safe, and the cluster's budget of retries has one, it
   starts again, without that backend.

It ends with an upstream, or with a ``ProxyError`` that says why there is none. Nobody else decides
on another try: a mode that loses an upstream later asks ``again``.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred, fail
from twisted.python.failure import Failure

from proxykit.core.choice import Attempt, Choice
from proxykit.core.waiting import OTHERS_WAIT, Full
from proxykit.errors import ProxyError, Retry, Side, nobody, refusal

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from proxykit.core.deadlines import Deadlines
    from proxykit.interfaces import IRegistry


class Flow:
    """See this module.

    :param registry: knows the clusters.
    :param deadlines: where modes keep their timeouts.
    :param clock: tells the time.
    """

    def __init__(self, registry: IRegistry, deadlines: Deadlines, clock: IReactorTime) -> None:
        self.registry = registry
        self.deadlines = deadlines
        self.clock = clock

    def upstream(self, choice: Choice) -> Attempt | Deferred[Attempt]:
        """Find an upstream.

        :returns: the attempt that has it, at once where that is possible. Otherwise a Deferred:
            it fails with ``ProxyError`` where there is none to be had; cancelling it leaves the
            queue, or ends the attempt that is under way.
        """
        if choice.started is None:
            choice.started = now = self.clock.seconds()
            retries = choice.cluster.retries
            if now >= retries.turn:
                retries.roll(now)
            retries.requests += 1
        try:
            got = OTHERS_WAIT if choice.cluster.queue.serving else self._try(choice)
            if isinstance(got, Full):
                self._wait(choice, got)
        except ProxyError as error:
            return fail(error.with_traceback(None))
        if isinstance(got, Attempt):
            return got
        choice.result = Deferred(lambda _: self._leave(choice))
        return choice.result

    def again(self, attempt: Attempt, error: ProxyError) -> Attempt | Deferred[Attempt]:
        """An upstream was lost after it had been given: try another, if that is safe.

        :param attempt: the one that had it; it ends here.
        :returns: as ``upstream`` does; it fails with ``error`` where another try is not safe.
        """
        try:
            self._note(attempt, error)
        except ProxyError:
            return fail(error.with_traceback(None))
        return self.upstream(attempt.choice)

    def _try(self, choice: Choice) -> Attempt | Full | None:
        """Try one backend after the other.

        :returns: an attempt with its upstream; None: one is under way; ``Full``: what to wait for.
        :raises ProxyError: there is nobody left to try.
        """
        cluster = choice.cluster
        while True:
            backend = cluster.pick(choice.info.client_host, choice.tried)
            if isinstance(backend, Full):
                return backend
            if backend is None or (choice.error is not None and not choice.may_try_again()):
                raise choice.error or nobody(cluster.config.name)
            attempt = Attempt(self, choice, backend)
            try:
                got = attempt.begin()
            except ProxyError as error:
                self._note(attempt, error)
                continue
            if isinstance(got, Full):
                attempt.end()
                cluster.block(backend, got)
                choice.not_tried()
                continue
            choice.attempt = attempt
            if got:
                backend.works(choice.shareable)
            return attempt if got else None

    def _note(self, attempt: Attempt, error: ProxyError) -> None:
        """Note a failed attempt; raise its error if there may be no other."""
        attempt.end()
        choice, backend = attempt.choice, attempt.backend
        choice.attempt = None
        if error.side is Side.UPSTREAM and error.retry is not Retry.REUSED_ONLY:
            backend.failed(error.message)
        choice.has_failed(backend, error)
        late = self.clock.seconds() - (choice.started or 0.0) > choice.cluster.config.deadline
        if error.retry is Retry.NEVER or late:
            raise error

    def succeeded(self, attempt: Attempt) -> None:
        """The connector has an upstream for this attempt."""
        attempt.backend.works(attempt.choice.shareable)
        self._settle(attempt.choice, attempt)

    def failed(self, attempt: Attempt, error: ProxyError) -> None:
        choice = attempt.choice
        try:
            self._note(attempt, error)
            got = self._try(choice)
            if isinstance(got, Full):
                self._wait(choice, got)
            elif got is not None:
                self._settle(choice, got)
        except ProxyError as last:
            self._settle(choice, last)

    def _wait(self, choice: Choice, full: Full) -> None:
        """Join the queue.

        :raises ProxyError: it is full as well.
        """
        if not choice.may_wait:
            raise refusal(f"the client has left; {full.what}")
        queue, name = choice.cluster.queue, choice.cluster.config.name
        serve, late = partial(self._serve, choice), partial(self._late, choice, full)
        choice.ticket = queue.join(serve, late, choice.waited)
        if choice.ticket is None:
            raise refusal(f"{full.what}; the queue of {name} is full (queue = {queue.limit})")
        choice.ticket.picky = bool(choice.tried)

    def _serve(self, choice: Choice) -> bool:
        """There may be room for one that waits."""
        try:
            got: Attempt | Full | ProxyError | None = self._try(choice)
        except ProxyError as error:
            got = error
        if isinstance(got, Full):
            return False
        choice.leave_queue()
        if got is not None:
            self._settle(choice, got)
        return True

    def _late(self, choice: Choice, full: Full) -> None:
        choice.ticket = None
        config = choice.cluster.config
        # What was full when it came, or what is by now.
        found = choice.cluster.pick(choice.info.client_host, choice.tried)
        what = found.what if isinstance(found, Full) else full.what
        waited = f"waited {config.queue_timeout:g} s in the queue of {config.name}: {what}"
        self._settle(choice, refusal(waited))

    def _leave(self, choice: Choice) -> None:
        """The mode has cancelled its Deferred."""
        choice.result = None
        choice.leave_queue()
        attempt, choice.attempt = choice.attempt, None
        if attempt is not None:
            choice.connector.cancel(attempt)
            attempt.end()

    def _settle(self, choice: Choice, outcome: Attempt | ProxyError) -> None:
        """Tell the mode. What it then does must find the books in order."""
        result, choice.result = choice.result, None
        if isinstance(outcome, ProxyError):
            outcome.__traceback__ = None
        if result is not None:
            result.callback(outcome if isinstance(outcome, Attempt) else Failure(outcome))

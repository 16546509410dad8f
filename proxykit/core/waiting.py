"""The one queue: nothing else in proxykit waits for room.

Each cluster has one. Who finds every backend full or out of ports takes a ticket; when something
comes free, tickets are offered it in the order they were taken. The queue is bounded, and a ticket
has a deadline.

Between two calls this holds: no ticket could be served with what is free. So a newcomer that finds
room overtakes nobody, and need not look at the queue at all.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

from attrs import frozen

if TYPE_CHECKING:
    from proxykit.core.deadlines import Deadline, Deadlines


@frozen
class Full:
    """There is no room, at the moment.

    :ivar what: what there is none of, naming it, with figures.
    :ivar ports: whether it is source ports, which others with the same destination have.
    """

    what: str
    ports: bool = False


#: What a newcomer waits for that comes while others are being served.
OTHERS_WAIT = Full("others were waiting")


class Ticket:
    """A place in the queue.

    :ivar picky: whether something that another one could use may be of no use to it.
    """

    __slots__ = ("_deadline", "_queue", "_since", "late", "picky", "serve")

    def __init__(self, queue: Queue, serve: Callable[[], bool], late: Callable[[], object]) -> None:
        self._queue = queue
        self._deadline: Deadline | None = None
        self._since = queue._deadlines.clock.seconds()
        self.serve = serve
        self.late = late
        self.picky = True

    def leave(self) -> float:
        """Give the place up: served, gone, or too late. Leaving twice does nothing more.

        :returns: seconds since it was taken.
        """
        self._queue._tickets.pop(self, None)
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        return self._queue._deadlines.clock.seconds() - self._since

    def _expire(self) -> None:
        self.leave()
        self._queue.timed_out += 1
        self.late()


class Queue:
    """Tickets in the order they were taken.

    :param limit: how many may wait.
    :param timeout: seconds that one may wait.
    :param room: whether anything is free at all; asked before each ticket is offered it.
    """

    def __init__(
        self, limit: int, timeout: float, deadlines: Deadlines, room: Callable[[], bool]
    ) -> None:
        self.limit = limit
        self.timeout = timeout
        #: How many deadlines came before room did, since the start.
        self.timed_out = 0
        #: How many found the queue itself full, since the start.
        self.refused = 0
        self._deadlines = deadlines
        self._room = room
        # An OrderedDict, for its first key is found at once; a dict looks at all that were deleted.
        self._tickets: OrderedDict[Ticket, None] = OrderedDict()
        self._waking = False
        self._again = False
        self._everyone = False

    def __len__(self) -> int:
        return len(self._tickets)

    @property
    def serving(self) -> bool:
        """Whether something is being offered to those who wait; a newcomer has to join them."""
        return self._waking and bool(self._tickets)

    def join(
        self, serve: Callable[[], bool], late: Callable[[], object], waited: float = 0.0
    ) -> Ticket | None:
        """Take a place at the end; None: there is none.

        :param serve: is called when there may be room. It leaves the queue and returns True, or
            returns False when it still has to wait.
        :param late: is called at the deadline, after the place was given up.
        :param waited: seconds that it has stood here before, and was served with something that
            came to nothing: they count.
        """
        if len(self._tickets) >= self.limit:
            self.refused += 1
            return None
        ticket = Ticket(self, serve, late)
        self._tickets[ticket] = None
        if self._waking:
            self._again = True  # It may be served in this very pass, behind the others.
        # Rounded, for each duration has a queue of its own there.
        left = max(0.0, round(self.timeout - waited, 1)) if waited else self.timeout
        ticket._deadline = self._deadlines.add(left, ticket._expire)
        return ticket

    def wake(self, everyone: bool = False) -> None:
        """Something came free: offer it, first come first served.

        :param everyone: also those for whom there is no room, because what they could wait for has
            changed, and perhaps gone.
        """
        # Serving one may set off the next wake(), as when its backend refuses at once: then this
        # loop goes round again, rather than recurse.
        self._again = True
        self._everyone |= everyone
        if self._waking:
            return
        self._waking = True
        try:
            while self._again:
                everyone, self._again, self._everyone = self._everyone, False, False
                self._offer(everyone)
        finally:
            self._waking = False

    def _offer(self, everyone: bool) -> None:
        tickets = self._tickets
        while tickets and self._room():
            if not next(iter(tickets)).serve():
                break
        # Either there is no room any more or the first one cannot use it (it has tried that backend
        # already): then the others are asked as well, each once, but of those that would take
        # anything only the first.
        hopeless = False
        for ticket in tuple(tickets) if everyone or self._room() else ():
            if not everyone:
                if not self._room():
                    break
                if hopeless and not ticket.picky:
                    continue
            if ticket in tickets and not ticket.serve() and not ticket.picky:
                hopeless = True

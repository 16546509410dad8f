"""How a backend does: what checks say of it, what is seen of it in traffic, how it comes back.

Three things keep new work from a backend that its operator has not taken down:

- *checks* (net/checks.py): it begins as well; ``fall`` of them in a row that fail make it unwell,
  ``rise`` in a row that succeed make it well again;
- *ejection*: so many failures, or so many slow answers, in a row, as traffic shows them. It comes
  back by itself. Each time that follows soon it stays away for longer; once it has been well for as
  long as it was away, that is forgotten. Ejection is a guess from few samples, so it never leaves
  more than a share of the cluster alone, those that checks have found unwell included;
- *slow start*: one that comes back gets a tenth of its share at first, then more, for its caches
  are cold and all others would send it what they have waiting.

All of it is here for one backend; the cluster (core/registry.py) counts who is left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from twisted.logger import Logger

from proxykit.upkeep import Health

if TYPE_CHECKING:
    from proxykit.core.deadlines import Deadline, Deadlines
    from proxykit.core.registry import BackendState

#: What a backend answers that cannot do its work, for now.
FAILURES = frozenset((500, 502, 503, 504))
#: With which share of its weight a backend comes back, and by how much that grows at a time: few
#: steps, so that a balancer has few different weights to deal with.
FIRST_SHARE = 0.1
STEPS = 9

#: From how many seconds on an answer is worth a look.
NEVER = float("inf")
ALWAYS = -1.0
_UNSET = Health()


class Follower(Protocol):
    """Who wants to know which backends a cluster has: whoever checks them."""

    def came(self, backend: BackendState) -> None:
        """There is one more."""

    def left(self, backend: BackendState) -> None:
        """It is no more a backend of this cluster."""

    def changed(self) -> None:
        """The cluster has another configuration."""


class Standing:
    """The health of one backend. It tells the cluster when that changes.

    :param deadlines: call back when it is time for something.
    :ivar checked: what its checks say; None: nothing yet.
    :ivar why: what went wrong with the last check, or why it is ejected; empty: nothing.
    :ivar ejections: how many times it was ejected, since the start.
    """

    __slots__ = (
        "_back",
        "_backend",
        "_bad",
        "_deadlines",
        "_ended",
        "_lasted",
        "_on_trial",
        "_run",
        "_since",
        "_slow",
        "_step",
        "_stopped",
        "_times",
        "_until",
        "checked",
        "ejections",
        "why",
    )
    _log = Logger()

    def __init__(self, backend: BackendState, deadlines: Deadlines) -> None:
        self._backend = backend
        self._deadlines = deadlines
        self.checked: bool | None = None
        self.why = ""
        self.ejections = 0
        # Checks in a row that speak against the verdict; failures and slow answers in a row.
        self._run = self._bad = self._slow = 0
        # Ejections that followed soon, when the last one ended, and how long it was to be.
        self._times = 0
        self._ended = self._lasted = 0.0
        self._until = 0.0
        self._back: Deadline | None = None
        # Whether it has come back by itself, and has not shown yet that it can do its work.
        self._on_trial = False
        # Of the slow start.
        self._since = 0.0
        self._step: Deadline | None = None
        self._stopped = False

    @property
    def ejected_seconds(self) -> float | None:
        """Seconds that it is still to be left alone; None: it is not."""
        if self._back is None:
            return None
        return round(max(0.0, self._until - self._deadlines.clock.seconds()), 3)

    @property
    def _settings(self) -> Health:
        return self._backend.cluster.config.health or _UNSET

    # What checks say.

    def succeeded(self) -> None:
        """A check found it well."""
        if self._back is None:
            self.why = ""
        if self.checked is not False:
            self.checked, self._run = True, 0
            return
        self._run += 1
        if self._run < self._settings.rise:
            return
        self._say("up again: {count} checks in a row succeeded", count=self._run)
        self.checked, self._run, self.why = True, 0, ""
        # Whatever it was ejected for was a part of the same outage.
        self._end_ejection()
        self._judge()

    def failed(self, why: str) -> None:
        """A check found it unwell."""
        self.why = why
        if self.checked is False:
            self._run = 0
            return
        self._run += 1
        if self._run >= self._settings.fall:
            self._warn("down: {why} ({count} checks in a row failed)", why=why, count=self._run)
            self.checked, self._run = False, 0
            self._judge()

    def skipped(self, why: str) -> None:
        """It could not be checked, which says nothing of it."""
        if not self.why:
            self.why = f"not checked: {why}"

    def unchecked(self) -> None:
        """Nobody checks it any more."""
        self.checked, self._run = None, 0
        if self._back is None:
            self.why = ""
        self._judge()

    # What is seen in traffic.

    def attempt_failed(self, why: str) -> None:
        """An attempt has failed, or a request was lost there."""
        self._bad += 1
        self._watch()
        self._count_failures(why)

    def answered(self, status: int, seconds: float) -> None:
        """It has answered something of note, or whatever it was after such."""
        self._bad = self._bad + 1 if status in FAILURES else 0
        self._on_trial = self._on_trial and self._bad > 0
        self._note_time(seconds)
        if self._bad:
            self._count_failures(f"it answered {status}")
        self._count_slow(seconds)

    def connected(self, seconds: float) -> None:
        """It has accepted an L4 connection."""
        self._note_time(seconds)
        self._count_slow(seconds)

    def works(self) -> None:
        """It has served, after failures."""
        self._bad = 0
        self._on_trial = False
        self._watch()

    def _note_time(self, seconds: float) -> None:
        limit = self._backend.cluster.config.eject.slower_than
        self._slow = self._slow + 1 if limit and seconds > limit else 0
        self._watch()

    def _watch(self) -> None:
        """Say which answers are worth looking at: mostly none."""
        limit = self._backend.cluster.config.eject.slower_than
        noted = self._bad or self._slow or self._on_trial
        self._backend.notable = ALWAYS if noted else limit or NEVER

    reconfigured = _watch

    def _count_failures(self, why: str) -> None:
        limit = self._backend.cluster.config.eject.failures
        if limit and self._on_trial:
            self._eject(f"it failed again at once: {why}")
        elif limit and self._bad >= limit:
            self._eject(f"{self._bad} failures in a row, the last: {why}")

    def _count_slow(self, seconds: float) -> None:
        eject = self._backend.cluster.config.eject
        if self._slow >= eject.slow:
            took = f"took longer than {eject.slower_than:g} s, the last {seconds:.3g} s"
            self._eject(f"{self._slow} in a row {took}")

    def _eject(self, why: str) -> None:
        """Leave it alone for a while, if there are enough others."""
        backend = self._backend
        if self._stopped or not backend.usable or not backend.well:
            return
        if not backend.cluster.spares(backend, why):
            return
        eject, now = backend.cluster.config.eject, self._deadlines.clock.seconds()
        soon = now - self._ended < self._lasted
        self._times = self._times + 1 if soon else 1
        self._lasted = min(eject.time * self._times, eject.max_time)
        self._until = now + self._lasted
        self._back = self._deadlines.add(self._lasted, self._return)
        self.ejections += 1
        self.why = why
        self._warn("ejected for {seconds:g} s: {why}", seconds=self._lasted, why=why)
        self._judge()

    def _return(self) -> None:
        self._end_ejection()
        # It is most likely what it was before, and each try costs somebody time, or an answer.
        self._on_trial = True
        self._watch()
        self._say("back after {seconds:g} s", seconds=self._lasted)
        self._judge()

    def _end_ejection(self) -> None:
        self._bad = self._slow = 0
        self._on_trial = False
        self._watch()
        if self._back is not None:
            self._back.cancel()
            self._back = None
            self._ended = self._deadlines.clock.seconds()
            if self.checked is not False:
                self.why = ""

    def _judge(self) -> None:
        """Tell the cluster what has become of it."""
        backend = self._backend
        well = self.checked is not False and self._back is None
        if well != backend.well:
            if well:
                self.start_slowly()
            else:
                self._whole()
            backend.cluster.set_well(backend, well)

    # Slow start.

    def start_slowly(self) -> None:
        """It comes back, or is new: a little first."""
        self._whole()
        seconds = self._backend.cluster.config.slow_start
        if seconds and not self._stopped:
            self._since = self._deadlines.clock.seconds()
            self._backend.cluster.weigh(self._backend, FIRST_SHARE)
            self._step = self._deadlines.add(seconds / STEPS, self._grow)

    def _grow(self) -> None:
        seconds = self._backend.cluster.config.slow_start
        passed = self._deadlines.clock.seconds() - self._since
        if passed >= seconds:
            self._whole()
            return
        share = FIRST_SHARE + (1.0 - FIRST_SHARE) * passed / seconds
        self._backend.cluster.weigh(self._backend, round(share, 1))
        self._step = self._deadlines.add(seconds / STEPS, self._grow)

    def _whole(self) -> None:
        """From now on, all of its share."""
        if self._step is not None:
            self._step.cancel()
            self._step = None
        if self._backend.share != 1.0:
            self._backend.cluster.weigh(self._backend, 1.0)

    # Beginning and end.

    def begin_anew(self) -> None:
        """It had left the cluster, and what was known of it is old."""
        self._end_ejection()
        self._whole()
        self.checked, self._run, self.why = None, 0, ""
        self._backend.well = True
        self._times = 0
        self._stopped = False

    def stop(self) -> None:
        """Leave no timer behind, and begin none: it has left, or the proxy ends."""
        self._stopped = True
        self._end_ejection()
        self._whole()
        self._judge()

    def go_on(self) -> None:
        """The proxy begins again."""
        self._stopped = False

    def snapshot(self) -> dict[str, Any]:
        """Its part of a backend's."""
        return {
            "health": {None: "unknown", True: "up", False: "down"}[self.checked],
            "why": self.why or None,
            "ejected_seconds": self.ejected_seconds,
            "ejections": self.ejections,
        }

    def _say(self, text: str, **values: object) -> None:
        self._log.info("{cluster} {backend}: " + text, **self._named(), **values)

    def _warn(self, text: str, **values: object) -> None:
        self._log.warn("{cluster} {backend}: " + text, **self._named(), **values)

    def _named(self) -> dict[str, object]:
        backend = self._backend
        return {"cluster": backend.cluster.config.name, "backend": backend.address}

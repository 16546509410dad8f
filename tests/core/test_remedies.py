"""proxykit.core.remedies: what is said of scarce ports, and what would help."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from proxykit.core.forecast import Level
from proxykit.core.remedies import MOST, WIDE, Figures, message, remedies

OK, HALF, LOW = Level
WAY = "from 10.0.0.1 to 10.1.0.1:80"
ALIKE = "port_range in [sources]"
LATE = "the proxykit reactor"
LASTING = "connections that last"
AGAIN = "net.ipv4.tcp_tw_reuse"
RESET = 'close = "reset"'
POOL = "max_idle"
WIDER = "net.ipv4.ip_local_port_range"
SOURCE = "another address in [sources]"
APART = "an address in [sources] that the other processes do not use"
BACKEND = "another address or port of the backend"


def figures(**changed):
    made = Figures(WAY, 28_232, 27_667, 26_000, 20_000, 3_000, 2_000, 1_000, None)
    return made._replace(**changed)


class MessageTests(SynchronousTestCase):
    def says(self, level, before, **changed):
        """The message, but for the remedies; they come last."""
        text = message(level, before, figures(**changed))
        text, mark, helps = text.partition("; what helps: ")
        self.assertEqual(helps, "; or ".join(remedies(level, figures(**changed))) if mark else "")
        self.assertEqual(bool(mark), level > before)
        return text

    def test_half(self):
        some = {"taken": 14_000, "active": 13_000, "idle": 900, "time_wait": 0, "foreign": 100}
        self.assertEqual(
            self.says(HALF, OK, **some),
            f"half of the source ports {WAY} are taken, and each further connect takes the kernel"
            " longer: 14000 of 27667 (13000 active, 900 idle, 100 of other processes)",
        )
        self.assertEqual(
            self.says(HALF, OK, taken=98, limit=196, left=400.0, halves=False),
            f"half of the source ports {WAY} are taken: 98 of 196 (20000 active, 3000 idle, 2000 in"
            " TIME_WAIT, 1000 of other processes); as it goes on there is none in 7 min",
        )

    def test_low(self):
        few = {"idle": 0, "time_wait": 0, "foreign": 0}
        for left, rest in (
            (None, ""),
            (48.4, "; as it goes on there is none in 48 s"),
            (119.0, "; as it goes on there is none in 119 s"),
            (120.0, "; as it goes on there is none in 2 min"),
            (3000.0, "; as it goes on there is none in 50 min"),
        ):
            for before in (OK, HALF):
                self.assertEqual(
                    self.says(LOW, before, left=left, **few),
                    f"source ports {WAY} are running out: 26000 of 27667 (20000 active){rest}",
                )

    def test_empty(self):
        none = {"active": 0, "idle": 0, "time_wait": 0, "foreign": 0}
        self.assertEqual(
            self.says(LOW, OK, left=0.0, taken=27_667, **none),
            f"there is no source port left {WAY}: 27667 of 27667",
        )

    def test_better(self):
        few = {"taken": 9000, "active": 9000, "idle": 0, "time_wait": 0, "foreign": 0, "left": 9.0}
        for before in (HALF, LOW):
            self.assertEqual(
                self.says(OK, before, **few),
                f"there are enough source ports {WAY} again: 9000 of 27667 (9000 active)",
            )
        self.assertEqual(
            self.says(HALF, LOW, **few),
            f"source ports {WAY} do not run out any more: 9000 of 27667 (9000 active)",
        )


class RemediesTests(SynchronousTestCase):
    def helps(self, level, names, **changed):
        """These, in this order."""
        found = remedies(level, figures(**changed))
        self.assertEqual(len(found), len(names), found)
        for name, text in zip(names, found, strict=True):
            self.assertIn(name, text)

    def test_active(self):
        """More ports, wherever they come from."""
        self.helps(LOW, [WIDER, SOURCE, BACKEND])
        self.helps(LOW, [SOURCE, BACKEND], size=WIDE)
        self.helps(LOW, [WIDER, SOURCE, BACKEND], size=WIDE - 1)
        self.helps(LOW, [WIDER, SOURCE, BACKEND], active=0, idle=0, time_wait=0, foreign=0)

    def test_half(self):
        """Connects need not be slow, where the kernel can be told."""
        self.helps(HALF, [ALIKE, WIDER, SOURCE, BACKEND])
        self.helps(HALF, [WIDER, SOURCE, BACKEND], halves=False)

    def test_time_wait(self):
        """Fewer connections, or such as leave nothing behind."""
        self.helps(LOW, [LASTING, AGAIN, RESET, WIDER], time_wait=20_001)
        self.helps(LOW, [LASTING, AGAIN, RESET, SOURCE], time_wait=20_001, size=60_000)
        self.helps(LOW, [WIDER, SOURCE, BACKEND], time_wait=20_000)

    def test_idle(self):
        self.helps(LOW, [POOL, WIDER, SOURCE, BACKEND], idle=20_001)
        self.helps(LOW, [WIDER, SOURCE, BACKEND], idle=20_000)

    def test_foreign(self):
        self.helps(LOW, [WIDER, APART, BACKEND], foreign=20_001)
        self.helps(LOW, [WIDER, SOURCE, BACKEND], foreign=20_000)

    def test_plain(self):
        """A port that is taken is taken for all backends, and TIME_WAIT cannot be cut short."""
        for level in (HALF, LOW):
            self.helps(level, [LATE, WIDER, SOURCE], plain=True)
            self.helps(level, [LATE, LASTING, RESET, WIDER], plain=True, time_wait=20_001)
            self.helps(level, [LATE, POOL, SOURCE], plain=True, idle=20_001, size=60_000)

    @given(
        st.sampled_from((HALF, LOW)),
        st.tuples(*[st.integers(0, 3)] * 4),
        st.sampled_from((100, 60_000)),
        st.booleans(),
        st.booleans(),
    )
    def test_some_at_any_time(self, level, counts, size, plain, halves):
        names = ("active", "idle", "time_wait", "foreign")
        changed = dict(zip(names, counts, strict=True))
        found = remedies(level, figures(size=size, plain=plain, halves=halves, **changed))
        self.assertTrue(0 < len(found) <= MOST)
        self.assertEqual(len(set(found)), len(found))

"""``/api/ports`` beside ``ss``: the same figures, whenever both are read together."""

from __future__ import annotations

from typing import Any

from tests.interop import ports_case
from tests.interop.ports_case import LIMIT, USES, Both

#: So many ports that clients come and go for a while.
MANY = (40000, 44999)


class BookTests(ports_case.PortsTestCase):
    """See above."""

    def assert_between(self, shown: int, before: int, after: int, what: str) -> None:
        """What the book has is what ``ss`` has shown around that, or nearly: within a hundredth, or
        two sockets."""
        low, high = sorted((before, after))
        near = max(2, high / 100)
        self.assertTrue(low - near <= shown <= high + near, (what, before, shown, after))

    def assert_agree(self, both: Both) -> dict[str, Any]:
        """The one budget is as ``ss`` has it; gives it."""
        (budget,) = both.budgets
        before, after = both.before.states, both.after.states
        total = sum(budget[use] for use in USES)
        self.assert_between(total, before.total(), after.total(), "in all")
        waits = before["TIME-WAIT"], after["TIME-WAIT"]
        self.assert_between(budget["time_wait"], *waits, "TIME_WAIT")
        return budget

    async def churn(self, *options: str) -> list[Both]:
        """Have clients come and go; gives what was seen meanwhile."""
        child = self.start_clients("churn", "--rate", "300", "--clients", "30", *options)
        seen = []
        while child.status is None:
            seen.append(await self.both())
        self.assertEqual(child.status, 0, child.output)
        self.outcomes = child.output
        return seen

    async def test_churn(self) -> None:
        """Each client leaves a port in TIME_WAIT, for the proxy is the first to close."""
        await self.start_network(ports=MANY)
        await self.start_backends()
        await self.start_proxy("tcp")
        waits = [self.assert_agree(b)["time_wait"] for b in await self.churn("--seconds", "3")]
        self.assertEqual(self.outcomes, '{"200": 901}\n')
        # Or else little was tried.
        self.assertGreater(len(waits), 5)
        self.assertTrue(any(200 < each < 800 for each in waits), waits)
        both = await self.both()
        self.assertEqual(both.after.states, {"TIME-WAIT": 901})
        self.assertEqual([both.budgets[0][use] for use in USES], [0, 0, 0, 901, 0])
        self.assertEqual(await self.closed_first(), {"proxy": 901, "backend": 0, "reset": 0})
        self.assert_no_word_of_the_kernel()

    async def test_reset(self) -> None:
        """``close = "reset"``: nothing stays behind."""
        await self.start_network()
        await self.start_backends()
        await self.start_proxy("tcp", cluster='close = "reset"')
        for both in await self.churn("--seconds", "2"):
            self.assertEqual(both.budgets[0]["time_wait"], 0)
            self.assertEqual(both.after.states["TIME-WAIT"], 0)
        # Three times as many as there are ports.
        self.assertEqual(self.outcomes, '{"200": 601}\n')
        await self.becomes(self.sockets, ())
        (budget,) = await self.book()
        self.assertEqual([budget[use] for use in USES], [0] * 5)
        self.assertEqual(budget["free"], LIMIT)
        self.assertEqual(await self.closed_first(), {"proxy": 0, "backend": 0, "reset": 601})

    async def test_killed(self) -> None:
        """What a proxy leaves behind that is killed at its peak is counted before the first
        connection of the next one."""
        await self.start_network()
        await self.start_backends()
        await self.start_proxy("tcp", cluster="queue = 0")
        held = await self.hold(400)
        self.assertEqual(held.outcomes["200"], LIMIT)
        await self.service.stop("KILL")
        await self.start_proxy("tcp", cluster="queue = 0")
        both = await self.both()
        budget = self.assert_agree(both)
        self.assertEqual(len(both.after), LIMIT)
        self.assertEqual((budget["time_wait"] + budget["foreign"], budget["free"]), (LIMIT, 0))
        self.assertEqual([budget[use] for use in ("active", "idle", "reserved")], [0, 0, 0])
        held = await self.hold(10)
        self.assertEqual(held.outcomes, {"ECONNRESET": 10})
        await self.service.wait_for(
            r"no source port is left .* \(0 of 200 in use, 196 in TIME_WAIT,"
        )
        self.assert_no_word_of_the_kernel()

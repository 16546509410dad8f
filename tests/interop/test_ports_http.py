"""Two hundred source ports, and four hundred clients, over HTTP: they share what there is."""

from __future__ import annotations

from tests.interop import ports_case
from tests.interop.ports_case import BACKEND, LIMIT, SIZE, SOURCE, USES


class HttpTests(ports_case.PortsTestCase):
    """See above."""

    async def test_all_are_answered(self) -> None:
        """Clients that stay cost nothing once they have their answer: the next one's request goes
        on the same connection."""
        await self.start_network()
        # Slow enough that all ports are out before the first connection is free again.
        await self.start_backends(rate=500)
        await self.start_proxy("http", cluster="queue_timeout = 5")
        held = await self.hold(400, "--together")
        self.assertEqual(held.outcomes, {"200": 400})
        both = await self.both()
        self.assertEqual(both.after.states, {"ESTAB": LIMIT})
        (budget,) = both.budgets
        self.assertEqual([budget[use] for use in USES], [0, LIMIT, 0, 0, 0])
        self.assert_no_word_of_the_kernel()

    async def test_refused(self) -> None:
        """Where there is no connection to share, the answer says what is missing, and that one
        may ask again."""
        await self.start_network()
        await self.start_backends()
        await self.eat(SIZE)
        await self.start_proxy("http", cluster="queue_timeout = 1")
        held = await self.hold(20)
        self.assertEqual(held.outcomes, {"503": 20})
        shortest, *_, longest = held.seconds("503")
        self.assertGreaterEqual(shortest, 0.9)
        self.assertLess(longest, 2)
        for client in held.each:
            self.assertGreater(int(client.fields["Retry-After"]), 0)
            self.assertIn(f"no source port is left from {SOURCE} to {BACKEND}", str(client.fields))
        self.assert_no_word_of_the_kernel()

    async def test_learnt(self) -> None:
        """The kernel says no to a request: it waits for a connection that has one."""
        await self.start_network()
        await self.start_backends(rate=500)
        await self.start_proxy("http", cluster="queue_timeout = 5")
        await self.eat(SIZE - 50)
        held = await self.hold(150, "--together")
        self.assertEqual(held.outcomes, {"200": 150})
        self.assertEqual(len(await self.sockets()), SIZE)
        self.assert_no_word_of_the_kernel()

    async def test_backend_closes_first(self) -> None:
        """A connection for each request is closed by the backend, which is told to, and no port
        rests."""
        await self.start_network()
        await self.start_backends()
        await self.start_proxy("http", cluster='pool = { reuse = "never" }')
        child = self.start_clients("churn", "--rate", "400", "--clients", "30", "--seconds", "1")
        await child.ended()
        self.assertEqual(child.output, '{"200": 401}\n')
        await self.becomes(self.established, 0)
        self.assertEqual(len(await self.sockets()), 0)
        self.assertEqual(await self.closed_first(), {"proxy": 0, "backend": 401, "reset": 0})

    async def test_reset(self) -> None:
        """``close = "reset"``: nor does it where the proxy closes what has been idle."""
        await self.start_network()
        await self.start_backends()
        cluster = 'close = "reset"\npool = { idle_timeout = 0.3 }'
        await self.start_proxy("http", cluster=cluster)
        held = await self.hold(100)
        self.assertEqual(held.outcomes, {"200": 100})
        await self.becomes(self.sockets, ())
        counts = await self.closed_first()
        self.assertGreater(counts["reset"], 0)
        self.assertEqual((counts["proxy"], counts["backend"]), (0, 0))

"""proxykit.core.routing: from what a mode has seen to a cluster."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from proxykit.core.routing import Everything
from proxykit.interfaces import IRouter
from proxykit.model import Route


class EverythingTests(SynchronousTestCase):
    def test_route(self):
        router = Everything("web")
        self.assertTrue(verifyObject(IRouter, router))
        for subject in (None, "a.example", object()):
            self.assertEqual(router.route(subject), Route("web"))

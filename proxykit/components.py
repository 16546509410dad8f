"""Finding components by name: modes, balancing policies, sources of backends.

A plugin file holds :class:`Component` objects, which are names only. What a name stands for is
imported when somebody asks for it, so listing the modes imports none of them.
"""

from __future__ import annotations

from importlib import import_module

from attrs import frozen
from twisted.plugin import IPlugin, getPlugins
from zope.interface import Attribute, Interface, implementer


class IComponent(Interface):
    """A name for a component, as plugin files hold it."""

    kind: str = Attribute("What it can be used as: ``mode``, ``balance`` or ``source``.")
    name: str = Attribute("What a user writes to get it.")
    target: str = Attribute("``package.module:attribute``, imported on use.")
    summary: str = Attribute("One line for ``--help``.")

    def load() -> object:
        """Import what the name stands for.

        :raises ImportError, AttributeError: the module is missing, or has no such attribute.
        """


@implementer(IComponent, IPlugin)
@frozen
class Component:
    """See :class:`IComponent`."""

    kind: str
    name: str
    target: str
    summary: str

    def load(self) -> object:
        """See ``IComponent.load``."""
        module, _, attribute = self.target.partition(":")
        return getattr(import_module(module), attribute)


def components(kind: str) -> dict[str, IComponent]:
    """All components of one kind by name, in the order of their names."""
    from proxykit import plugins

    found = (plugin for plugin in getPlugins(IComponent, plugins) if plugin.kind == kind)
    return {plugin.name: plugin for plugin in sorted(found, key=lambda plugin: plugin.name)}

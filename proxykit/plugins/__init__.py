"""Names of components, found with ``twisted.plugin.getPlugins``.

Other distributions add files of their own to ``proxykit/plugins/`` (without an ``__init__.py``);
``docs/write_a_mode.rst`` shows how.
"""

from twisted.plugin import pluginPackagePaths

__path__.extend(pluginPackagePaths(__name__))
__all__: list[str] = []

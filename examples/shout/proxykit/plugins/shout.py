"""The name of the mode, for proxykit to find; the module is imported when a listener uses it."""

from proxykit.components import Component

shout = Component("mode", "shout", "proxykit_shout:ShoutMode", "answer every line in upper case")

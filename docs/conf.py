"""How Sphinx builds these pages: with what ships with it, and without a look at the network."""

import proxykit

project = "proxykit"
author = "The proxykit developers"
project_copyright = author
version = release = proxykit.__version__

extensions = ["sphinx.ext.autodoc"]
exclude_patterns = ["_build", "lab/*.rst"]
html_theme = "alabaster"
html_theme_options = {
    "description": "A proxy that knows how many connections it has left",
    "page_width": "1100px",  # for tables
}

autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"

nitpicky = True
# There is no inventory of anyone else's names to look them up in. Every reference to our own has
# to be right.
nitpick_ignore_regex = [
    (r"py:.*", r"(?!proxykit\b)(twisted|zope|attrs?|typing|collections|enum)\..*"),
    # Names of the standard library, of Twisted's interfaces, and those imported for typing only.
    (r"py:.*", r"(int|str|float|bool|bytes|object|tuple|dict|list|set|type|None|Any)"),
    # A zope interface inside a generic type.
    (r"py:class", r".*<InterfaceClass .*"),
    (r"py:(class|exc)", r"(Enum|Exception|\w+Error|Iterable|Callable|I[A-Z]\w+)"),
    # Ours, imported for typing only, or handed on from another module.
    (
        r"py:(class|exc)",
        r"(Flow|(Http|Sni|Tcp)Settings|Problem|Re(quest|sponse)Hook|Refused|proxykit\..*\._Block)",
    ),
]

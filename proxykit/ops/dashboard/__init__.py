"""The dashboard: static files, which the admin listener serves as they are.

There is no build step and no request to any other host, and no script or style within the page, so
``POLICY`` can forbid all of that.
"""

from __future__ import annotations

from importlib.resources import files

_JS = "text/javascript; charset=utf-8"
#: The files by their paths, each with its content type.
FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/app.js": ("app.js", _JS),
    "/draw.js": ("draw.js", _JS),
    "/views.js": ("views.js", _JS),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}

#: The Content-Security-Policy that they are made for.
POLICY = "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


def read(path: str) -> tuple[str, bytes]:
    """The content type and the content of what is at a path.

    :raises KeyError: nothing is.
    """
    name, kind = FILES[path]
    return kind, (files(__name__) / name).read_bytes()

"""The dashboard's files, as they are in the package: read once, served from memory."""

from __future__ import annotations

from importlib import resources

#: By a file's ending: what it is.
KINDS = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".ico": "image/x-icon",
    ".js": "text/javascript; charset=utf-8",
    ".png": "image/png",
    ".svg": "image/svg+xml",
}
_PACKAGE = "proxykit.ops"
_DIRECTORY = "dashboard"
INDEX = "/index.html"


def pages() -> dict[str, tuple[bytes, str]]:
    """What each file has, and its media type, by its path; none where there is no dashboard."""
    directory = resources.files(_PACKAGE) / _DIRECTORY
    if not directory.is_dir():
        return {}
    return {
        f"/{each.name}": (each.read_bytes(), kind)
        for each in directory.iterdir()
        if (kind := KINDS.get("." + each.name.rpartition(".")[2])) is not None
    }

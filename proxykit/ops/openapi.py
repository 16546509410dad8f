"""The description of the admin listener's API, by OpenAPI 3.1."""

from __future__ import annotations

from typing import Any

from proxykit import __version__

DESCRIPTION: dict[str, Any] = {
    "openapi": "3.1.0",
    "info": {"title": "proxykit's admin listener", "version": __version__},
    "paths": {},
}

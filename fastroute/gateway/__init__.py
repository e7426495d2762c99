"""The gateway: an OpenAI-compatible HTTP API in front of a client, as a WSGI app.

    gunicorn --preload "fastroute.gateway:create_app()"

The app needs no other packages than fastroute does. ``fastroute serve`` runs it on waitress, which the extra
``gateway`` installs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .app import create_app

__all__ = ["create_app"]


def __getattr__(name: str) -> Any:
    if name == "create_app":
        from .app import create_app

        return create_app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

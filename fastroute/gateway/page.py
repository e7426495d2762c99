"""The dashboard's page: four static files and their content security policy.

The files contain no figures. The page's script requests them from `/admin/stats.json` with the admin key.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from .responses import Headers, Response

_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
}
_POLICY: Headers = (
    (
        "Content-Security-Policy",
        # No external or inline resources, and scripts cannot turn text into markup.
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'",
    ),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
)

PATHS = {
    "/admin": "dashboard.html",
    "/admin/dashboard.css": "dashboard.css",
    "/admin/dashboard.js": "dashboard.js",
    "/admin/figures.js": "figures.js",
}


@cache
def file(name: str) -> Response:
    """One of the page's files, read once."""
    content = files(__package__).joinpath(name).read_bytes()
    return Response(200, content, _TYPES[name.rpartition(".")[2]], _POLICY)


__all__ = ["PATHS", "file"]

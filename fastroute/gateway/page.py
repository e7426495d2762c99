"""The dashboard's page: four files, served as they lie beside this module.

Owns their bytes and what a browser lets them do. They hold no figure; the page's script asks for
`/admin/stats.json` with the admin key, which `app.py` checks and `stats.py` answers.
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
        # Nothing from elsewhere, nothing inline, and no way for a script to make markup of a text.
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
    """One of the page's files, which is read once."""
    content = files(__package__).joinpath(name).read_bytes()
    return Response(200, content, _TYPES[name.rpartition(".")[2]], _POLICY)


__all__ = ["PATHS", "file"]

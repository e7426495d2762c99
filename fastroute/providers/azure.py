"""Azure OpenAI: OpenAI's chat completions with Azure's addresses and key header.

Bodies, answers, chunks and errors are handled by `openai.py`, including Azure's additions (results of its
content filter, chunks without choices, nested errors).

Azure has two address layouts, distinguished by the base URL. One that ends in ``/v1``, such as
``https://NAME.openai.azure.com/openai/v1``, is OpenAI's own layout, with the deployment in the body. Any
other is the older layout, with deployment and API version in the address. The configuration's ``upstream`` is
the deployment in both.
"""

from __future__ import annotations

from urllib.parse import quote, urlencode, urlsplit

from fastroute import errors

from .base import Target
from .headers import joined_url, usual_headers, with_configured
from .openai import OpenAI

API_VERSION = "2024-10-21"
"""The API version where the configuration names none: the last one of the older layout."""


def is_v1(base_url: str) -> bool:
    """Whether the base URL has OpenAI's layout."""
    return urlsplit(base_url).path.rstrip("/").endswith("/v1")


def api_url(base_url: str, path: str, api_version: str | None) -> str:
    """A path of Azure's API, with the version in the query where the layout requires one."""
    if is_v1(base_url):
        url = joined_url(base_url, path)
        version = api_version
    else:
        below = "" if urlsplit(base_url).path.rstrip("/").endswith("/openai") else "/openai"
        url = joined_url(base_url, below + path)
        version = api_version or API_VERSION
    if version is None:
        return url
    return url + ("&" if "?" in url else "?") + urlencode({"api-version": version})


class Azure(OpenAI):
    """The format ``azure``."""

    name = "azure"

    def url(self, target: Target, stream: bool) -> str:
        """The deployment's chat completions, or ``base_url`` + ``/chat/completions`` below ``/v1``."""
        if is_v1(target.base_url):
            return api_url(target.base_url, "/chat/completions", target.api_version)
        if target.upstream in ("", ".", ".."):
            raise errors.ConfigError(
                "endpoints.upstream: must be a deployment's name, not empty, '.' or '..'"
            )
        deployment = quote(target.upstream, safe="")
        return api_url(target.base_url, f"/deployments/{deployment}/chat/completions", target.api_version)

    def headers(self, target: Target, stream: bool) -> dict[str, str]:
        own = usual_headers(stream)
        if target.key is not None:
            own["api-key"] = target.key.reveal()
        return with_configured(own, target)


FORMAT = Azure()

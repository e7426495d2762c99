"""Reads a provider's list of models: the addresses, the paging and the answer of each wire format.

Requesting the lists is in `runtime/discovery.py`. A format registered by a program has a list if it has a
`Listing` as its attribute ``listing``.
"""

from __future__ import annotations

from typing import Any, Protocol
from urllib.parse import urlencode

from attrs import frozen

from fastroute import errors

from . import azure, gemini
from .anthropic import FORMAT as ANTHROPIC
from .base import Format, Target
from .headers import joined_url


@frozen
class Page:
    """Some of a provider's models.

    Attributes:
        names: as requests to the provider name them.
        after: the cursor of the next page; None on the last one.
    """

    names: tuple[str, ...]
    after: str | None = None


class Listing(Protocol):
    """How one format lists models. Stateless."""

    @property
    def by_name(self) -> bool:
        """Whether the names are those of an endpoint's ``upstream``."""

    def url(self, target: Target, after: str | None) -> str:
        """The address of a page; ``after`` is None for the first."""

    def page(self, value: Any) -> Page:
        """The page in a decoded answer.

        Raises:
            UpstreamProtocolError: if the answer is not a list of models.
        """


def _items(value: Any, key: str) -> list[dict[str, Any]]:
    items = value.get(key) if isinstance(value, dict) else None
    if not isinstance(items, list):
        raise errors.UpstreamProtocolError(f"the answer is not a list of models; it has no list {key!r}")
    return [item for item in items if isinstance(item, dict)]


def _names(items: list[dict[str, Any]], key: str) -> tuple[str, ...]:
    return tuple(item[key] for item in items if isinstance(item.get(key), str) and item[key])


class _OpenAIListing:
    by_name = True

    def url(self, target: Target, after: str | None) -> str:
        return joined_url(target.base_url, "/models")

    def page(self, value: Any) -> Page:
        return Page(_names(_items(value, "data"), "id"))


class _AzureListing(_OpenAIListing):
    """Lists the models that could be deployed; a key cannot list the names of the deployments."""

    by_name = False

    def url(self, target: Target, after: str | None) -> str:
        return azure.api_url(target.base_url, "/models", target.api_version)


class _AnthropicListing:
    by_name = True

    def url(self, target: Target, after: str | None) -> str:
        asked = {"limit": "1000"} if after is None else {"limit": "1000", "after_id": after}
        address = ANTHROPIC.url(target, False).removesuffix("/messages")
        return f"{address}/models?{urlencode(asked)}"

    def page(self, value: Any) -> Page:
        names = _names(_items(value, "data"), "id")
        last = value.get("last_id")
        more = value.get("has_more") is True and isinstance(last, str)
        return Page(names, last if more else None)


class _GeminiListing:
    by_name = True

    def url(self, target: Target, after: str | None) -> str:
        asked = {"pageSize": "1000"} if after is None else {"pageSize": "1000", "pageToken": after}
        return f"{gemini.api_url(target.base_url, '/models')}?{urlencode(asked)}"

    def page(self, value: Any) -> Page:
        if value == {}:
            return Page(())  # Gemini leaves out an empty list
        items = [
            item
            for item in _items(value, "models")
            if "generateContent" in item.get("supportedGenerationMethods", ("generateContent",))
        ]
        after = value.get("nextPageToken")
        names = tuple(name.removeprefix("models/") for name in _names(items, "name"))
        return Page(names, after if isinstance(after, str) and after else None)


_BY_FORMAT: dict[str, Listing] = {
    "openai": _OpenAIListing(),
    "azure": _AzureListing(),
    "anthropic": _AnthropicListing(),
    "gemini": _GeminiListing(),
}


def listing_of(format: Format) -> Listing | None:
    """How a format lists models; None if it has no lists."""
    own: Listing | None = getattr(format, "listing", None)
    return own if own is not None else _BY_FORMAT.get(format.name)


__all__ = ["Listing", "Page", "listing_of"]

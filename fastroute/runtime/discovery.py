"""Asks a provider for its models, whether it accepts the key, and which configured models it does not list.

`providers/listing.py` knows the list of each format. Requests use the same `transport` as calls: redirects
are not followed, and the key is only in its header.
"""

from __future__ import annotations

import difflib
import re
import time
from collections.abc import Iterable
from typing import Literal

from attrs import evolve, frozen

from fastroute import errors
from fastroute.calls.upstream import target_at, transport_to
from fastroute.config import Config, Secret, read_key
from fastroute.config.messages import did_you_mean, show
from fastroute.providers import get as get_format
from fastroute.providers import jsontext
from fastroute.providers.base import Format, Target, check_content_type
from fastroute.providers.listing import Listing, Page, listing_of
from fastroute.transport import Transport
from fastroute.transport.request_timer import RequestTimer

Status = Literal["valid", "refused", "open", "unreachable", "unknown"]

TIMEOUT = 30.0
_MOST_PAGES = 100
_DATED = re.compile(r"-(?:[0-9]{8}|[0-9]{4}-[0-9]{2}-[0-9]{2})$")


@frozen
class Lacking:
    """An endpoint whose model its provider does not list.

    Attributes:
        endpoint: the endpoint's name.
        upstream: the provider's name of the model, as configured.
        near: similar listed names, most similar first.
    """

    endpoint: str
    upstream: str
    near: tuple[str, ...] = ()


@frozen(kw_only=True)
class Discovery:
    """The result for one provider.

    Attributes:
        provider: its name in the configuration.
        format, base_url: as configured.
        status: ``valid``: the key is accepted (or none is needed and none is configured); ``refused``: it is
            not; ``open``: the list does not require a key, so the key could not be checked; ``unreachable``:
            there was no answer; ``unknown``: any other result, see ``error``.
        models: the listed models, in the provider's order.
        lacking: endpoints whose model is not listed; always empty if ``compared`` is false.
        compared: whether endpoints were compared with the list. They are not if the list is empty, or if it
            has other names: Azure lists models that could be deployed, but endpoints have names of
            deployments.
        error: why there is no list.
    """

    provider: str
    format: str
    base_url: str
    status: Status
    models: tuple[str, ...] = ()
    lacking: tuple[Lacking, ...] = ()
    compared: bool = False
    error: errors.Error | None = None

    @property
    def ok(self) -> bool:
        """Whether the list is not empty and contains every endpoint's model."""
        return self.error is None and bool(self.models) and not self.lacking


def models(config: Config, name: str, *, timeout: float = TIMEOUT) -> Discovery:
    """Asks a provider of the configuration for its models.

    Failures of the provider are in the result and not raised. The requests cost no tokens.

    Args:
        config: the configuration.
        name: the name of a provider in it.
        timeout: seconds for all pages together.

    Raises:
        ConfigError: if there is no such provider, its key cannot be read, or its format has no lists.

    Thread safety: may be called from any thread.
    """
    provider = config.providers.get(name)
    if provider is None:
        known = ", ".join(config.providers) or "none"
        raise errors.ConfigError(
            f"providers: unknown provider {show(name)}{did_you_mean(name, config.providers)}; "
            f"use one of {known}"
        )
    format = get_format(provider.format)
    listing = listing_of(format)
    if listing is None:
        raise errors.ConfigError(f"providers.{name}.format: {provider.format} has no list of models")
    key = read_key(name, provider)
    target = target_at(config, name, key, endpoint=name)
    transport = transport_to(config, name, pool_size=1)
    found = Discovery(provider=name, format=provider.format, base_url=provider.base_url, status="unknown")
    deadline = time.monotonic() + timeout
    try:
        listed = _all_pages(transport, format, listing, target, deadline)
        status = _status_of(transport, format, listing, target, key, deadline)
    except errors.APIError as error:
        return evolve(found, status=_meaning(error), error=error)
    finally:
        transport.close()
    wanted = {entry.name: entry.upstream for entry in config.endpoints if entry.provider == name}
    return evolve(
        found,
        status=status,
        models=listed,
        lacking=tuple(not_listed(wanted, listed)) if listing.by_name and listed else (),
        compared=listing.by_name and bool(listed),
    )


def _meaning(error: errors.APIError) -> Status:
    if isinstance(error, (errors.AuthenticationError, errors.PermissionDeniedError)):
        return "refused"
    if isinstance(error, errors.APIConnectionError) and not isinstance(error, errors.UpstreamProtocolError):
        return "unreachable"
    return "unknown"


def _status_of(
    transport: Transport,
    format: Format,
    listing: Listing,
    target: Target,
    key: Secret | None,
    deadline: float,
) -> Status:
    """``open`` if the list is available without the key too, otherwise ``valid``."""
    if key is None:
        return "valid"
    try:
        page(transport, format, listing, evolve(target, key=None), None, deadline)
    except errors.APIError:
        return "valid"
    return "open"


def _all_pages(
    transport: Transport, format: Format, listing: Listing, target: Target, deadline: float
) -> tuple[str, ...]:
    names: dict[str, None] = {}
    after: str | None = None
    for _ in range(_MOST_PAGES):
        found = page(transport, format, listing, target, after, deadline)
        names.update(dict.fromkeys(found.names))
        if found.after is None:
            return tuple(names)
        if found.after == after:
            break
        after = found.after
    raise errors.UpstreamProtocolError(
        f"the list of models has more than {_MOST_PAGES} pages, or its pages repeat"
    )


def page(
    transport: Transport,
    format: Format,
    listing: Listing,
    target: Target,
    after: str | None,
    deadline: float,
) -> Page:
    """One page of a provider's list.

    Args:
        transport: the connections to the provider.
        format: the provider's wire format.
        listing: how the format lists models.
        target: the provider's base URL and key.
        after: the mark of the previous page; None for the first page.
        deadline: time.monotonic by which the page must have arrived.

    Raises:
        APIError: there is no answer, or it is not a list.
    """
    headers = format.headers(target, False)
    headers.pop("Content-Type", None)
    exchange = transport.send(
        transport.prepare(listing.url(target, after), headers, "GET"),
        None,
        RequestTimer(deadline),
        read_timeout=max(deadline - time.monotonic(), 0.001),
    )
    try:
        body = exchange.body()
    finally:
        exchange.close()
    if exchange.status != 200:
        raise format.decode_error(exchange.status, exchange.headers, body, target)
    check_content_type(exchange.headers, False)
    try:
        return listing.page(jsontext.loads(body, target.max_values))
    except ValueError as error:
        raise errors.UpstreamProtocolError(f"the list of models is {error}") from None


# ------------------------------------------------------------------------------------------------ comparing


def not_listed(wanted: dict[str, str], listed: tuple[str, ...]) -> Iterable[Lacking]:
    served = {each for name in listed for each in (name, _DATED.sub("", name), name.removesuffix(":latest"))}
    for endpoint, upstream in wanted.items():
        if not _is_served(upstream.removeprefix("models/"), served):
            near = difflib.get_close_matches(upstream, listed, 3, 0.5)
            yield Lacking(endpoint, upstream, tuple(near))


def _is_served(upstream: str, served: set[str]) -> bool:
    """Whether a name is listed, itself or under another form.

    A dated model also has its name without the date and with ``-latest``. Relays accept a variant of a model
    after a colon.
    """
    if upstream in served or upstream.removesuffix("-latest") in served:
        return True
    base, colon, _ = upstream.rpartition(":")
    return bool(colon) and "/" in base and base in served


__all__ = ["Discovery", "Lacking", "models", "page"]

"""Asks a provider for its models, whether it accepts the key, and which configured models it does not list.

Where a format has its list is in `providers/listing.py`. The request goes through the same `transport` as
every other: redirects are not followed, and the key is in its header only.
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
    """An endpoint that asks its provider for a model that it does not list.

    Attributes:
        endpoint: its name.
        upstream: what it asks for.
        near: listed names like it, nearest first.
    """

    endpoint: str
    upstream: str
    near: tuple[str, ...] = ()


@frozen(kw_only=True)
class Discovery:
    """What one provider said.

    Attributes:
        provider: its name in the configuration.
        format, base_url: as configured.
        status: ``valid``: it takes the key (or wants none and none is configured); ``refused``: it does not;
            ``open``: it lists its models to anyone, which says nothing of the key; ``unreachable``: no answer
            came; ``unknown``: one came that says neither, see ``error``.
        models: what it lists, in its own order.
        lacking: endpoints whose model is not among them; always empty where ``compared`` is false.
        compared: whether endpoints were looked for in the list. They are not where it is empty, which says
            nothing of what is served, and where its names are others: Azure lists what could be deployed,
            and endpoints ask for deployments.
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
        """Whether there is a list that is not empty, and every endpoint's model is in it."""
        return self.error is None and bool(self.models) and not self.lacking


def models(config: Config, name: str, *, timeout: float = TIMEOUT) -> Discovery:
    """Asks a provider of the configuration for its models.

    What goes wrong at the provider is in the answer, not raised. Nothing that is asked here costs tokens.

    Args:
        config: the configuration.
        name: of a provider in it.
        timeout: seconds for all pages together.

    Raises:
        ConfigError: if there is no such provider, its key cannot be read, or its format has no lists.

    Thread safety: may be called from any thread; nothing is shared between calls.
    """
    provider = config.providers.get(name)
    if provider is None:
        known = ", ".join(config.providers) or "none"
        raise errors.ConfigError(
            f"providers: there is no {show(name)}{did_you_mean(name, config.providers)}; there are {known}"
        )
    format = get_format(provider.format)
    listing = listing_of(format)
    if listing is None:
        raise errors.ConfigError(f"providers.{name}.format: {provider.format} has no lists of models")
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
    """Whether a list that was given says that the key is good: not if it is given without one too."""
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
    raise errors.UpstreamProtocolError("the list of models has no end: its pages lead on and on")


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
        transport: the connections to it.
        format: the wire format it speaks, and
        listing: how that lists models.
        target: its address and key.
        after: the mark that the page before gave; None for the first.
        deadline: time.monotonic by which it must be there.

    Raises:
        APIError: no answer, or none that is a list.
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
        return listing.page(jsontext.loads(body))
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
    """Whether a name is listed, itself or as what it stands for.

    Dated models are asked for without their date, or as ``-latest``; relays take a model's variant behind a
    colon.
    """
    if upstream in served or upstream.removesuffix("-latest") in served:
        return True
    base, colon, _ = upstream.rpartition(":")
    return bool(colon) and "/" in base and base in served


__all__ = ["Discovery", "Lacking", "models", "page"]

"""The wire format, address, key and connections of an endpoint, prepared once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import requests
from attrs import evolve

from fastroute.config import Config, Secret, is_loopback_url
from fastroute.config.catalog import SAMPLING, SAMPLING_WITHOUT_REASONING, sampling_bit
from fastroute.providers import get as get_format
from fastroute.providers import history
from fastroute.providers.base import Target
from fastroute.providers.charges import searches_unasked
from fastroute.providers.headers import with_query
from fastroute.state.endpoints import LiveEndpoint
from fastroute.transport import Transport
from fastroute.transport.network import network_to
from fastroute.types import SAMPLING_PARAMETERS, Extras, Request

_MOST_WINDOWS = 10  # times its context window that a model's usage may be
_MOST_TOKENS = 100_000_000  # the same where the window is unknown: ten times the largest there is


def target_at(
    config: Config,
    provider: str,
    key: Secret | None,
    *,
    endpoint: str,
    model: str = "",
    upstream: str = "",
    max_output: int | None = None,
) -> Target:
    """The address, key and headers of a provider, for one endpoint or for a list of its models."""
    settings = config.providers[provider]
    refused, call_ids = history.known(settings.base_url)
    return Target(
        endpoint=endpoint,
        provider=provider,
        model=model,
        upstream=upstream,
        base_url=settings.base_url,
        key=key,
        headers=settings.headers,
        max_output=max_output,
        api_version=settings.api_version,
        refused_fields=refused,
        call_ids=call_ids,
        max_values=config.max_response_values,
    )


def transport_to(
    config: Config,
    provider: str,
    *,
    session: requests.Session | None = None,
    pool_size: int | None = None,
) -> Transport:
    """Connections to a provider.

    Args:
        session: the caller's own `requests.Session`, if it is to be used.
        pool_size: connections kept; default: the provider's ``max_in_flight``.
    """
    settings = config.providers[provider]
    network = network_to(settings.base_url, settings.proxy, settings.ca_bundle)
    return Transport(
        pool_size=pool_size or settings.max_in_flight,
        connect_timeout=settings.connect_timeout or config.connect_timeout,
        max_response_bytes=config.max_response_bytes,
        network=network,
        session=session,
        # A proxy resolves names itself, and its own address is often private.
        allow_private_hosts=settings.allow_private_hosts
        or network.proxy is not None
        or is_loopback_url(settings.base_url),
    )


_FIELD = "refused_fields."  # before the name of a field, in the changes of an error
_MOST_FIELDS = 64


class Upstream:
    """One endpoint's format, target and connections.

    Attributes:
        plain, stream: the prepared requests, without a body.
        refuses_sampling: whether the model refuses sampling parameters, always or while it reasons.
        most_tokens: usage with more input or output tokens than this is not credible.
        default_output: ``max_tokens`` for requests without it; 0: none is sent.
        charges_more: whether even a plain request may cost more than its tokens at list price, because the
            model searches the web for every request or the account has another service tier.
        service_tier: the tier that answers to requests without one have named, if it has another price.

    Thread safety: all threads share it. `respell` is one attribute store. Two strikes at once may count as
    one, which blocks an endpoint one refusal later.
    """

    def __init__(
        self, endpoint: LiveEndpoint, target: Target, transport: Transport, default_output: int = 0
    ) -> None:
        self.endpoint = endpoint
        self.format = format = get_format(endpoint.provider.format)
        self.target = target
        self.transport = transport
        self.plain = transport.prepare(format.url(target, False), format.headers(target, False))
        self.stream = transport.prepare(format.url(target, True), format.headers(target, True))
        both = SAMPLING | SAMPLING_WITHOUT_REASONING
        self.refuses_sampling = endpoint.model.capabilities & both != both
        model = endpoint.model
        self.most_tokens = _MOST_WINDOWS * model.context_window or _MOST_TOKENS
        most = model.max_output_tokens
        self.default_output = min(default_output, most) if most else default_output
        self.charges_more = searches_unasked(target.upstream)
        self.service_tier: str | None = None
        self._doubted = False
        self._strikes = 0
        self._succeeded = 0  # the endpoint's successes, in all processes, before the first of these strikes

    def accepted(self, request: Request) -> Request:
        """The request, without sampling parameters if the model refuses them.

        The planner lets such a request come here only if its values are the defaults, or if
        ``policy.drop_sampling`` is set. Some models refuse even the defaults.
        """
        params = request.params
        if self.endpoint.model.capabilities & sampling_bit(params):
            return request
        if not any(name in params for name in SAMPLING_PARAMETERS):
            return request
        kept = {name: value for name, value in params.items() if name not in SAMPLING_PARAMETERS}
        return evolve(request, params=kept)

    def served_in(self, tier: str) -> None:
        """Reserves requests without a service tier at the price of this one: a project may have it set."""
        self.service_tier, self.charges_more = tier, True

    def with_extras(self, prepared: requests.PreparedRequest, extras: Extras) -> requests.PreparedRequest:
        """A prepared request with a caller's own headers and query."""
        if not extras.headers and not extras.query:
            return prepared
        # The prepared request is shared by all calls, so it is copied and never changed.
        own = prepared.copy()
        if extras.headers:
            replaced = {name.lower() for name in extras.headers}
            headers = {name: value for name, value in own.headers.items() if name.lower() not in replaced}
            headers.update((name, value) for name, value in extras.headers.items() if value is not None)
            own.headers = type(own.headers)(headers)
        if extras.query:
            own.url = with_query(own.url or "", extras.query)
        return own

    def respell(self, changes: Mapping[str, Any]) -> None:
        """Changes attributes of the target, so that later requests are spelled another way."""
        # The whole target is replaced: a request that is being encoded in another thread keeps the old one.
        others = {name: value for name, value in changes.items() if not name.startswith(_FIELD)}
        fields = {name.removeprefix(_FIELD) for name in changes if name.startswith(_FIELD)}
        refused = self.target.refused_fields
        if len(refused) < _MOST_FIELDS:  # a provider must not let it grow without end
            refused = refused | fields
        self.target = evolve(self.target, refused_fields=refused, **others)

    def doubt(self) -> bool:
        """Returns True the first time that the endpoint's usage is not credible."""
        doubted, self._doubted = self._doubted, True
        return not doubted

    def strike(self) -> int:
        """Counts a refusal without a reason; returns how many came in a row, without a success between."""
        succeeded, _ = self.endpoint.core.counts
        if succeeded != self._succeeded:
            self._succeeded, self._strikes = succeeded, 0
        self._strikes += 1
        return self._strikes

"""The way to a provider: which proxy it goes through, and which certificates are trusted.

Companies sign connections anew at a proxy, and tell programs by variables of the environment which
certificates to trust. Certificates are taken from there as curl, requests and OpenSSL take them; a proxy only
where the configuration says so, since prompts and keys go through it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from urllib.parse import urlsplit

from attrs import field, frozen
from requests.utils import get_environ_proxies, select_proxy

from fastroute import errors

ENVIRONMENT = "environment"
"""The value of ``proxy`` that stands for the variables of the environment."""

_CA_VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR")


@frozen(kw_only=True)
class Network:
    """How a provider is reached.

    Attributes:
        proxy: the proxy's URL; it may hold a password. None: a direct connection.
        proxy_source: where that comes from: ``proxy`` or the name of a variable.
        unused_proxy: the variable that names a proxy for this provider which is not used; empty: none does.
        ca_bundle: the file or directory of trusted certificates; None: those that requests brings.
        ca_source: where that comes from: ``ca_bundle`` or the name of a variable.
    """

    proxy: str | None = field(default=None, repr=False)
    proxy_source: str = ""
    unused_proxy: str = ""
    ca_bundle: str | None = None
    ca_source: str = ""

    @property
    def proxy_host(self) -> str:
        """Host and port of the proxy, without its password; empty if there is none."""
        return urlsplit(self.proxy or "").netloc.rpartition("@")[2]

    def problem(self) -> str | None:
        """What is wrong with the certificates, in words; None if nothing is."""
        if self.ca_bundle is None or os.path.exists(self.ca_bundle):
            return None
        right = "name a file of trusted certificates in PEM form"
        return f"{self.ca_source}: {self.ca_bundle} does not exist; {right}"

    def explain(self, failure: errors.APIConnectionError, url: str | None) -> None:
        """Adds to a failure before the request was sent what a reader needs who knows the network only."""
        host = urlsplit(url or "").hostname or "the provider"
        message = failure.message
        if isinstance(failure, errors.TLSError):
            message = message.replace("the TLS handshake", f"the TLS handshake with {host}", 1)
            if "CERTIFICATE_VERIFY_FAILED" in message.upper().replace(" ", "_"):
                trusted = f" (now: {self.ca_bundle}, from {self.ca_source})" if self.ca_bundle else ""
                message += (
                    "; if a proxy of your network signs connections, set ca_bundle to a file with its "
                    f"certificate{trusted}"
                )
        if self.unused_proxy:
            message += (
                f"; {self.unused_proxy} is set, but proxies of the environment are not used: set "
                f'proxy = "{ENVIRONMENT}" in the provider\'s table if {host} is reached through it'
            )
        failure.message, failure.args = message, (message,)

    def refused(self, words: str) -> errors.APIConnectionError:
        """The error for a proxy that does not let a request pass."""
        right = ""
        if words.startswith("407"):
            right = "; put the user's name and password into the proxy's URL, http://USER:PASSWORD@HOST:PORT"
        return errors.APIConnectionError(
            f"the proxy {self.proxy_host or 'on the way'} refused the request: {words}{right}",
            blame=errors.Blame.HOST,
        )


def network_to(
    url: str, proxy: str | None, ca_bundle: str | None, environ: Mapping[str, str] | None = None
) -> Network:
    """How a URL is reached.

    Args:
        proxy: as configured: None, a URL, or ``environment``.
        ca_bundle: as configured; None for the variables of the environment.
    """
    environ = os.environ if environ is None else environ
    from_environment = select_proxy(url, get_environ_proxies(url, no_proxy=None))
    variable = _variable_of(url, from_environment, environ)
    certificates, source = ca_bundle, "ca_bundle" if ca_bundle else ""
    if ca_bundle is None:
        source = next((name for name in _CA_VARIABLES if environ.get(name)), "")
        certificates = environ[source] if source else None
    used = from_environment if proxy == ENVIRONMENT else proxy
    return Network(
        proxy=used or None,
        proxy_source=(variable if proxy == ENVIRONMENT else "proxy") if used else "",
        unused_proxy=variable if from_environment and proxy is None else "",
        ca_bundle=certificates,
        ca_source=source,
    )


def _variable_of(url: str, proxy: str | None, environ: Mapping[str, str]) -> str:
    """The name of the variable that a proxy comes from."""
    scheme = urlsplit(url).scheme
    names = [name for stem in (scheme, "all") for name in (f"{stem}_proxy", f"{stem}_proxy".upper())]
    if not proxy:
        return ""
    return next((name for name in names if environ.get(name)), f"{scheme}_proxy")

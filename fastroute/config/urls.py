"""Checks a provider's ``base_url``, and the IP addresses that its host name resolves to.

Keys and prompts go to public hosts over TLS only, unless the operator allows plain HTTP or private hosts
for a provider. Unusual spellings of a host are refused, because programs read them in different ways.

``localhost``, ``127.0.0.1`` and ``[::1]`` are always allowed, over HTTP too: nothing leaves the machine,
and local servers (vLLM, Ollama) are common.
"""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_LABEL = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)")
# The resolver reads a host whose last label is a number, decimal or hexadecimal, as an IPv4 address.
_NUMERIC = re.compile(r"(?i)[0-9]+|0x[0-9a-f]*")
_PRIVATE_SUFFIXES = (".localhost", ".local", ".internal", ".intranet", ".lan", ".home.arpa", ".corp", ".home")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_MOST_CHARS = 2048


def url_problem(url: object, *, allow_http: bool, allow_private_hosts: bool) -> str | None:
    """What is wrong with a base URL and what would be right; None if it is allowed. The URL is not repeated.

    Args:
        url: as configured.
        allow_http: whether plain HTTP is allowed to other hosts than this machine.
        allow_private_hosts: whether hosts in private networks are allowed.
    """
    if not isinstance(url, str) or not url:
        return "must be a URL like https://api.example.com/v1"
    if len(url) > _MOST_CHARS:
        return f"must be at most {_MOST_CHARS} characters long"
    if not url.isascii():
        return (
            "contains non-ASCII characters, which can look like other characters; "
            "use ASCII only (an international host name in its xn-- form)"
        )
    if any(char <= " " or char in '\\"<>^`{|}\x7f' for char in url):
        return "contains white space or characters that a URL cannot have; remove them"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return "is not a valid URL; use one like https://api.example.com/v1"
    if "://" not in url:
        return "has no scheme; write https:// before it"
    if parts.scheme not in ("http", "https"):
        return "has an unknown scheme; use https://"
    if "@" in parts.netloc:
        return "contains a user name or password; use api_key_env or api_key_file"
    if "?" in url or "#" in url:
        return "contains a query or fragment; end the URL with the path"
    if port == 0 or parts.netloc.endswith(":"):
        return "has an invalid port; use one from 1 to 65535, or none"
    if any(segment in (".", "..") for segment in parts.path.split("/")):
        return "has . or .. in its path; write the resolved path"
    host = parts.netloc.rpartition(":")[0] if port is not None else parts.netloc
    malformed, private = _host_problem(host)
    if malformed and not (allow_private_hosts and malformed == _LOCALHOST):
        return malformed
    refused = private is not None and not allow_private_hosts
    plain = parts.scheme == "http" and not allow_http and host.strip("[]") not in _LOOPBACK
    if refused and plain:
        # Both in one message, or the second would come up only once the first is mended.
        return (
            f"{private} is in a private, local or reserved network, and the URL is plain HTTP; use https:// "
            "and a public host, or set allow_private_hosts = true and allow_http = true for this provider"
        )
    if refused:
        return _private(private or "")
    if plain:
        return "is plain HTTP; use https://, or set allow_http = true for this provider"
    return None


def address_problem(address: str, *, allow_private_hosts: bool) -> str | None:
    """What is wrong with an IP address that a host name resolved to; None if it is allowed.

    It is checked when connecting, because a public name may point into a private network.
    """
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return "is not an IP address"
    return None if allow_private_hosts or _is_public(parsed) else _private(str(parsed))


def is_loopback_url(url: str) -> bool:
    """Whether a base URL, already checked, is on this machine."""
    return urlsplit(url).hostname in _LOOPBACK


_LOCALHOST = "has an unusual spelling of localhost; write localhost"


def _host_problem(host: str) -> tuple[str | None, str | None]:
    """What is wrong with a host as it is written, and what is in a private network, if it is."""
    if not host:
        return "has no host; use a URL like https://api.example.com/v1", None
    if host in ("localhost", "127.0.0.1", "[::1]"):
        return None, None
    if host.endswith("."):
        return "has a host that ends with a dot; remove the dot", None
    if host.startswith("["):
        return _ipv6_problem(host)
    labels = host.split(".")
    if _NUMERIC.fullmatch(labels[-1]):
        return _ipv4_problem(host)
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        return "has an invalid host name; use a URL like https://api.example.com/v1", None
    if host.lower() in _LOOPBACK:
        return _LOCALHOST, None
    return None, "the host" if len(labels) == 1 or host.lower().endswith(_PRIVATE_SUFFIXES) else None


def _ipv4_problem(host: str) -> tuple[str | None, str | None]:
    try:
        address = ipaddress.IPv4Address(host)
    except ValueError:
        return "has an unusual spelling of an IPv4 address; write four decimal numbers like 203.0.113.7", None
    return None, None if _is_public(address) else str(address)


def _ipv6_problem(host: str) -> tuple[str | None, str | None]:
    if "%" in host:
        return "has an IPv6 address with a zone; remove the zone", None
    try:
        address = ipaddress.IPv6Address(host.strip("[]"))
    except ValueError:
        return "has an invalid IPv6 address; use one like [2001:db8::1]", None
    if address.ipv4_mapped is not None:
        return "has an IPv4 address written as IPv6; write four decimal numbers", None
    if f"[{address}]" != host.lower():
        return f"has an unusual spelling of an IPv6 address; write [{address}]", None
    return None, None if _is_public(address) else str(address)


def _is_public(address: Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address):
        # An IPv6 address that embeds an IPv4 address is as public as that is.
        if address.ipv4_mapped is not None:
            return _is_public(address.ipv4_mapped)
        if address.sixtofour is not None or address.teredo is not None:
            return False
        if address in _NAT64:
            return _is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)


def _private(what: str) -> str:
    return (
        f"{what} is in a private, local or reserved network; use a public host, "
        "or set allow_private_hosts = true for this provider"
    )

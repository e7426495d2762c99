"""The configuration: which addresses may be called."""

from __future__ import annotations

import re

import pytest
from config_tables import only_problem, problems_of, provider
from hypothesis import given
from hypothesis import strategies as st

from fastroute.config import (
    address_problem,
)
from fastroute.config.urls import url_problem

PUBLIC = [
    "https://api.openai.com/v1",
    "https://api.openai.com",
    "https://API.example.com:8443/v1/",
    "https://8.8.8.8/v1",
    "https://[2606:4700::1111]/v1",
    "https://xn--bcher-kva.example/v1",
]
LOCAL = ["http://localhost:8000/v1", "http://127.0.0.1/v1", "http://[::1]:11434/v1", "https://localhost"]
PRIVATE = [
    "https://10.0.0.1/v1",
    "https://192.168.1.1",
    "https://172.16.0.1",
    "https://169.254.169.254/latest",
    "https://100.64.0.1",
    "https://0.0.0.0",
    "https://127.0.0.2",
    "https://224.0.0.1",
    "https://255.255.255.255",
    "https://[fe80::1]",
    "https://[fc00::1]",
    "https://[::]",
    "https://[64:ff9b::a00:1]",
    "https://[2002:a00:1::]",
    "https://vllm:8000/v1",
    "https://metadata.google.internal",
    "https://printer.local",
    "https://app.localhost",
    "https://LOCALHOST",
]
NEVER = [
    "",
    "api.openai.com/v1",
    "ftp://api.openai.com",
    "file:///etc/passwd",
    "//api.openai.com",
    "https://",
    "https:///v1",
    "https://user:pw@api.openai.com",
    "https://user@api.openai.com",
    "https://api.openai.com#x",
    "https://api.openai.com/v1?key=1",
    "https://api.openai.com/v1?",
    "https://api.openai.com./v1",
    "https://localhost./v1",
    "https://0x7f.1",
    "https://0x7f000001",
    "https://2130706433",
    "https://127.1",
    "https://0177.0.0.1",
    "https://8.8.8.08",
    "https://1.2.3.4.5",
    "https://[::ffff:127.0.0.1]",
    "https://[::ffff:8.8.8.8]",
    "https://[0:0:0:0:0:0:0:1]",
    "https://[::1%25eth0]",
    "https://[::1",
    "https://[zz]",
    "https://оpenai.com",
    "https://api.openai。com",
    "https://api.openai.com:0",
    "https://api.openai.com:99999",
    "https://api.openai.com:",
    "https://api.openai.com:x",
    "https://api openai.com",
    "https://api.openai.com\\@evil.example",
    "https://api.openai.com/../v1",
    "https://%61pi.openai.com",
    "https://-a.example",
    "https://a..example",
    "https://api.openai.com\n",
    "https://" + "a" * 3000,
]


@pytest.mark.parametrize("url", PUBLIC + LOCAL)
def test_public_and_loopback_addresses_need_no_permission(url):
    assert url_problem(url, allow_http=False, allow_private_hosts=False) is None


@pytest.mark.parametrize("url", PRIVATE)
def test_private_addresses_need_permission(url):
    assert url_problem(url, allow_http=False, allow_private_hosts=False) is not None
    assert url_problem(url, allow_http=False, allow_private_hosts=True) is None


@pytest.mark.parametrize("url", NEVER, ids=lambda url: ascii(url)[:50])
def test_some_addresses_are_never_right(url):
    for allowed in (False, True):
        problem = url_problem(url, allow_http=allowed, allow_private_hosts=allowed)
        assert problem is not None
        assert re.search("; (use|write|end|remove) |^must be ", problem)


def test_plain_http_to_other_hosts_needs_permission():
    url = "http://api.example.com/v1"
    problem = url_problem(url, allow_http=False, allow_private_hosts=True)
    assert problem is not None
    assert "allow_http" in problem
    assert url_problem(url, allow_http=True, allow_private_hosts=False) is None
    assert only_problem(providers=provider(base_url=url)).startswith("providers.one.base_url: is plain HTTP")
    assert problems_of(providers=provider(base_url=url, allow_http=True)) == []


@given(st.text(max_size=60) | st.text(max_size=30).map("https://{}".format))
def test_any_text_as_an_address_is_judged_and_not_repeated(url):
    problem = url_problem(url, allow_http=False, allow_private_hosts=False)
    if problem is not None and len(url) > 12 and not re.search(r"[0-9]", url):
        assert url not in problem


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "10.1.2.3", "169.254.169.254", "::1", "::ffff:10.0.0.1", "fe80::1%eth0", "junk"]
)
def test_an_address_that_a_public_name_resolved_to_must_be_public(address):
    assert address_problem(address, allow_private_hosts=False) is not None


def test_public_resolved_addresses_are_fine():
    assert address_problem("8.8.8.8", allow_private_hosts=False) is None
    assert address_problem("2606:4700::1111", allow_private_hosts=False) is None
    assert address_problem("10.0.0.1", allow_private_hosts=True) is None

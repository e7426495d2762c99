"""The configuration: keys are read from their places, and shown nowhere."""

from __future__ import annotations

import copy
import json
import logging
import pickle
from pathlib import Path

import attrs
import pytest
from config_tables import KEY, NOTHING, only_problem, problems_of, provider, tables
from hypothesis import given
from hypothesis import strategies as st

from fastroute import errors
from fastroute.config import (
    ProviderConfig,
    Secret,
    check,
    load,
    load_with_keys,
    read_key,
    read_keys,
)
from fastroute.config.secrets import key_problem


def test_a_secret_does_not_show():
    secret = Secret(KEY)
    shown = [repr(secret), str(secret), f"{secret}", f"{secret!r:>10}", format(secret, ""), repr([secret])]
    shown += [json.dumps({"key": secret}, default=str), repr(attrs.make_class("C", ["k"])(secret))]
    assert all(KEY not in text and "***" in text for text in shown)
    assert secret.reveal() == KEY
    with pytest.raises(TypeError) as caught:
        json.dumps(secret)
    assert KEY not in str(caught.value)
    with pytest.raises(TypeError):
        list(secret)
    for name in ("other", *(name for name in vars(Secret) if name.endswith("__value"))):
        with pytest.raises(AttributeError, match="is immutable"):
            setattr(secret, name, "x")
    assert secret.reveal() == KEY


def test_copies_of_a_secret_work_and_pickles_lose_it():
    secret = Secret(KEY)
    assert copy.copy(secret) is secret
    assert copy.deepcopy([secret])[0].reveal() == KEY
    data = pickle.dumps(secret)
    assert KEY.encode() not in data
    lost = pickle.loads(data)
    assert repr(lost) == "***"
    with pytest.raises(ValueError, match="pickled"):
        lost.reveal()


FROM_ENV = ProviderConfig(base_url="https://x.example.com", api_key_env="THE_KEY")


def test_a_key_is_read_from_the_environment():
    found = read_key("one", FROM_ENV, {"THE_KEY": KEY})
    assert found is not None
    assert found.reveal() == KEY
    assert read_key("one", ProviderConfig(base_url="https://x.example.com"), NOTHING) is None


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_one_trailing_newline_is_left_out_with_a_warning(ending, caplog):
    with caplog.at_level(logging.WARNING, "fastroute"):
        found = read_key("one", FROM_ENV, {"THE_KEY": KEY + ending})
    assert found is not None
    assert found.reveal() == KEY
    assert "newline" in caplog.text
    assert KEY not in caplog.text


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("", "is empty"),
        ("\n", "is empty"),
        ("\ufeff" + KEY, "byte order mark"),
        (f'"{KEY}"', "in quotes"),
        (f"'{KEY}'", "in quotes"),
        (KEY + "\n\n", "white space"),
        (" " + KEY, "white space"),
        (KEY + " x", "white space"),
        (KEY + "\x00", "cannot carry"),
        (KEY + "é", "cannot carry"),
    ],
)
def test_a_key_that_cannot_be_right_is_refused_without_showing_it(value, said):
    with pytest.raises(errors.ConfigError, match=said) as caught:
        read_key("one", FROM_ENV, {"THE_KEY": value})
    assert KEY not in str(caught.value)
    assert str(caught.value).startswith("providers.one.api_key_env: the key ")


@given(st.text(min_size=1, max_size=40))
def test_what_is_wrong_with_a_key_never_repeats_it(value):
    problem = key_problem(value)
    if problem is None:
        assert all("!" <= char <= "~" for char in value)
    elif len(value) > 12:
        assert value not in problem


def test_a_variable_that_is_not_set_is_named():
    with pytest.raises(errors.ConfigError, match="environment variable THE_KEY is not set"):
        read_key("one", FROM_ENV, NOTHING)


def test_a_check_warns_of_a_ledger_whose_directory_is_not_here(tmp_path):
    file = tmp_path / "gone" / "calls.db"
    found = check(tables(fastroute={"ledger": str(file)}), environ={})
    assert found.ok
    assert any(warning.startswith("fastroute.ledger: ") for warning in found.warnings)
    file.parent.mkdir()
    found = check(tables(fastroute={"ledger": str(file)}), environ={})
    assert not any(warning.startswith("fastroute.ledger: ") for warning in found.warnings)


def test_all_missing_keys_come_at_once_and_are_warnings_of_a_check():
    source = tables(
        providers={
            name: {"base_url": "https://x.example.com/v1", "api_key_env": name.upper(), "models": ["m"]}
            for name in ("one", "two")
        }
    )
    found = check(source, environ=NOTHING)
    assert found.ok
    assert found.config is not None
    assert [warning.partition(":")[0] for warning in found.warnings[:-1]] == [
        "providers.one.api_key_env",
        "providers.two.api_key_env",
    ]
    assert found.missing == {"one", "two"}
    assert "would not start here" in found.warnings[-1]
    assert tuple(read_keys(found.config, NOTHING).missing.values()) == found.warnings[:-1]
    assert set(read_keys(found.config, {"ONE": "a", "TWO": "b"}).found) == {"one", "two"}
    with pytest.raises(errors.ConfigError) as caught:
        load_with_keys(source, environ=NOTHING)
    assert caught.value.problems == found.warnings[:-1]


def from_file(path: Path) -> ProviderConfig:
    return ProviderConfig(base_url="https://x.example.com", api_key_file=str(path))


def test_a_key_is_read_from_a_file(tmp_path, caplog):
    path = tmp_path / "key"
    path.write_text(KEY + "\n", encoding="utf-8")
    path.chmod(0o600)
    found = read_key("one", from_file(path), NOTHING)
    assert found is not None
    assert found.reveal() == KEY
    assert "every user" not in caplog.text
    path.chmod(0o644)
    with caplog.at_level(logging.WARNING, "fastroute"):
        read_key("one", from_file(path), NOTHING)
    assert "every user of this machine may read" in caplog.text


def test_a_key_file_that_cannot_be_one_is_refused(tmp_path):
    with pytest.raises(errors.ConfigError, match="cannot be read"):
        read_key("one", from_file(tmp_path / "missing"), NOTHING)
    with pytest.raises(errors.ConfigError, match="not a regular file"):
        read_key("one", from_file(tmp_path), NOTHING)
    path = tmp_path / "large"
    path.write_bytes(b"x" * 70_000)
    with pytest.raises(errors.ConfigError, match="too large"):
        read_key("one", from_file(path), NOTHING)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(errors.ConfigError, match="not text"):
        read_key("one", from_file(path), NOTHING)


@pytest.mark.parametrize(
    "changes",
    [
        {"providers": provider(api_key=KEY)},
        {"providers": provider(key=KEY)},
        {"providers": provider(**{KEY: 1})},
        {"models": {KEY: {"qality": 1}}},
        {"tiers": {"t": [KEY]}},
        {"aliases": {"a": KEY}},
        {"endpoints": [{"provider": KEY, "model": "m"}]},
        {"providers": provider(token=KEY)},
        {"providers": provider(api_key_env=KEY)},
        {"providers": provider(headers={"Authorization": f"Bearer {KEY}"})},
        {"providers": provider(headers={"x-api-key": KEY})},
        {"providers": provider(base_url=f"https://{KEY}@one.example.com")},
        {"providers": provider(base_url=f"https://one.example.com?key={KEY}")},
        {"providers": provider(format=KEY)},
        {"providers": provider(rpm=KEY)},
        {"providers": provider(proxy=KEY)},
        {"fastroute": {"api_key": KEY}},
        {"fastroute": {"timeout": KEY}},
        {"fastroute": {"default_model": KEY}},
        {"policy": {"strategy": KEY}},
        {"api_key": KEY},
    ],
)
def test_a_literal_key_is_refused_and_never_shown(changes):
    found = problems_of(**changes)
    assert found
    assert all(KEY not in problem for problem in found)


@pytest.mark.parametrize(
    "name", ["meta-llama/Llama-3.3-70B-Instruct", "anthropic/claude-sonnet-4.5-20250929"]
)
def test_the_long_name_of_a_model_is_shown(name):
    assert name in only_problem(tiers={"t": [name]})


def test_a_literal_key_is_told_where_to_go():
    assert "api_key_env" in only_problem(providers=provider(api_key=KEY))


@pytest.mark.parametrize(
    "value",
    [
        "hunter2\r\nX: y",
        "hunter2\nb",
        "hunter2\x00b",
        "hunter2\x1bb",
        " hunter2",
        "hunter2 ",
        "hunter2\u20ac",
        "hunter2\x7f",
        77777,
    ],
)
def test_headers_that_cannot_be_sent_are_refused_without_showing_them(value):
    problem = only_problem(providers=provider(headers={"X-Secret": value}))
    assert problem.startswith("providers.one.headers.X-Secret: ")
    assert "hunter2" not in problem
    assert "77777" not in problem


@pytest.mark.parametrize(
    "name",
    ["", "a b", "a:b", "a\r\nb", "caf\xe9", "Content-Length", "transfer-encoding", "Host", "TE", "upgrade"],
)
def test_names_of_headers_that_cannot_be_sent_are_refused(name):
    assert only_problem(providers=provider(headers={name: "x"})).startswith("providers.one.headers")


def test_neither_headers_nor_proxy_show_in_a_config():
    source = tables(
        providers=provider(headers={"X-Team": "hush"}, proxy="http://me:hush@proxy.example.com:1")
    )
    config = load(source, environ=NOTHING)
    assert config.providers["one"].headers == {"X-Team": "hush"}
    assert "hush" not in repr(config)


def test_sslkeylogfile_is_warned_of(caplog):
    with caplog.at_level(logging.WARNING, "fastroute"):
        load(tables(), environ={"SSLKEYLOGFILE": "/tmp/keys"})
    assert sum("SSLKEYLOGFILE" in record.message for record in caplog.records) == 1

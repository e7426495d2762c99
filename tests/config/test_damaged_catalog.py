"""Damaged and hostile catalogue files: refused whole, in bounded time, by errors of our own."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from soak.stored import catalogue

from fastroute import ConfigError
from fastroute.config import price_update
from fastroute.config.catalog import Catalog

# Each of them took minutes, or more memory than there is, if it was read without bounds.
HOSTILE: dict[str, tuple[str, str]] = {
    "a key of 50,000 parts": (".".join(["a"] * 50_000) + " = 1", "more than 64 parts"),
    "a key of quoted parts": (".".join(['"a b"'] * 50_000) + " = 1", "more than 64 parts"),
    "a header of 50,000 parts": ("[" + ".".join(["a"] * 50_000) + "]", "more than 64 parts"),
    "a chain of aliases": (
        "[aliases]\n" + "\n".join(f'a{n} = "a{n + 1}"' for n in range(20_000)) + '\na20000 = "gpt-4.1"',
        "leads through more than 32 aliases",
    ),
    "unknown targets": (
        "[aliases]\n" + "\n".join(f'b{n} = "c{n}"' for n in range(20_000)),
        "there may be more problems",
    ),
    "unknown successors": (
        "[successors]\n" + "\n".join(f'b{n} = "c{n}"' for n in range(20_000)),
        "unknown model",
    ),
    "unknown fallbacks": (
        "[models.x]\nfallbacks = [" + ", ".join(f'"c{n}"' for n in range(20_000)) + "]",
        "unknown model",
    ),
    "nested lists": ("x = " + "[" * 100_000, "nested too deeply"),
    "nested tables": ("x = " + "{a = " * 100_000, "not valid TOML"),
    "a number of 100,000 digits": ("[models.x]\ninput_price = " + "9" * 100_000, "not valid TOML"),
    "a hexadecimal number": ("[models.x]\ncontext_window = 0x" + "f" * 100_000, "context_window: must be"),
    "infinity": ("[models.x]\ninput_price = inf\noutput_price = nan", "input_price: must be"),
    "no day": ("date = 9999-99-99", "not valid TOML"),
    "no text": ("\0\0\0\0", "not valid TOML"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_catalogue_is_refused_in_bounded_time(tmp_path: Path, name: str) -> None:
    text, said = HOSTILE[name]
    file = tmp_path / "catalog.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=said) as refused:
        Catalog.builtin().with_file(file)
    assert len(refused.value.problems) <= 201
    with pytest.raises(ConfigError):
        price_update.from_file(file)
    with pytest.raises(ConfigError):
        price_update.update(file, price_update.PriceSource("s", Catalog.builtin().date, lambda model: {}))
    assert file.read_text() == text


def test_dots_in_texts_and_numbers_are_no_parts_of_a_key(tmp_path: Path) -> None:
    file = tmp_path / "catalog.toml"
    words = "One. Two. Three. " * 50
    numbers = ", ".join(["1.5"] * 100)
    file.write_text(f'source = "{words}"  # {words}\n[models.x]\nprice_factors = {{}}\n#{numbers}\n')
    assert Catalog.builtin().with_file(file).source == words


@pytest.mark.parametrize("kind", ["folder", "not UTF-8", "unreadable link"])
def test_a_target_that_is_no_text_is_refused(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "catalog.toml"
    if kind == "folder":
        target.mkdir()
    elif kind == "not UTF-8":
        target.write_bytes(b"\xff\xfe")
    else:
        target.symlink_to("/proc/self/mem")
    with pytest.raises(ConfigError):
        price_update.update(target, price_update.PriceSource("s", Catalog.builtin().date, lambda model: {}))


@pytest.mark.parametrize(
    "error",
    [AttributeError("x"), TypeError("x"), ValueError("x"), KeyError("x"), OverflowError("x")],
    ids=repr,
)
def test_a_source_of_another_form_is_refused(tmp_path: Path, error: Exception) -> None:
    def look_up(_: Any) -> Any:
        raise error

    with pytest.raises(ConfigError, match=r"cannot be read .*; use another release of the source"):
        price_update.update(
            tmp_path / "c.toml", price_update.PriceSource("s", Catalog.builtin().date, look_up)
        )


def test_a_catalogue_may_be_damaged_anywhere(tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    assert catalogue(random.Random(seed), tmp_path, 60).total() == 120

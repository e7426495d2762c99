"""Catalogue updates: what is taken over, what is left alone, and that a broken source changes nothing."""

from __future__ import annotations

import json
import os
import sys
import types
from collections.abc import Callable
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from fastroute import ConfigError
from fastroute.cli.group import cli
from fastroute.config import price_update
from fastroute.config.catalog import Catalog, Model
from fastroute.types import TokenPrices

TODAY = datetime.now(timezone.utc).date()
BUILTIN = Catalog.builtin()


def source(day: date = TODAY, **models: Any) -> price_update.PriceSource:
    """A source that knows the models named, with dots and dashes of their names as underscores."""

    def look_up(model: Model) -> Any:
        return models.get(model.name.replace(".", "_").replace("-", "_"))

    return price_update.PriceSource("test-prices 1", day, look_up)


def figures(**change: Any) -> dict[str, Any]:
    return {"input_price": 2.5, "output_price": 9.0, "context_window": 1_000_000, **change}


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "catalog.toml"


def test_a_new_file_holds_the_sources_figures_over_the_built_in_ones(target: Path) -> None:
    done = price_update.update(target, source(gpt_4_1=figures(cached_input_price=Decimal("0.6"))))
    assert (done.updated, done.own) == (("gpt-4.1",), ())
    assert "gpt-4o" in done.unknown
    assert done.changes == (
        price_update.PriceChange("gpt-4.1", "input_price", 2.0, 2.5),
        price_update.PriceChange("gpt-4.1", "cached_input_price", 0.5, 0.6),
        price_update.PriceChange("gpt-4.1", "output_price", 8.0, 9.0),
    )
    read = BUILTIN.with_file(target)
    model = read.model("gpt-4.1")
    assert (model.input_price, model.cached_input_price, model.output_price) == (
        2_500_000_000,
        600_000_000,
        9_000_000_000,
    )
    assert model.quality == BUILTIN.model("gpt-4.1").quality
    assert read.model("gpt-4o") == BUILTIN.model("gpt-4o")
    assert (read.date, read.source) == (TODAY, "test-prices 1")


def test_what_people_wrote_stays(target: Path) -> None:
    target.write_text(
        """# our prices
date = 2026-11-21   # the day
source = "by hand"

[models."gpt-4.1"]  # the usual one
# negotiated? no
providers = { openai = "gpt-4.1" }
quality = 0.99
input_price = 2.0   # per million
output_price = 8.0

[models.gpt-4o]
input_price = 1.0
output_price = 4.0

[aliases]
"ours" = "gpt-4.1"
"""
    )
    target.chmod(0o640)
    done = price_update.update(
        target, source(gpt_4_1=figures(), gpt_4o=figures(), gpt_5=figures(output_price=11))
    )
    assert done.own == ("gpt-4o",)
    assert done.updated == ("gpt-4.1", "gpt-5")
    assert target.read_text() == (
        f"""# our prices
date = "{TODAY}"
source = "test-prices 1"

[models."gpt-4.1"]  # the usual one
# negotiated? no
providers = {{ openai = "gpt-4.1" }}
input_price = 2.5
output_price = 9.0
context_window = 1000000
quality = 0.99

[models.gpt-4o]
input_price = 1.0
output_price = 4.0

[aliases]
"ours" = "gpt-4.1"

[models."gpt-5"]
providers = {{ openai = "gpt-5", openrouter = "openai/gpt-5" }}
input_price = 2.5
output_price = 11
context_window = 1000000
"""
    )
    assert target.stat().st_mode & 0o777 == 0o640


def test_a_cached_price_that_is_not_told_any_more_goes(target: Path) -> None:
    price_update.update(target, source(gpt_4_1=figures(cached_input_price=0.6)))
    done = price_update.update(target, source(gpt_4_1=figures()))
    assert done.changes == (price_update.PriceChange("gpt-4.1", "cached_input_price", 0.6, None),)
    assert BUILTIN.with_file(target).model("gpt-4.1").cached_input_price is None


def test_updating_twice_changes_nothing(target: Path) -> None:
    given = source(gpt_4_1=figures(cached_input_price=0.1), gpt_4o=figures(context_window=128_000))
    price_update.update(target, given)
    first = target.read_bytes()
    assert price_update.update(target, given).changes == ()
    assert target.read_bytes() == first


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "nan": (
        {"input_price": float("nan")},
        "input_price: must be a number from 0 to 100,000 (USD per million tokens), not nan",
    ),
    "decimal nan": (
        {"input_price": Decimal("NaN")},
        "input_price: must be a number from 0 to 100,000 (USD per million tokens), not nan",
    ),
    "infinite": (
        {"output_price": float("inf")},
        "output_price: must be a number from 0 to 100,000 (USD per million tokens), not inf",
    ),
    "negative": (
        {"output_price": Decimal("-1")},
        "output_price: must be a number from 0 to 100,000 (USD per million tokens), not -1.0",
    ),
    "text": (
        {"input_price": "2.5"},
        "input_price: must be a number from 0 to 100,000 (USD per million tokens), not '2.5'",
    ),
    "true": (
        {"input_price": True},
        "input_price: must be a number from 0 to 100,000 (USD per million tokens), not true",
    ),
    "nothing": ({"input_price": None}, "input_price: is missing"),
    "too dear": (
        {"input_price": 1e9},
        "input_price: must be a number from 0 to 100,000 (USD per million tokens), not 1000000000.0",
    ),
    "other unit": (
        {"input_price": 0.0025},
        "input_price: 0.0025 USD per million tokens is more than 100 times away from 2",
    ),
    "free": (
        {"output_price": 0},
        "output_price: 0 USD per million tokens is more than 100 times away from 8",
    ),
    "no window": ({"context_window": 0}, "context_window: must be an integer from 1 to 1,000,000,000, not 0"),
    "text window": (
        {"context_window": "1M"},
        "context_window: must be an integer from 1 to 1,000,000,000, not '1M'",
    ),
    "half a window": (
        {"context_window": 1.5},
        "context_window: must be an integer from 1 to 1,000,000,000, not 1.5",
    ),
}


@pytest.mark.parametrize(("change", "said"), BROKEN.values(), ids=BROKEN)
def test_one_broken_figure_refuses_all_of_it(target: Path, change: dict[str, Any], said: str) -> None:
    price_update.update(target, source(gpt_4_1=figures(), gpt_4o=figures()))
    before = target.read_bytes()
    broken = source(
        gpt_4o=figures(input_price=3.0), gpt_4_1={**figures(input_price=2.0, output_price=8.0), **change}
    )
    # Beside the built-in prices, so that the figures named above are the ones in force.
    for file in (target, target.with_name("new.toml")):
        with pytest.raises(ConfigError) as caught:
            price_update.update(file, broken)
        (problem,) = caught.value.problems
        assert problem.startswith('test-prices 1: models."gpt-4.1".')
    assert said in problem
    assert target.read_bytes() == before
    assert os.listdir(target.parent) == ["catalog.toml"]


def test_every_problem_is_told(target: Path) -> None:
    broken = source(
        gpt_4_1=figures(input_price="x"), gpt_4o=figures(output_price=-1), gpt_5={"input_price": 1.0}
    )
    with pytest.raises(ConfigError) as caught:
        price_update.update(target, broken)
    assert [problem.split(": ")[1] for problem in caught.value.problems] == [
        'models."gpt-4.1".input_price',
        "models.gpt-4o.output_price",
        "models.gpt-5.output_price",
    ]
    assert not target.exists()


def test_a_window_that_is_gone_refuses_the_update(target: Path) -> None:
    without = {key: value for key, value in figures().items() if key != "context_window"}
    price_update.update(target, source(gpt_4_1=without))  # the catalogue's own
    assert BUILTIN.with_file(target).model("gpt-4.1").context_window == 1_000_000
    price_update.update(target, source(gpt_4_1=figures()))
    with pytest.raises(ConfigError, match="context_window: is missing"):
        price_update.update(target, source(gpt_4_1=without))


def test_older_prices_are_refused(target: Path) -> None:
    with pytest.raises(ConfigError, match="older than those in use"):
        price_update.update(target, source(BUILTIN.date - timedelta(days=1), gpt_4_1=figures()))
    assert not target.exists()


def test_a_source_that_knows_nothing_is_refused(target: Path) -> None:
    with pytest.raises(ConfigError, match="has none of the models that may be updated"):
        price_update.update(target, source())


def test_the_packages_own_file_is_refused() -> None:
    own = Path(price_update.__file__).parent / "data" / "catalog.toml"
    before = own.read_bytes()
    with pytest.raises(ConfigError, match="use a file of your own"):
        price_update.update(own, source(gpt_4_1=figures()))
    assert own.read_bytes() == before


@pytest.mark.parametrize(
    "written",
    [
        'models."gpt-4.1" = { providers = { openai = "gpt-4.1" }, input_price = 2.0, output_price = 8.0 }\n',
        'models."gpt-4.1".providers = { openai = "gpt-4.1" }\nmodels."gpt-4.1".input_price = 2.0\n',
        '[ models . "gpt-4.1" ]\nproviders = { openai = "gpt-4.1" }\ninput_price = 2.0\n',
        '[models]\n"gpt-4.1" = { providers = { openai = "gpt-4.1" }, input_price = 2.0 }\n',
    ],
)
def test_a_form_that_cannot_be_rewritten_is_refused_and_kept(target: Path, written: str) -> None:
    target.write_text(written)
    with pytest.raises(ConfigError, match="cannot be updated in"):
        price_update.update(target, source(gpt_4_1=figures()))
    assert target.read_text() == written
    assert os.listdir(target.parent) == ["catalog.toml"]


def test_a_broken_file_is_refused_and_kept(target: Path) -> None:
    target.write_text("models.x.input_price = nan\n")
    with pytest.raises(ConfigError, match="must be a number"):
        price_update.update(target, source(gpt_4_1=figures()))
    assert target.read_text() == "models.x.input_price = nan\n"


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be written"):
        price_update.update(tmp_path / "nowhere" / "catalog.toml", source(gpt_4_1=figures()))


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "link.toml").symlink_to(tmp_path / "real.toml")
    price_update.update(tmp_path / "link.toml", source(gpt_4_1=figures()))
    assert (tmp_path / "link.toml").is_symlink()
    assert (tmp_path / "real.toml").is_file()


@settings(max_examples=40, deadline=None)
@given(st.floats(0.03, 200), st.decimals("0.08", "800", places=4), st.integers(1, 10**9))
def test_any_figure_that_is_believed_arrives(
    tmp_path_factory: Any, inward: float, outward: Decimal, window: int
) -> None:
    target = tmp_path_factory.mktemp("prices") / "catalog.toml"
    told = {"input_price": inward, "output_price": outward, "context_window": window}
    price_update.update(target, source(gpt_4_1=told))
    model = BUILTIN.with_file(target).model("gpt-4.1")
    assert model.context_window == window
    assert model.input_price == pytest.approx(inward * 1e9, abs=1)
    assert model.output_price == int(outward * 10**9)


# -------------------------------------------------------------------------------------------- genai-prices


class _Tiered:
    def __init__(self, base: Any, *tiers: tuple[int, Any]) -> None:
        self.base = base
        self.tiers = [types.SimpleNamespace(start=start, price=price) for start, price in tiers]


class _Listed:
    """A model as genai-prices lists it, with a price for each hour."""

    def __init__(self, name: str, price: Callable[[int], Any], window: Any = 128_000, **more: Any) -> None:
        self.id, self.context_window, self._price, self._more = name, window, price, more

    def get_prices(self, moment: datetime) -> Any:
        price = self._price(moment.hour)
        usual = {"input_mtok": price, "cache_read_mtok": None, "output_mtok": _Tiered(Decimal("9"))}
        return types.SimpleNamespace(**usual | self._more)


def package(*models: _Listed, provider: str = "openai") -> price_update.PriceSource:
    listed = types.SimpleNamespace(id=provider, models=models, find_model=lambda name: None)
    midnight = datetime.combine(TODAY, datetime.min.time(), timezone.utc)
    return price_update.package_source([listed], "genai-prices 99", midnight)


def test_the_dearest_hour_and_the_base_of_a_growing_price_are_taken(target: Path) -> None:
    done = price_update.update(
        target, package(_Listed("gpt-4o", lambda hour: Decimal(3 if hour == 17 else 2)))
    )
    assert done.updated == ("gpt-4o",)
    model = BUILTIN.with_file(target).model("gpt-4o")
    assert (model.input_price, model.output_price) == (3_000_000_000, 9_000_000_000)


def test_prices_that_grow_with_the_prompt_and_of_writes_are_taken_and_go_again(target: Path) -> None:
    grown = _Listed(
        "claude-haiku-4-5",
        lambda hour: _Tiered(Decimal(1), (200_000, Decimal(2)), (400_000, Decimal(3))),
        cache_write_mtok=Decimal("1.25"),
        cache_write_1h_mtok=_Tiered(Decimal(2), (200_000, Decimal(4))),
        output_mtok=Decimal(5),
    )
    price_update.update(target, package(grown, provider="anthropic"))
    assert BUILTIN.with_file(target).model("claude-haiku-4.5").prices == TokenPrices(
        input=1_000_000_000,
        output=5_000_000_000,
        cached_input=None,
        cache_write=1_250_000_000,
        cache_write_1h=2_000_000_000,
        long_context=200_000,
        long=TokenPrices(3_000_000_000, 5_000_000_000, None, 1_250_000_000, 4_000_000_000),
    )
    assert "long_context = 200000\n" in target.read_text()
    flat = _Listed("claude-haiku-4-5", lambda hour: Decimal(1), output_mtok=Decimal(5))
    done = price_update.update(target, package(flat, provider="anthropic"))
    assert price_update.PriceChange("claude-haiku-4.5", "long_context", 200_000, None) in done.changes
    assert BUILTIN.with_file(target).model("claude-haiku-4.5").prices == TokenPrices(10**9, 5 * 10**9)


@pytest.mark.parametrize(
    "broken", ["2.5", Decimal("NaN"), Decimal("-3"), float("inf"), _Tiered("free"), object()]
)
def test_one_broken_hour_refuses_all_of_it(target: Path, broken: Any) -> None:
    listed = _Listed(
        "gpt-4o", lambda hour: broken if hour == 3 else Decimal(2) if broken != Decimal("-3") else broken
    )
    with pytest.raises(ConfigError, match=r"genai-prices 99: models\.gpt-4o\.input_price: "):
        price_update.update(target, package(listed, _Listed("gpt-5", lambda hour: Decimal(1))))
    assert not target.exists()


def test_gemini_is_found_under_its_companys_name(target: Path) -> None:
    done = price_update.update(
        target, package(_Listed("gemini-2.5-flash", lambda hour: Decimal("0.3")), provider="google")
    )
    assert "gemini-2.5-flash" in done.updated


def test_without_the_package_the_command_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "genai_prices.data", None)
    with pytest.raises(ConfigError, match="pip install genai-prices"):
        price_update.from_package()


def test_an_older_package_than_the_built_in_prices_come_from_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "genai_prices", types.ModuleType("genai_prices"))
    data = types.ModuleType("genai_prices.data")
    data.providers = []  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "genai_prices.data", data)
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.0.1")
    with pytest.raises(ConfigError, match="older than the built-in catalogue"):
        price_update.from_package()
    monkeypatch.setattr("importlib.metadata.version", lambda name: "99.0")
    assert price_update.from_package().name == "genai-prices 99.0"


@pytest.mark.skipif(
    sys.version_info < (3, 11), reason="3.10 gets an older genai-prices than the built-in data"
)
def test_the_package_that_is_installed_knows_the_models(target: Path) -> None:
    if not os.environ.get("CI"):  # there it is installed, and its absence a failure
        pytest.importorskip("genai_prices")
    done = price_update.update(target, price_update.from_package())
    assert len(done.updated) > 20
    assert BUILTIN.with_file(target).model("gpt-4.1").output_price is not None


# ------------------------------------------------------------------------------------------ the command


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in list(os.environ):
        if name.startswith("FASTROUTE_") or name.endswith("_API_KEY"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


GOOD = f"""
date = "{TODAY}"
source = "the platform team"
[models."gpt-4.1"]
input_price = 2.5
output_price = 9
context_window = 1000000
"""


def test_the_command_writes_from_a_file_and_says_what_changed(elsewhere: Path) -> None:
    (elsewhere / "new.toml").write_text(GOOD)
    result = CliRunner().invoke(cli, ["models", "--update", "--from", "new.toml"])
    assert result.exit_code == 0, result.output
    assert [line.split() for line in result.stdout.splitlines()[:4]] == [
        ["model", "figure", "before", "after"],
        ["gpt-4.1", "input_price", "2", "2.5"],
        ["gpt-4.1", "cached_input_price", "0.5", "-"],
        ["gpt-4.1", "output_price", "8", "9"],
    ]
    assert "from the platform team for 1 models, 3 figures changed" in result.stdout
    assert 'set catalog = "catalog.toml"' in result.stderr
    again = CliRunner().invoke(
        cli, ["models", "--update", "--from", "new.toml", "--to", "catalog.toml", "--json"]
    )
    assert json.loads(again.stdout)["changes"] == []
    listed = CliRunner().invoke(cli, ["models", "--json"])
    assert json.loads(listed.stdout)["source"] != "the platform team"  # nothing names the file yet


def test_the_command_writes_where_the_configuration_looks(elsewhere: Path) -> None:
    (elsewhere / "conf").mkdir()
    (elsewhere / "conf" / "prices.toml").write_text("")
    (elsewhere / "conf" / "fastroute.toml").write_text(
        """
        [fastroute]
        catalog = "prices.toml"
        [providers.local]
        base_url = "http://localhost:1/v1"
        [[endpoints]]
        provider = "local"
        model = "gpt-4.1"
        """
    )
    (elsewhere / "new.toml").write_text(GOOD)
    asked = ["models", "--config", "conf/fastroute.toml"]
    result = CliRunner().invoke(cli, [*asked, "--update", "--from", "new.toml"])
    assert result.exit_code == 0, result.output
    assert "to use it" not in result.stderr
    listed = json.loads(CliRunner().invoke(cli, [*asked, "--json"]).stdout)
    assert listed["source"] == "the platform team"
    assert listed["models"][0]["output_price_usd"] == 9


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (
            GOOD.replace("2.5", "nan"),
            "input_price: must be a number from 0 to 100,000 (USD per million tokens), not nan",
        ),
        (
            GOOD.replace("2.5", "-2.5"),
            "input_price: must be a number from 0 to 100,000 (USD per million tokens), not -2.5",
        ),
        (
            GOOD.replace("2.5", '"2.5"'),
            "input_price: must be a number from 0 to 100,000 (USD per million tokens), not '2.5'",
        ),
        (GOOD.replace("context_window = 1000000", ""), "context_window: is missing"),
        (GOOD + "[models.x]\ninput_prize = 1\n", "input_prize: unknown key"),
        (GOOD[:-20], "not valid TOML"),
        ("=", "not valid TOML"),
        (GOOD.replace(str(TODAY), "2001-01-01"), "older than those in use"),
    ],
)
def test_the_command_keeps_the_file_when_the_source_is_broken(
    elsewhere: Path, broken: str, said: str
) -> None:
    before = GOOD.replace("input_price", 'providers = { openai = "gpt-4.1" }\ninput_price')
    (elsewhere / "catalog.toml").write_text(before)
    (elsewhere / "new.toml").write_text(broken)
    result = CliRunner().invoke(cli, ["models", "--update", "--from", "new.toml"])
    assert result.exit_code == 1
    assert said in result.stderr
    assert (elsewhere / "catalog.toml").read_text() == before


def test_its_options_belong_together(elsewhere: Path) -> None:
    (elsewhere / "new.toml").write_text(GOOD)
    result = CliRunner().invoke(cli, ["models", "--from", "new.toml"])
    assert result.exit_code == 2
    assert "need --update" in result.stderr

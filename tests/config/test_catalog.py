"""The catalogue: its own data, files over it, aliases, and what it does with a broken file."""

from __future__ import annotations

import datetime
import importlib.util
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastroute import config, errors
from fastroute.config import price_update
from fastroute.config.catalog import (
    CAPABILITIES,
    JSON_SCHEMA,
    SAMPLING,
    SAMPLING_WITHOUT_REASONING,
    STREAMING,
    TIERS,
    TOOLS,
    VISION,
    Catalog,
    Model,
    ModelOverride,
)
from fastroute.types import TokenPrices

BUILTIN = Catalog.builtin()
ANY_SAMPLING = SAMPLING | SAMPLING_WITHOUT_REASONING


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "catalog.toml"
    path.write_text(text, encoding="utf-8")
    return path


def problems_of(tmp_path: Path, text: str) -> str:
    with pytest.raises(errors.ConfigError) as caught:
        BUILTIN.with_file(write(tmp_path, text))
    return "\n".join(caught.value.problems)


# ---------------------------------------------------------------------------------------------- built in


def test_builtin_is_read_once():
    assert Catalog.builtin() is BUILTIN


def test_builtin_is_dated_and_says_its_source():
    assert BUILTIN.date >= datetime.date(2026, 1, 1)
    assert BUILTIN.source.startswith("genai-prices ")
    assert 25 <= len(BUILTIN.models) <= 60


@pytest.mark.parametrize("model", BUILTIN.models.values(), ids=lambda model: model.name)
def test_every_builtin_model_is_whole_and_plausible(model: Model):
    assert model.input_price is not None
    assert model.output_price is not None
    assert model.input_price is not None
    assert model.output_price is not None
    assert 0 < model.input_price <= model.output_price <= 200 * 10**9
    assert model.cached_input_price is None or model.cached_input_price <= model.input_price
    assert model.context_window >= 32_000
    assert 0 <= model.max_output_tokens <= model.context_window
    assert model.capabilities & STREAMING
    assert 0 < model.quality < 1
    assert 0 < model.latency <= 30
    assert model.tier in TIERS
    assert model.providers.keys() <= {"openai", "deepseek", "openrouter", "anthropic", "gemini"}


def test_tiers_rise_in_quality_and_price_on_average():
    def mean(tier: str, attribute: str) -> float:
        found = [getattr(model, attribute) for model in BUILTIN.models.values() if model.tier == tier]
        return sum(found) / len(found)

    for attribute in ("quality", "output_price"):
        means = [mean(tier, attribute) for tier in TIERS]
        assert means == sorted(means), attribute


def test_prices_are_whole_nano_dollars_per_million_tokens():
    model = BUILTIN.model("gpt-4.1")
    assert (model.input_price, model.output_price, model.cached_input_price) == (
        2_000_000_000,
        8_000_000_000,
        500_000_000,
    )


@pytest.mark.parametrize(
    ("old", "current"),
    [
        ("gpt-4", "gpt-4.1"),
        ("gpt-3.5-turbo", "gpt-4o-mini"),
        ("claude-3-opus", "claude-sonnet-4.5"),
        ("deepseek-chat", "deepseek-v3.2"),
        ("gpt-4.1", "gpt-4.1"),
    ],
)
def test_aliases_lead_to_current_models(old, current):
    assert BUILTIN.resolve(old) == current
    assert BUILTIN.model(old).name == current


def test_every_alias_ends_at_a_model():
    assert {BUILTIN.resolve(alias) for alias in BUILTIN.aliases} <= BUILTIN.models.keys()
    assert not BUILTIN.aliases.keys() & BUILTIN.models.keys()


def test_an_unknown_name_fails_with_near_ones():
    with pytest.raises(errors.ModelNotFoundError) as caught:
        BUILTIN.resolve("gpt-4.l")
    assert caught.value.suggestions[0] == "gpt-4.1"
    assert "gpt-4.1" in str(caught.value)
    assert caught.value.status_code == 404


def test_a_name_like_nothing_fails_without_suggestions():
    with pytest.raises(errors.ModelNotFoundError) as caught:
        BUILTIN.resolve("§§§§")
    assert caught.value.suggestions == ()


@given(st.text(max_size=300))
def test_resolving_any_text_gives_a_model_or_the_error(name):
    if name in BUILTIN.models or name in BUILTIN.aliases:
        assert BUILTIN.resolve(name) in BUILTIN.models
        return
    with pytest.raises(errors.ModelNotFoundError) as caught:
        BUILTIN.resolve(name)
    assert len(str(caught.value)) < 400


# --------------------------------------------------------------------------------------------- overrides


def test_an_override_changes_what_it_names_and_nothing_else():
    catalog = BUILTIN.with_overrides(
        {"gpt-4.1": ModelOverride(input_price=1.5, quality=0.5, capabilities=("tools", "vision"))}
    )
    before, after = BUILTIN.model("gpt-4.1"), catalog.model("gpt-4.1")
    assert after.input_price == 1_500_000_000
    assert after.output_price == before.output_price
    assert after.quality == 0.5
    assert after.capabilities == TOOLS | VISION | ANY_SAMPLING
    assert after.capability_names == ("tools", "vision")
    assert BUILTIN.model("gpt-4.1") is before


def test_a_new_price_drops_the_old_discount():
    catalog = BUILTIN.with_overrides({"gpt-4.1": ModelOverride(input_price=0.1)})
    assert catalog.model("gpt-4.1").cached_input_price is None


def test_a_served_model_nobody_describes_has_unknown_prices():
    catalog = BUILTIN.with_overrides({}, served=["my-llama", "gpt-4"])
    for name in ("my-llama", "gpt-4"):
        model = catalog.model(name)
        assert model.name == name
        assert not model.known
        assert model.input_price is model.output_price is None
        assert model.context_window == 0
        assert model.capabilities == STREAMING | TOOLS | JSON_SCHEMA | ANY_SAMPLING


def test_an_own_alias_wins_over_a_model_that_nothing_serves_only():
    catalog = BUILTIN.with_overrides({}, {"gpt-5": "mine"}, served=["mine"])
    assert catalog.resolve("gpt-5") == "mine"
    catalog = BUILTIN.with_overrides({}, {"gpt-5": "mine"}, served=["mine", "gpt-5"])
    assert catalog.resolve("gpt-5") == "gpt-5"


def test_fallbacks_are_followed_by_the_models_own_names():
    catalog = BUILTIN.with_overrides({"gpt-5": ModelOverride(fallbacks=("gpt-4", "gpt-5-mini"))})
    assert catalog.model("gpt-5").fallbacks == ("gpt-4.1", "gpt-5-mini")


@given(st.floats(min_value=1e-9, max_value=100_000))
def test_any_price_is_rounded_up_to_whole_nano_dollars(usd):
    model = Model(name="m").over(ModelOverride(input_price=usd))
    assert isinstance(model.input_price, int)
    assert usd * 1e9 - 1e-3 <= model.input_price <= usd * 1e9 + 1


def test_sampling_is_said_in_three_words():
    for said, bits in (
        (True, ANY_SAMPLING),
        ("without-reasoning", SAMPLING_WITHOUT_REASONING),
        (False, 0),
    ):
        model = Model(name="m").over(ModelOverride(sampling=said, capabilities=("tools",)))
        assert (model.capabilities, model.sampling) == (TOOLS | bits, said)
        assert model.over(ModelOverride(capabilities=("vision",))).sampling == said
    assert BUILTIN.model("claude-opus-5.5").sampling is False
    assert BUILTIN.model("claude-sonnet-4.5").sampling is True
    assert BUILTIN.model("gpt-6-luna").sampling == "without-reasoning"


def test_a_price_says_what_reading_writing_and_length_cost():
    model = BUILTIN.model("claude-haiku-5.5")
    assert model.prices == TokenPrices(
        input=100_000_000,
        output=500_000_000,
        cached_input=10_000_000,
        cache_write=125_000_000,
        cache_write_1h=200_000_000,
        long_context=100_000,
        long=TokenPrices(500_000_000, 2_500_000_000, 50_000_000, 625_000_000, 1_000_000_000),
    )
    assert BUILTIN.model("claude-opus-5.5").prices.cache_write_1h == 8_000_000_000
    assert BUILTIN.model("gemini-2.5-pro").prices.at(200_000).input == 1_250_000_000
    assert BUILTIN.model("gemini-2.5-pro").prices.at(200_001).input == 2_500_000_000
    # Discounts and surcharges belong to the price that they were told with.
    dearer = model.over(ModelOverride(input_price=1.0)).prices
    assert dearer == TokenPrices(1_000_000_000, 500_000_000)
    assert Model(name="m").prices is None


def test_what_was_given_up_is_answered_by_its_successor_where_nothing_else_does():
    theirs = BUILTIN.with_overrides({}, served=["deepseek-v4.1-flash"])
    for name in ("deepseek-v3.2", "deepseek-chat", "deepseek-reasoner"):
        assert theirs.resolve(name) == "deepseek-v4.1-flash"
    relayed = BUILTIN.with_overrides({}, served=["deepseek-v4.1-flash", "deepseek-v3.2"])
    assert relayed.resolve("deepseek-chat") == "deepseek-v3.2"
    assert BUILTIN.with_overrides({}, served=["gpt-4.1"]).resolve("deepseek-chat") == "deepseek-v3.2"
    own = BUILTIN.with_overrides({}, {"deepseek-v3.2": "gpt-4.1"}, served=["gpt-4.1", "deepseek-v4.1-flash"])
    assert own.resolve("deepseek-chat") == "gpt-4.1"


def test_a_key_of_deepseeks_alone_serves_its_old_names():
    loaded = config.load(None, environ={"DEEPSEEK_API_KEY": "k" * 30}, formats=("openai",))
    catalog = config.catalog_of(loaded)
    assert catalog.resolve("deepseek-chat") in loaded.served


def test_default_tiers_are_cheapest_first_without_empty_ones():
    tiers = BUILTIN.default_tiers(["claude-sonnet-4.5", "gpt-4.1-nano", "unheard-of", "gpt-4.1-nano"])
    assert list(tiers.items()) == [
        ("ultra-budget", ("gpt-4.1-nano",)),
        ("standard", ("unheard-of",)),
        ("premium", ("claude-sonnet-4.5",)),
    ]


def test_models_served_by_a_provider_come_with_its_names():
    assert BUILTIN.served_by("deepseek") == {"deepseek-v4.1-flash": "deepseek-flash"}
    assert BUILTIN.served_by("nobody") == {}


# ------------------------------------------------------------------------------------------------- files


def test_a_file_lies_over_the_builtin_data(tmp_path):
    catalog = BUILTIN.with_file(
        write(
            tmp_path,
            """
            version = 1
            date = 2026-12-24
            source = "us"
            [models."gpt-4.1"]
            output_price = 7.5
            [models.house]
            input_price = 0
            output_price = 0
            context_window = 8192
            capabilities = []
            tier = "budget"
            fallbacks = ["gpt-4"]
            [aliases]
            home = "house"
            casa = "home"
            """,
        )
    )
    assert catalog.date == datetime.date(2026, 12, 24)
    assert catalog.source == "us"
    assert catalog.model("gpt-4.1").output_price == 7_500_000_000
    assert catalog.model("gpt-4.1").input_price == 2_000_000_000
    house = catalog.model("casa")
    assert (house.name, house.input_price, house.capabilities, house.fallbacks) == (
        "house",
        0,
        ANY_SAMPLING,
        ("gpt-4.1",),
    )
    assert catalog.model("gpt-5") == BUILTIN.model("gpt-5")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "models.x.input_price = nan",
            "models.x.input_price: must be a number from 0 to 100,000 (USD per million tokens), not nan",
        ),
        (
            "models.x.input_price = inf",
            "models.x.input_price: must be a number from 0 to 100,000 (USD per million tokens), not inf",
        ),
        (
            "models.x.output_price = -1",
            "models.x.output_price: must be a number from 0 to 100,000 (USD per million tokens), not -1",
        ),
        (
            'models.x.input_price = "0.01"',
            "models.x.input_price: must be a number from 0 to 100,000 (USD per million tokens), not '0.01'",
        ),
        (
            "models.x.input_price = true",
            "models.x.input_price: must be a number from 0 to 100,000 (USD per million tokens), not true",
        ),
        (
            "models.x.input_price = 1e-30",
            "models.x.input_price: must be 0 or at least 1e-09 (USD per million tokens), not 1e-30",
        ),
        (
            "models.x.context_window = 0",
            "models.x.context_window: must be an integer from 1 to 1,000,000,000, not 0",
        ),
        (
            "models.x.context_window = -5",
            "models.x.context_window: must be an integer from 1 to 1,000,000,000, not -5",
        ),
        (
            "models.x.max_output_tokens = 1.5",
            "models.x.max_output_tokens: must be an integer from 1 to 1,000,000,000, not 1.5",
        ),
        ("models.x.quality = 1.01", "models.x.quality: must be a number from 0 to 1, not 1.01"),
        (
            "models.x.latency = 0",
            "models.x.latency: must be a number above 0 and at most 3600 (seconds), not 0",
        ),
        ('models.x.tier = "luxury"', "models.x.tier: unknown tier 'luxury'; use one of ultra-budget"),
        (
            'models.x.capabilities = ["tool"]',
            "models.x.capabilities[0]: unknown capability 'tool' (did you mean tools?)",
        ),
        ('models."a.b".quallity = 1', 'models."a.b".quallity: unknown key (did you mean quality?)'),
        (
            'models.x.fallbacks = ["gpt-4.l"]',
            "models.x.fallbacks: unknown model 'gpt-4.l' (did you mean gpt-4.1?)",
        ),
        ('models.x.fallbacks = ["x"]', "models.x.fallbacks: names the model itself"),
        ("models.x = 5", "models.x: must be a table, not 5"),
        ("models = 5", "models: must be a table of tables, not 5"),
        ('aliases.a = "b"\naliases.b = "a"', "aliases.a: is circular (a → b → a); end it at a model"),
        ('aliases.a = "a"', "aliases.a: is circular (a → a); end it at a model"),
        ('aliases.a = "nothing-like-it"', "aliases.a: unknown model 'nothing-like-it'; use a known model"),
        ("aliases.a = 5", "aliases.a: must be a string, not 5"),
        ("version = 2", "version: must be 1, the only layout known, not 2"),
        ('date = "yesterday"', "date: must be like"),
        ("modles = {}", "modles: unknown key (did you mean models?)"),
        ("source = 5", "source: must be a string, not 5"),
        ("a = 1\na = 2", "is not valid TOML"),
        ('[models.x]\nsampling = "maybe"', 'must be true, false or "without-reasoning"'),
        ("[models.x]\nlong_context = 5", "models.x.long_context: has no effect alone"),
        ("[models.x]\nlong_output_price = 5", "models.x.long_output_price: has no effect alone"),
        (
            "[models.x]\nlong_context = 5\nlong_input_price = 5",
            "models.x.long_input_price: is a surcharge on input_price",
        ),
        ("[models.x]\ncache_write_price = -1", "models.x.cache_write_price: "),
        ('[successors]\n"gpt-4.1" = "gpt-9"', "successors.\"gpt-4.1\": unknown model 'gpt-9'"),
        ('[successors]\n"gpt-4.1" = 5', 'successors."gpt-4.1": must be a string, not 5'),
    ],
)
def test_a_broken_file_is_refused_with_the_place(tmp_path, text, problem):
    assert problem in problems_of(tmp_path, text)


def test_all_problems_of_a_file_come_at_once(tmp_path):
    found = problems_of(tmp_path, "version = 9\nmodels.x.quality = 2\nmodels.y.latency = -1\nextra = 1")
    assert len(found.splitlines()) == 4


def test_a_file_that_is_not_there_or_not_text_says_so(tmp_path):
    with pytest.raises(errors.ConfigError, match="cannot be read"):
        BUILTIN.with_file(tmp_path / "missing.toml")
    path = tmp_path / "binary.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(errors.ConfigError, match="UTF-8"):
        BUILTIN.with_file(path)
    path.write_bytes(b"#" * (4 * 1024 * 1024 + 1))
    with pytest.raises(errors.ConfigError, match="at most 4 MiB"):
        BUILTIN.with_file(path)


def test_capabilities_are_distinct_bits():
    assert list(CAPABILITIES.values()) == [1, 2, 4, 8, 64, 128, 256, 512]


# --------------------------------------------------------------------------------------------- refreshing


def refresh_tool():
    path = Path(__file__).parent.parent.parent / "tools" / "refresh_catalog.py"
    spec = importlib.util.spec_from_file_location("refresh_catalog", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_refreshing_rewrites_prices_and_nothing_else(tmp_path):
    before = """# kept
date = "2000-01-01"
source = ""

[models."a.1"]
providers = { openai = "known" }
input_price = 9.0
output_price = 9.0
quality = 0.5

[models."b"]
providers = { openai = "unknown" }
input_price = 3.0

[aliases]
"x" = "b"
"""
    known = {"input_price": 1.0, "output_price": 2.0}
    source = price_update.PriceSource(
        "genai-prices 9.9",
        datetime.date(2026, 12, 1),
        lambda model: known if model.providers["openai"] == "known" else None,
    )
    catalog = Catalog(models={}).with_file(write(tmp_path, before))
    after, missing = refresh_tool().refresh(before, catalog, source)
    assert missing == ["b"]
    assert after == before.replace("2000-01-01", "2026-12-01").replace(
        'source = ""', 'source = "genai-prices 9.9"'
    ).replace("input_price = 9.0", "input_price = 1.0").replace("output_price = 9.0", "output_price = 2.0")

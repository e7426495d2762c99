"""The configuration's page: every key with its real default, and no other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import attrs
import pytest
from config_tables import NOTHING

from fastroute.config import (
    BreakerConfig,
    BudgetConfig,
    CacheConfig,
    Config,
    EndpointConfig,
    HealthCheckConfig,
    HedgingConfig,
    LearnedConfig,
    Policy,
    ProviderConfig,
    check,
)
from fastroute.config.catalog import ModelOverride
from fastroute.config.tables import SETTINGS

PAGE = Path(__file__).parent.parent.parent / "docs" / "configuration.md"
SECTIONS: dict[str, list[str]] = {
    "[fastroute]": list(SETTINGS),
    "[cache]": [field.name for field in attrs.fields(CacheConfig)],
    "[providers.NAME]": [field.name for field in attrs.fields(ProviderConfig)],
    "[[endpoints]]": [field.name for field in attrs.fields(EndpointConfig)],
    '[models."NAME"]': [field.name for field in attrs.fields(ModelOverride)],
    "[policy]": [
        f.name
        for f in attrs.fields(Policy)
        if f.name not in ("breaker", "classes", "health_check", "hedging")
    ],
    "[policy.breaker]": [field.name for field in attrs.fields(BreakerConfig)],
    "[policy.health_check]": [field.name for field in attrs.fields(HealthCheckConfig)],
    "[policy.hedging]": [field.name for field in attrs.fields(HedgingConfig)],
    "[[budgets]]": [field.name for field in attrs.fields(BudgetConfig)],
    "[learned]": [field.name for field in attrs.fields(LearnedConfig)],
}


def section(heading: str) -> str:
    text = PAGE.read_text(encoding="utf-8")
    _, found, rest = text.partition(f"## `{heading}`\n")
    assert found, heading
    return rest.partition("\n## ")[0]


@pytest.mark.parametrize("heading", SECTIONS)
def test_the_page_has_every_key_and_no_other(heading):
    rows = re.findall(r"^\| `(\w+)` \|", section(heading), re.MULTILINE)
    assert rows == SECTIONS[heading]


def defaults() -> list[tuple[str, str, Any]]:
    found = []
    classes = {
        "[fastroute]": Config,
        "[cache]": CacheConfig,
        "[providers.NAME]": ProviderConfig,
        "[policy]": Policy,
        "[policy.breaker]": BreakerConfig,
        "[policy.health_check]": HealthCheckConfig,
        "[policy.hedging]": HedgingConfig,
        "[[budgets]]": BudgetConfig,
        "[learned]": LearnedConfig,
    }
    for heading, kind in classes.items():
        for field in attrs.fields(kind):
            if field.name in SECTIONS[heading] and isinstance(field.default, (bool, int, float, str)):
                found.append((heading, field.name, field.default))
    return found


@pytest.mark.parametrize(("heading", "key", "default"), defaults())
def test_the_page_states_the_real_default(heading, key, default):
    row = re.search(rf"^\| `{key}` \|[^|]*\|([^|]*)\|", section(heading), re.MULTILINE)
    assert row is not None
    written = row.group(1).strip().strip("`")
    if isinstance(default, bool):
        assert written == str(default).lower()
    elif isinstance(default, str):
        assert written == f'"{default}"'
    else:
        assert float(written.replace(",", "").replace("_", "")) == default


def test_the_example_on_the_page_is_a_configuration(tmp_path):
    text = PAGE.read_text(encoding="utf-8")
    example = re.search(r"```toml\n(.*?)```", text, re.DOTALL)
    assert example is not None
    path = tmp_path / "fastroute.toml"
    path.write_text(example.group(1), encoding="utf-8")
    assert check(path, environ=NOTHING).problems == ()

"""Rewrites the prices of fastroute/data/catalog.toml from the genai-prices package.

Owns nothing at run time: it is for maintainers, who review the diff it leaves. Run it as
``python tools/refresh_catalog.py`` where genai-prices is installed. Only the price and window lines of the
models listed, the date and the source change; qualities, latencies, tiers, aliases and comments stay.

A price that varies over the day is taken at its dearest hour, so that an estimate is never under the bill for
that reason; of prices that grow with the length of the input, the base is taken.
"""

from __future__ import annotations

import re
import sys
from datetime import datetime, timedelta, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

CATALOG = Path(__file__).resolve().parent.parent / "fastroute" / "data" / "catalog.toml"
# The catalogue names providers as a configuration does; the package calls this one by its company.
SOURCE_NAMES = {"gemini": "google"}
PRICES = {
    "input_price": "input_mtok",
    "cached_input_price": "cache_read_mtok",
    "output_price": "output_mtok",
}


def figures(provider: str, upstream: str, day: datetime) -> dict[str, str]:
    """The TOML lines known for one model, by key; empty if the package does not know the model."""
    from genai_prices.data import providers

    wanted = SOURCE_NAMES.get(provider, provider)
    source = next(entry for entry in providers if entry.id == wanted)
    model = next((entry for entry in source.models if entry.id == upstream), None) or source.find_model(
        upstream
    )
    if model is None:
        return {}
    hours = [model.get_prices(day + timedelta(hours=hour)) for hour in range(24)]
    found: dict[str, str] = {}
    for key, attribute in PRICES.items():
        known = [price for price in (base(getattr(hour, attribute)) for hour in hours) if price is not None]
        if known:
            found[key] = plain(max(known))
    if model.context_window:
        found["context_window"] = str(model.context_window)
    return found


def base(price: Any) -> Any:
    """The price of a short request, where the package has one that grows with the input."""
    return getattr(price, "base", price)


def plain(price: Any) -> str:
    """As a TOML float, without an exponent."""
    digits = f"{price:f}"
    return digits if "." in digits else digits + ".0"


def refresh(text: str, today: datetime) -> tuple[str, list[str]]:
    """The catalogue's new text, and the models for which nothing was found."""
    text = re.sub(r'(?m)^date = ".*"$', f'date = "{today:%Y-%m-%d}"', text, count=1)
    text = re.sub(r'(?m)^source = ".*"$', f'source = "genai-prices {version("genai-prices")}"', text, count=1)
    missing: list[str] = []

    def rewrite(section: re.Match[str]) -> str:
        body = section.group(0)
        first = re.search(r'providers = \{ (\w+) = "([^"]+)"', body)
        if first is None:
            return body
        known = figures(first.group(1), first.group(2), today)
        if "input_price" not in known:
            missing.append(section.group(1))
            return body
        lines = [line for line in body.splitlines() if line.split(" = ")[0] not in known]
        at = next(number for number, line in enumerate(lines) if line.startswith("providers")) + 1
        lines[at:at] = [f"{key} = {value}" for key, value in known.items()]
        return "\n".join(lines) + "\n"

    return re.sub(r'(?m)^\[models\."([^"]+)"\]\n(?:[^\[\n].*\n)+', rewrite, text), missing


def main() -> int:
    midnight = datetime.now(timezone.utc).replace(hour=0, minute=0, second=0, microsecond=0)
    text, missing = refresh(CATALOG.read_text(encoding="utf-8"), midnight)
    CATALOG.write_text(text, encoding="utf-8")
    for name in missing:
        print(f"no price found for {name}: its figures are as they were", file=sys.stderr)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())

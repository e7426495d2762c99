"""Rewrites the prices of fastroute/config/data/catalog.toml from the genai-prices package.

For maintainers, who review the changes. Run ``python tools/refresh_catalog.py`` with genai-prices installed.
It changes the prices and windows of the listed models, the date and the source; qualities, latencies, tiers,
aliases and comments stay. `fastroute.config.price_update` does the work, as for a user's own catalogue.
"""

from __future__ import annotations

import sys
from pathlib import Path

from fastroute.config import price_update
from fastroute.config.catalog import Catalog

CATALOG = Path(__file__).resolve().parent.parent / "fastroute" / "config" / "data" / "catalog.toml"


def refresh(text: str, catalog: Catalog, source: price_update.PriceSource) -> tuple[str, list[str]]:
    """The catalogue's new text, and the models that genai-prices does not have."""
    found: dict[str, dict[str, str]] = {}
    missing: list[str] = []
    for name, model in catalog.models.items():
        figures = source.look_up(model) if model.providers else {}
        if figures:
            found[name] = {key: price_update.plain(value) for key, value in figures.items()}
        elif figures is None:
            missing.append(name)
    return price_update.rewrite(text, found, source), missing


def main() -> int:
    text, missing = refresh(
        CATALOG.read_text(encoding="utf-8"), Catalog.builtin(), price_update.from_package()
    )
    CATALOG.write_text(text, encoding="utf-8")
    for name in missing:
        print(f"no price found for {name}: its figures are as they were", file=sys.stderr)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())

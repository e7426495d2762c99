"""``fastroute init``: writes a commented configuration file for the keys that are in the environment."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import click

from fastroute.figures import dollars

from .group import refuse, visible
from .output import dim

if TYPE_CHECKING:
    from fastroute.config.catalog import Model


@click.command("init")
@click.argument("file", default="fastroute.toml", type=click.Path(dir_okay=False))
@click.option("--force", is_flag=True, help="Replace the file if it exists.")
def command(file: str, force: bool) -> None:
    """Write a configuration file for the keys in the environment.

    FILE is fastroute.toml in this folder by default. The file names the providers whose keys are set and
    the models that the catalogue has there, with their prices, and shows the most useful other settings as
    comments. It never contains a key.

    \b
    Examples:
      fastroute init
      OPENAI_API_KEY=… fastroute init service.toml
    """
    from fastroute.config.known_providers import known_providers
    from fastroute.platform import files

    known = known_providers()
    found = [name for name in known if os.environ.get(known[name].key_variable(os.environ))]
    text = configuration(found or ["openai"], os.environ).encode()
    try:
        if force:
            with files.replacing(file, f"{file}.new") as descriptor:
                files.write(descriptor, text)
        else:
            files.create(file, text)
    except FileExistsError:
        refuse(f"{file} exists already; add --force to replace it, or name another file")
    except OSError as error:
        refuse(f"{file} cannot be written: {error.strerror}")
    click.echo(visible(file))
    if found:
        dim(f"written for the keys of {', '.join(found)}; next: fastroute check {file}")
    else:
        dim(
            f"no key is set, so it names openai: set OPENAI_API_KEY, or edit it; next: fastroute check {file}"
        )


def configuration(names: Sequence[str], environ: Mapping[str, str]) -> str:
    """The text of a file for these known providers."""
    from fastroute.config.catalog import Catalog

    catalog = Catalog.builtin()
    served = [model for name in names for model in catalog.served_by(name)]
    tiers = catalog.default_tiers(served) or {"standard": ("NAME",)}
    return "\n".join(
        [
            "# The configuration of fastroute. Keys are in environment variables or files, never here.",
            "# fastroute check lists problems, and shows where each key goes. Every setting is explained in",
            "# docs/configuration.md.",
            "",
            "[fastroute]",
            '# default_model = "auto"           # of calls without one: auto, a tier, a model or an alias',
            '# ledger = "fastroute.db"          # default: a file in your state folder; "" for none',
            "",
            *(line for name in names for line in _provider(name, environ, bool(served))),
            "# Any other server that speaks OpenAI's format:",
            "# [providers.local]",
            '# base_url = "http://localhost:8000/v1"',
            '# models = ["qwen3-8b"]',
            "",
            "# Which models serve which tier, cheapest first; default: the tiers of the catalogue.",
            "# [tiers]",
            *(f"# {tier} = {list(models[:3])}".replace("'", '"') for tier, models in tiers.items()),
            "",
            "[policy]",
            '# strategy = "latency"             # or weighted, least-busy, lowest-cost, ordered, …',
            "# max_attempts = 3                 # requests for one call at most",
            "",
            "# What may be spent:",
            "# [[budgets]]",
            '# name = "day"',
            "# limit = 5                        # USD",
            '# window = "day"',
            "",
        ]
    )


def _provider(name: str, environ: Mapping[str, str], others: bool) -> Iterator[str]:
    """The lines of one provider; ``others``: whether the catalogue has models of any provider in the file."""
    from fastroute.config.catalog import Catalog
    from fastroute.config.known_providers import known_providers
    from fastroute.config.urls import url_problem

    known, catalog = known_providers()[name], Catalog.builtin()
    models = catalog.served_by(name)
    url, variable = known.address(environ)
    address = variable or known.base_url or "base_url"
    key = f"# the key: {known.key_variable(environ)}; the address: {address}"
    if not models:
        # Only its user knows which models, so it is a comment where there are others that can serve.
        mark = "# " if others else ""
        yield f"{mark}[providers.{name}]"
        yield key
        if not url:
            yield f'{mark}base_url = "https://NAME.openai.azure.com"'
        yield f'{mark}models = ["NAME"]                # see fastroute models --provider {name}'
        yield ""
        return
    yield f"[providers.{name}]"
    yield key
    if url_problem(url, allow_http=False, allow_private_hosts=False) is not None:
        for permission in _permissions(url):
            yield f"{permission} = true"
    yield "models = ["
    for model in models:
        written = f'"{model}",'
        yield f"    {written:<32} # {_about(catalog.models[model])}"
    yield "]"
    yield "# rpm = 500                        # requests a minute, for each model"
    yield "# tpm = 200_000                    # tokens a minute"
    yield ""


def _permissions(url: str) -> Iterator[str]:
    """What an address that the environment names needs to be allowed."""
    from fastroute.config.urls import url_problem

    for http, private in ((True, False), (False, True), (True, True)):
        if url_problem(url, allow_http=http, allow_private_hosts=private) is None:
            yield from ("allow_http",) * http
            yield from ("allow_private_hosts",) * private
            return


def _about(model: Model) -> str:
    tier = model.tier or "standard"
    if model.input_price is None or model.output_price is None:
        return tier
    prices = [dollars(price) for price in (model.input_price, model.output_price)]
    return f"{tier}; {prices[0]} in, {prices[1]} out per million tokens"

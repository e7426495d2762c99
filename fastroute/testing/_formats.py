"""The wire formats that a local provider speaks, by name: a new one is a class like `_openai`'s and a line."""

from __future__ import annotations

from ._openai import Format, OpenAI

FORMATS: dict[str, type[Format]] = {"openai": OpenAI}

"""The wire formats that a local provider speaks, by name: a new one is a class and a line here."""

from __future__ import annotations

from ._anthropic import Anthropic
from ._azure import Azure
from ._gemini import Gemini
from ._openai import Format, OpenAI

FORMATS: dict[str, type[Format]] = {
    "openai": OpenAI,
    "anthropic": Anthropic,
    "gemini": Gemini,
    "azure": Azure,
}

"""The wire formats that a local provider speaks, by name: a new one is a class and a line here."""

from __future__ import annotations

from ._anthropic import AnthropicServerFormat
from ._azure import AzureServerFormat
from ._gemini import GeminiServerFormat
from ._openai import OpenAIServerFormat, ServerFormat

FORMATS: dict[str, type[ServerFormat]] = {
    "openai": OpenAIServerFormat,
    "anthropic": AnthropicServerFormat,
    "gemini": GeminiServerFormat,
    "azure": AzureServerFormat,
}

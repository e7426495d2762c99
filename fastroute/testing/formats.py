"""The wire formats of local providers by name; a new format is a class and a line here."""

from __future__ import annotations

from .anthropic_format import AnthropicServerFormat
from .azure_format import AzureServerFormat
from .gemini_format import GeminiServerFormat
from .openai_format import OpenAIServerFormat, ServerFormat

FORMATS: dict[str, type[ServerFormat]] = {
    "openai": OpenAIServerFormat,
    "anthropic": AnthropicServerFormat,
    "gemini": GeminiServerFormat,
    "azure": AzureServerFormat,
}

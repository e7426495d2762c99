"""Makes text of providers and files safe to print."""

from __future__ import annotations


def visible(text: str) -> str:
    """Text with its control characters escaped, so that it cannot control the terminal."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in "\n\t" else f"\\x{ord(char):02x}" for char in text)


__all__ = ["visible"]

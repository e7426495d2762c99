"""Reads a file of prompts: JSON lines, each an object with ``messages``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import frozen

from fastroute import json_codec

from .group import refuse

_LONGEST_SHOWN = 60


@frozen
class Prompt:
    """One line of the file.

    Attributes:
        line: the line's number, from 1.
        messages: OpenAI's message mappings.
        params: the line's other keys; a classifier may use ``max_tokens``, ``tools`` and ``functions``.
    """

    line: int
    messages: list[Mapping[str, Any]]
    params: Mapping[str, Any]

    @property
    def text(self) -> str:
        """The beginning of the first user message, on one line."""
        said = next((message for message in self.messages if message.get("role") == "user"), {})
        content = said.get("content")
        words = " ".join((content if isinstance(content, str) else "")[:1000].split())
        return words if len(words) <= _LONGEST_SHOWN else words[: _LONGEST_SHOWN - 1] + "…"


def read_prompts(data: bytes, name: str) -> list[Prompt]:
    """The prompts of a file; empty lines are skipped.

    Args:
        data: the file's content.
        name: the file's name in messages.

    Raises:
        ClickException: if a line is not such an object, or there is no prompt.
    """
    found = []
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            value = json_codec.loads(line)
        except json_codec.JSONDecodeError as error:
            refuse(f"{name}, line {number}: is not JSON ({error}); must be an object with messages")
        messages = value.get("messages") if isinstance(value, dict) else None
        if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
            refuse(f"{name}, line {number}: has no list of messages; must be an object with messages")
        params = {key: item for key, item in value.items() if key != "messages"}
        found.append(Prompt(number, messages, params))
    if not found:
        refuse(f"{name}: has no prompts; must have an object with messages on each line")
    return found


__all__ = ["Prompt", "read_prompts"]

"""The user's judge: a command that reads a question with two answers and prints how good each is."""

from __future__ import annotations

import math
import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from .labels import LabelError

_SECONDS = 300.0


class Judge:
    """Runs a command once for each question.

    It reads ``{"messages": […], "answers": {"a": "…", "b": "…"}}`` from standard input and prints two numbers
    of 0..1, for a and for b. It learns neither the models' names nor which of them is a.

    Args:
        command: the program and its arguments, as in a shell, but without a shell.

    Raises:
        LabelError: the command is empty or cannot be read.

    Thread safety: any number of threads may ask at once; each starts a process of its own.
    """

    def __init__(self, command: str) -> None:
        try:
            self._command = shlex.split(command)
        except ValueError as error:
            raise LabelError(f"judge: cannot be read ({error}); quote its arguments as in a shell") from None
        if not self._command:
            raise LabelError("judge: is empty; name a program that prints two numbers")

    def scores(self, messages: Sequence[Mapping[str, Any]], a: str, b: str) -> tuple[float, float]:
        """How good the two answers are.

        Raises:
            LabelError: the command cannot be run, fails, takes more than five minutes, or prints something
                else.
        """
        question = orjson.dumps({"messages": list(messages), "answers": {"a": a, "b": b}})
        try:
            done = subprocess.run(
                self._command, input=question, stdout=subprocess.PIPE, timeout=_SECONDS, check=False
            )
        except OSError as error:
            raise LabelError(
                f"judge: {self._command[0]} cannot be run ({error.strerror}); name a program that can"
            ) from None
        except subprocess.TimeoutExpired:
            raise LabelError(
                f"judge: took more than {_SECONDS:.0f} seconds; must print two numbers sooner"
            ) from None
        if done.returncode:
            raise LabelError(
                f"judge: ended with status {done.returncode}; must print two numbers and end with 0"
            )
        said = done.stdout.decode("utf-8", "replace").strip()
        try:
            numbers = [float(word) for word in re.split(r"[\s,]+", said)]
        except ValueError:
            numbers = []
        if len(numbers) != 2 or not all(math.isfinite(number) and 0 <= number <= 1 for number in numbers):
            raise LabelError(
                "judge: printed something else than two numbers of 0..1; must print the score of a and "
                "then that of b"
            )
        return numbers[0], numbers[1]


__all__ = ["Judge"]

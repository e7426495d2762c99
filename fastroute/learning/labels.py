"""Labels: how well models answered the same prompts, read from JSON lines or CSV in bounded memory.

Scores are 0 (useless) to 1 (perfect): outcomes of a validation, marks by people, or what a judge printed. Of
more than `MOST_PROMPTS` different prompts a sample is kept: those whose digests are smallest, so the sample
is uniform, does not depend on the order, and an outcome of a kept prompt is never missed.
"""

from __future__ import annotations

import csv
import heapq
import io
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any, BinaryIO

import orjson
from attrs import field, frozen

from fastroute import _core
from fastroute.errors import Error

MOST_PROMPTS = 20_000
"""Prompts that are kept; more make the forecast's interval narrower than what else is uncertain."""
_LONGEST_LINE = 32 * 1024 * 1024
_MOST_PROBLEMS = 20
_SHOWN = 40
_NOTHING: Mapping[str, Any] = {}


class LabelError(Error):
    """Labels or prompts cannot be read or do not suffice.

    Attributes:
        problems: one line each, with the line of the file; the first twenty.
    """

    def __init__(self, problems: str | Sequence[str], more: int = 0) -> None:
        self.problems: tuple[str, ...] = (problems,) if isinstance(problems, str) else tuple(problems)
        rest = [f"and {more} more lines"] if more else []
        super().__init__("\n".join([*self.problems, *rest]))


@frozen
class Label:
    """How well models answered one prompt.

    Attributes:
        messages: OpenAI's message mappings.
        scores: 0..1 by model; empty for a prompt of which nothing is known.
        tokens: input and output tokens by model, for the cost.
        id: any text, such as a ``call_id``.

    Raises:
        ValueError: a value is out of range; the message names it.
    """

    messages: Sequence[Mapping[str, Any]] = field(repr=lambda messages: f"<{len(messages)} messages>")
    scores: Mapping[str, float] = field(factory=dict)
    tokens: Mapping[str, Sequence[int]] = field(factory=dict)
    id: str = ""

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.messages, (list, tuple)) or not all(
            isinstance(message, Mapping) for message in self.messages
        ):
            raise ValueError("messages: must be a list of objects with role and content")
        if not isinstance(self.scores, Mapping):
            raise ValueError("scores: must be an object with a number of 0..1 for each model")
        for model, score in self.scores.items():
            if not _is_number(score) or not 0 <= score <= 1:
                raise ValueError(f"scores.{_cut(model)}: must be a number of 0..1, not {_cut(repr(score))}")
        if not isinstance(self.tokens, Mapping):
            raise ValueError("tokens: must be an object with [input, output] for each model")
        for model, pair in self.tokens.items():
            if (
                not isinstance(pair, (list, tuple))
                or len(pair) != 2
                or not all(isinstance(count, int) and 0 <= count < 10**9 for count in pair)
            ):
                raise ValueError(f"tokens.{_cut(model)}: must be two integers, [input, output]")
        if not isinstance(self.id, str):
            raise ValueError("id: must be a string")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


# ---------------------------------------------------------------------------------------- different prompts


class LabelledPrompt:
    """What is known of one prompt; outcomes of equal prompts are averaged.

    Attributes:
        text: the bytes that are scored, see `fastroute._core.learned_bytes`.
        turns: messages of role user.
        times: how often it occurred.
    """

    __slots__ = ("_scores", "_tokens", "text", "times", "turns")

    def __init__(self, text: bytes, turns: int) -> None:
        self.text = text
        self.turns = turns
        self.times = 0
        self._scores: dict[str, tuple[float, int]] = {}
        self._tokens: dict[str, tuple[int, int, int]] = {}

    def add(self, label: Label) -> None:
        """Adds an outcome."""
        self.times += 1
        for model, score in label.scores.items():
            total, count = self._scores.get(model, (0.0, 0))
            self._scores[model] = total + score, count + 1
        for model, (prompt, answer) in label.tokens.items():
            before = self._tokens.get(model, (0, 0, 0))
            self._tokens[model] = before[0] + prompt, before[1] + answer, before[2] + 1

    @property
    def models(self) -> Iterable[str]:
        """The models that have a score."""
        return self._scores

    def score(self, model: str) -> float:
        """The mean of the model's scores."""
        total, count = self._scores[model]
        return total / count

    def tokens(self, model: str) -> tuple[int, int] | None:
        """The mean input and output tokens; None if they are unknown."""
        found = self._tokens.get(model)
        return None if found is None else (round(found[0] / found[2]), round(found[1] / found[2]))


class LabelSet:
    """The different prompts of labels, at most ``most`` of them.

    Attributes:
        read: labels that were added.
        without_text: of them those without a user message's text, which are left out: a router sends such
            calls to the strong model without a score.
        sampled: whether there were more different prompts than are kept.

    Thread safety: none.
    """

    def __init__(self, labels: Iterable[Label] = (), *, most: int = MOST_PROMPTS) -> None:
        self.read = 0
        self.without_text = 0
        self.sampled = False
        self._most = most
        self._prompts: dict[int, LabelledPrompt] = {}
        self._largest: list[int] = []
        for label in labels:
            self.add(label)

    def add(self, label: Label) -> None:
        """Adds a label."""
        self.read += 1
        text = _core.learned_bytes(label.messages)
        if not text.strip():
            self.without_text += 1
            return
        digest = int.from_bytes(blake2b(text, digest_size=8).digest(), "big")
        prompt = self._prompts.get(digest)
        if prompt is None:
            if len(self._prompts) >= self._most:
                self.sampled = True
                if digest > -self._largest[0]:
                    return
                del self._prompts[-heapq.heappop(self._largest)]
            turns = sum(message.get("role") == "user" for message in label.messages)
            prompt = self._prompts[digest] = LabelledPrompt(text, turns)
            heapq.heappush(self._largest, -digest)
        prompt.add(label)

    def __len__(self) -> int:
        return len(self._prompts)

    @property
    def prompts(self) -> list[LabelledPrompt]:
        """The prompts by digest, so in an order that does not depend on that of the labels."""
        return [prompt for _, prompt in sorted(self._prompts.items())]

    @property
    def models(self) -> dict[str, int]:
        """The models, each with the number of prompts for which it has a score, the most first."""
        counts: dict[str, int] = {}
        for prompt in self._prompts.values():
            for model in prompt.models:
                counts[model] = counts.get(model, 0) + 1
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


# ------------------------------------------------------------------------------------------ reading files


def read_labels(path: str | os.PathLike[str], *, columns: Mapping[str, str] | None = None) -> Iterator[Label]:
    """The labels of a file, one after the other: CSV if its name ends in ``.csv`` or ``columns`` are given.

    A line of JSON is ``{"messages": […] or "prompt": "…", "scores": {model: 0..1}, "tokens"?, "id"?}``. Of a
    CSV file ``columns`` maps ``prompt`` and each model to their columns; by default the column ``prompt`` is
    the prompt and each other column with a number in every line a model, but ``id``. The file may be UTF-8,
    or UTF-16 with a byte order mark.

    Yields:
        The good labels. Bad lines are collected, and reported when the file has been read.

    Raises:
        LabelError: at the end, with the number of every bad line; or the file cannot be read.
    """
    name = os.fspath(path)
    problems: list[str] = []
    bad = 0
    try:
        with open(path, "rb") as file:
            is_csv = columns is not None or name.lower().endswith(".csv")
            for number, found in _csv_labels(file, columns) if is_csv else _json_labels(file):
                if isinstance(found, Label):
                    yield found
                    continue
                bad += 1
                if len(problems) < _MOST_PROBLEMS:
                    problems.append(f"{name}, line {number}: {found}")
    except OSError as error:
        raise LabelError(f"{name}: cannot be read ({error.strerror}); use a readable file") from None
    if bad:
        raise LabelError(problems, bad - len(problems))


def _json_labels(file: BinaryIO) -> Iterator[tuple[int, Label | str]]:
    for number, line in _lines(file):
        if isinstance(line, UnicodeError):
            yield number, "is not UTF-8; save the file as UTF-8"
        elif line is None:
            yield number, f"is longer than {_LONGEST_LINE >> 20} MiB; shorten its messages"
        elif line.strip():
            yield number, _caught(_json_label, line)


def _json_label(line: str) -> Label:
    try:
        raw = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise ValueError(
            f"is not JSON ({error.msg}); must be an object with messages or prompt, and scores"
        ) from None
    if not isinstance(raw, dict):
        raise ValueError("is not an object; must be one with messages or prompt, and scores")
    messages, prompt = raw.get("messages"), raw.get("prompt")
    if messages is None:
        if not isinstance(prompt, str):
            raise ValueError("has neither messages nor prompt; must have one of them")
        messages = [{"role": "user", "content": prompt}]
    return Label(
        messages, raw.get("scores") or _NOTHING, raw.get("tokens") or _NOTHING, str(raw.get("id") or "")
    )


def _caught(make: Callable[..., Label], *arguments: Any) -> Label | str:
    try:
        return make(*arguments)
    except (TypeError, ValueError) as error:
        return str(error)


def _lines(file: BinaryIO) -> Iterator[tuple[int, str | UnicodeError | None]]:
    """Numbers and texts of lines; an error for one that cannot be decoded, None for one that is too long."""
    mark = file.peek(2)[:2] if isinstance(file, io.BufferedReader) else b""
    if mark in (b"\xff\xfe", b"\xfe\xff"):
        yield from _wide_lines(file)
        return
    number = 0
    while raw := file.readline(_LONGEST_LINE + 1):
        number += 1
        if len(raw) > _LONGEST_LINE:
            while raw and not raw.endswith(b"\n"):
                raw = file.readline(_LONGEST_LINE)
            yield number, None
            continue
        if number == 1:
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        try:
            yield number, raw.decode("utf-8")
        except UnicodeError as error:
            yield number, error


def _wide_lines(file: BinaryIO) -> Iterator[tuple[int, str | None]]:
    """The same of a file in UTF-16."""
    text = io.TextIOWrapper(file, encoding="utf-16", errors="replace", newline="\n")
    number = 0
    try:
        while line := text.readline(_LONGEST_LINE + 1):
            number += 1
            yield number, line if len(line) <= _LONGEST_LINE else None
            while len(line) > _LONGEST_LINE and not line.endswith("\n"):
                line = text.readline(_LONGEST_LINE)
    finally:
        text.detach()  # whoever opened the file closes it


def _csv_labels(file: BinaryIO, columns: Mapping[str, str] | None) -> Iterator[tuple[int, Label | str]]:
    undecoded: list[int] = []

    def texts() -> Iterator[str]:
        for number, line in _lines(file):
            if not isinstance(line, str):
                undecoded.append(number)
            yield line if isinstance(line, str) else "\n"

    rows = csv.reader(texts())
    head = next(rows, [])
    if columns is None:
        columns = {"prompt": "prompt"} | {name: name for name in head if name not in ("prompt", "")}
    missing = [column for column in columns.values() if column not in head]
    if missing or "prompt" not in columns or len(columns) < 2:
        shown = ", ".join(map(_cut, head)) or "none"
        yield (
            1,
            f"has no column {_cut(missing[0] if missing else 'of a prompt and of models')}; the columns are "
            f"{shown}: name them with --columns prompt=COLUMN,MODEL=COLUMN,…",
        )
        return
    place = {name: head.index(column) for name, column in columns.items()}
    while True:
        begun = rows.line_num + 1
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield begun, f"is not CSV ({error}); use JSON lines for long or unusual prompts"
            continue
        if undecoded:
            yield undecoded[0], "is not UTF-8 or too long; save the file as UTF-8"
            undecoded.clear()
        elif row:
            yield begun, _caught(_csv_label, row, place)


def _csv_label(row: Sequence[str], place: Mapping[str, int]) -> Label:
    if len(row) <= max(place.values()):
        raise ValueError(f"has {len(row)} columns; must have {max(place.values()) + 1}")
    scores = {}
    for model, column in place.items():
        text = row[column].strip()
        if model in ("prompt", "id") or not text:
            continue
        try:
            scores[model] = float(text)
        except ValueError:
            raise ValueError(
                f"scores.{_cut(model)}: must be a number of 0..1, not {_cut(repr(text))}"
            ) from None
    said = row[place["id"]] if "id" in place else ""
    return Label([{"role": "user", "content": row[place["prompt"]]}], scores, id=said)


__all__ = ["MOST_PROMPTS", "Label", "LabelError", "LabelSet", "LabelledPrompt", "read_labels"]

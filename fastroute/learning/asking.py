"""Makes labels: asks two models the same prompts, and the user's judge how good the answers are.

Every answer is appended to FILE.answers when it arrives, and every label to FILE when the judge has
spoken. A run that was stopped or killed is continued by the same command: it asks for what is missing in
both files and counts what they cost. Of a killed run only answers that were on their way are asked for
again.

Prompts are taken in the order of their digests, so the labels of a run that ended early are a sample of
all.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any

import orjson
from attrs import frozen

from fastroute.client import Client
from fastroute.config import catalog_of
from fastroute.errors import BudgetExceeded, Error
from fastroute.figures import dollars
from fastroute.platform import files
from fastroute.types import Attempt, Completion, TokenPrices, usd_to_nano

from .judge import Judge
from .labels import Label, LabelError

_IN_A_ROW = 3  # failures, after which asking on would only cost money
TAG = {"job": "calibrate"}


@frozen(kw_only=True)
class AskReport:
    """What a run did.

    Attributes:
        labelled: labels that it wrote.
        before: labels that were there already.
        left: prompts without a label.
        spent_nano: nano-dollars of all answers, also those of earlier runs.
        stopped: why it ended with prompts left; empty if it did not.
    """

    labelled: int
    before: int
    left: int
    spent_nano: int
    stopped: str


@frozen(kw_only=True)
class _StoredAnswer:
    content: str
    tokens: tuple[int, int]
    cost_nano: int


def ask(
    prompts: Iterable[Label],
    client: Client,
    *,
    weak: str,
    strong: str,
    judge: str,
    spend: float,
    to: str | os.PathLike[str],
    max_tokens: int = 4096,
    at_once: int = 4,
    say: Callable[[str], None] = lambda text: None,
) -> AskReport:
    """Asks both models each prompt, and the judge about the answers; appends labels to a file.

    Args:
        prompts: their scores, if any, are ignored.
        weak, strong: models that the client serves.
        judge: the command, see `Judge`.
        spend: USD that all answers may cost together, those of earlier runs with the same file included. A
            call is not sent if its worst case does not fit. The judge's own costs are not known here.
        to: the file of labels; ``.answers`` is added for that of the answers.
        max_tokens: the longest answer; it bounds what a call can cost.
        at_once: prompts that are asked at the same time.
        say: gets lines about the price and the progress.

    Raises:
        LabelError: there are no prompts, a price is unknown, or another run uses the file.
        Error: the models are not served.
        OSError: a file cannot be written.
    """
    wanted = {_digest(each.messages): each for each in prompts}
    if not wanted:
        raise LabelError("prompts: are empty; must have an object with messages on each line")
    path = os.fspath(to)
    run = Judge(judge)
    with _appending(path) as labels, _appending(f"{path}.answers") as answers:
        done = {_digest(raw["messages"]) for raw in labels.rows if isinstance(raw.get("messages"), list)}
        stored, spent = _stored(answers.rows)
        todo = {key: label for key, label in sorted(wanted.items()) if key not in done}
        before = len(wanted) - len(todo)
        prices = _prices(client, weak, strong)
        _say_price(client, todo, stored, weak, strong, spent, spend, say)
        allowed = max(0, usd_to_nano(spend) - spent)
        paying = client.with_options(budget=allowed / 1e9, cache=False, tags=TAG)
        asking = _Asking(
            client=paying,
            judge=run,
            prices=prices,
            max_tokens=max_tokens,
            labels=labels,
            answers=answers,
            stored=stored,
        )
        with ThreadPoolExecutor(at_once) as pool:
            try:
                for _ in pool.map(asking.label, todo, todo.values()):
                    pass
            except BaseException:
                asking.stop("it was interrupted")
                raise
        return AskReport(
            labelled=asking.labelled,
            before=before,
            left=len(todo) - asking.labelled,
            spent_nano=spent + asking.spent,
            stopped=asking.why if len(todo) > asking.labelled else "",
        )


class _Asking:
    """One run; `label` may be called by any thread."""

    def __init__(
        self,
        *,
        client: Client,
        judge: Judge,
        prices: Mapping[str, TokenPrices],
        max_tokens: int,
        labels: _AppendedFile,
        answers: _AppendedFile,
        stored: Mapping[tuple[str, str], _StoredAnswer],
    ) -> None:
        self._client = client
        self._judge = judge
        self._models = tuple(prices)
        self._prices = prices
        self._max_tokens = max_tokens
        self._labels = labels
        self._answers = answers
        self._stored = stored
        self._lock = threading.Lock()
        self._failed = 0
        self.labelled = 0
        self.spent = 0
        self.why = ""
        self._stopped = False

    def stop(self, why: str) -> None:
        """Begins no further prompt."""
        with self._lock:
            self.why = self.why if self._stopped else why
            self._stopped = True

    def label(self, key: str, label: Label) -> None:
        """Asks for a prompt's answers and scores, unless the run has been stopped."""
        if self._stopped:
            return
        try:
            found = {model: self._answer(key, label, model) for model in self._models}
            order = self._models if int(key, 16) & 1 else self._models[::-1]
            scores = self._judge.scores(label.messages, *(found[model].content for model in order))
        except BudgetExceeded:
            self.stop("the next answer might cost more than is left of --spend")
            return
        except Error as error:
            self._failure(str(error))
            return
        self._labels.append(
            {
                "messages": list(label.messages),
                "scores": dict(zip(order, scores)),
                "tokens": {model: answer.tokens for model, answer in found.items()},
                **({"id": label.id} if label.id else {}),
            }
        )
        with self._lock:
            self._failed = 0
            self.labelled += 1

    def _failure(self, why: str) -> None:
        with self._lock:
            self._failed += 1
            self.why = self.why if self._stopped else why
            self._stopped = self._stopped or self._failed >= _IN_A_ROW

    def _answer(self, key: str, label: Label, model: str) -> _StoredAnswer:
        stored = self._stored.get((key, model))
        if stored is not None:
            return stored
        place = {"prompt": key, "model": model}
        # Written before the call: if the process is killed meanwhile, the next run counts it as spent. A text
        # has no more tokens than bytes.
        size = len(orjson.dumps(list(label.messages)))
        self._answers.append({**place, "most_nano": self._prices[model].worst(size, self._max_tokens)})
        try:
            reply = self._client.chat.completions.create(
                model=model, messages=list(label.messages), max_tokens=self._max_tokens
            )
        except Error as error:
            self._paid({**place, "cost_nano": _cost(error.attempts)})
            raise
        assert isinstance(reply, Completion)
        usage, route = reply.usage, reply.route
        answer = _StoredAnswer(
            content=reply.text,
            tokens=(usage.prompt_tokens, usage.completion_tokens) if usage else (0, 0),
            cost_nano=_cost(route.attempts if route else ()),
        )
        self._paid(
            {**place, "content": answer.content, "tokens": answer.tokens, "cost_nano": answer.cost_nano}
        )
        return answer

    def _paid(self, raw: Mapping[str, Any]) -> None:
        self._answers.append(raw)
        with self._lock:
            self.spent += raw["cost_nano"]


def _cost(attempts: Iterable[Attempt]) -> int:
    """What attempts cost; of one whose usage is unknown its worst case, as for budgets."""
    return sum((each.cost_nano or 0) if each.budget_nano is None else each.budget_nano for each in attempts)


def _digest(messages: Sequence[Mapping[str, Any]]) -> str:
    return blake2b(orjson.dumps(list(messages), option=orjson.OPT_SORT_KEYS), digest_size=12).hexdigest()


def _stored(rows: Iterable[Mapping[str, Any]]) -> tuple[dict[tuple[str, str], _StoredAnswer], int]:
    """The answers of earlier runs, and what was spent: of a call without an end its worst case."""
    found: dict[tuple[str, str], _StoredAnswer] = {}
    under_way: dict[tuple[str, str], int] = {}
    spent = 0
    for raw in rows:
        try:
            place = str(raw["prompt"]), str(raw["model"])
            if "most_nano" in raw:
                spent += under_way.pop(place, 0)
                under_way[place] = int(raw["most_nano"])
                continue
            cost = int(raw["cost_nano"])
            if "content" in raw:
                prompt, answered = raw["tokens"]
                found[place] = _StoredAnswer(
                    content=str(raw["content"]), tokens=(int(prompt), int(answered)), cost_nano=cost
                )
            spent += cost
            under_way.pop(place, None)
        except (KeyError, TypeError, ValueError):
            continue
    return found, spent + sum(under_way.values())


def _prices(client: Client, *models: str) -> dict[str, TokenPrices]:
    """The prices of the models.

    Raises:
        LabelError: one is unknown.
        ModelNotFoundError: there is no such model.
    """
    catalog = catalog_of(client.config)
    found = {}
    for model in models:
        prices = catalog.model(model).prices
        if prices is None:
            raise LabelError(
                f'{model}: has no price, so no budget can be kept; set one in [models."{model}"] of the '
                "configuration"
            )
        found[model] = prices
    return found


def _say_price(
    client: Client,
    todo: Mapping[str, Label],
    stored: Mapping[tuple[str, str], _StoredAnswer],
    weak: str,
    strong: str,
    spent: int,
    spend: float,
    say: Callable[[str], None],
) -> None:
    """Says what the answers will cost, about."""
    about, missing = 0.0, 0
    for key, label in todo.items():
        for model in (weak, strong):
            if (key, model) in stored:
                continue
            missing += 1
            first = client.plan(model=model, messages=list(label.messages)).candidates
            about += (first[0].price if first else None) or 0.0
    say(
        f"{missing:,} answers to {len(todo):,} prompts will cost about ${about:,.2f}, {dollars(spent)} "
        "were spent before, "
        f"at most ${spend:,.2f} may be spent; what the judge costs is not included"
    )


# ------------------------------------------------------------------------------------------- growing files


class _AppendedFile:
    """A file of JSON lines that survives a kill: a line that was cut is removed when it is opened."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock = threading.Lock()
        self.rows: list[dict[str, Any]] = []
        with open(fd, "rb", closefd=False) as file:
            content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            try:
                # Somebody's own file may lack its last line feed.
                orjson.loads(content[whole:])
                os.write(fd, b"\n")
                whole = len(content)
            except ValueError:
                os.ftruncate(fd, whole)
        for line in content[:whole].splitlines():
            try:
                raw = orjson.loads(line)
            except ValueError:
                continue
            if isinstance(raw, dict):
                self.rows.append(raw)

    def append(self, raw: Mapping[str, Any]) -> None:
        left = memoryview(orjson.dumps(raw) + b"\n")
        with self._lock:
            while left:
                left = left[os.write(self._fd, left) :]


@contextmanager
def _appending(path: str) -> Iterator[_AppendedFile]:
    """A private file that only one run appends to."""
    with files.closing(files.open_file(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, private=False)) as fd:
        if not files.lock(fd):
            raise LabelError(f"{path}: is written by another run; wait for its end, or name another file")
        yield _AppendedFile(fd)


__all__ = ["AskReport", "ask"]

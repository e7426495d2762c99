"""Adds up the deltas of one choice, and says which tool call a fragment belongs to.

Pieces are only collected while a stream runs and are joined once, when they are asked for: an answer costs
linear time whatever the number of its deltas.

A program adds deltas up by itself too, mostly as the OpenAI SDK does: strings are concatenated, and items of
lists are matched by their ``index``. What is handed out must come out right that way, so a call's id and name
are kept in its first fragment only, and items of lists without an index get one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastroute import types

from . import jsontext

# Fields of a delta that `Delta` has itself; all others are collected as they come.
TYPED = frozenset({"role", "content", "refusal", "tool_calls"})
# Fields whose text the model wrote; an answer that is cut off is charged by its length.
_WRITTEN = frozenset({"reasoning_content", "reasoning"})
# Strings that name a thing: where one comes again it is the same one, and not more of it.
_NAMES = frozenset(
    {"type", "index", "id", "name", "role", "format", "object", "signature", "mime_type", "media_type"}
)
# Lists whose items come whole: an index that is used a second time begins another item.
_WHOLE = frozenset({"images", "annotations", "citations"})
# Names of an item that are shown with its first part only.
_ONCE = ("id", "name", "format")
_OF_CALLS = frozenset({"index", "id", "type", "function", "custom"})


def merged(values: Sequence[Any], name: str = "") -> Any:
    """What the values of one field, in their order, add up to.

    Text is joined, objects are merged field by field, and items of lists are matched by their ``index``;
    those without one are items of their own. Of anything else the last value counts.
    """
    if len(values) == 1 and not isinstance(values[0], (list, tuple)):
        return values[0]
    if name not in _NAMES:
        if all(isinstance(value, str) for value in values):
            return "".join(values)
        if all(isinstance(value, dict) for value in values):
            fields: dict[str, list[Any]] = {}
            for value in values:
                for key, part in value.items():
                    parts = fields.setdefault(key, [])
                    if part is not None:
                        parts.append(part)
            return {key: merged(parts, key) if parts else None for key, parts in fields.items()}
        if all(isinstance(value, (list, tuple)) for value in values):
            return _merged_items([item for value in values for item in value])
    return values[-1]


def _merged_items(items: list[Any]) -> list[Any]:
    places: dict[Any, list[Any]] = {}
    for place, item in enumerate(items):
        index = item.get("index") if isinstance(item, dict) else None
        # A place of its own is negative, which no index is.
        places.setdefault(index if type(index) is int and index >= 0 else -1 - place, []).append(item)
    return [merged(parts) for parts in places.values()]


class CallSoFar:
    """A tool call whose arguments are still arriving."""

    __slots__ = ("arguments", "custom", "id", "more", "name", "type")

    def __init__(self) -> None:
        self.id: str | None = None
        self.type: str | None = None
        self.custom = False
        self.name: list[str] = []
        self.arguments: list[str] = []
        # Fields that only some providers have, such as ``extra_content``.
        self.more: dict[str, list[Any]] = {}

    def add(self, fragment: types.ToolCall) -> int:
        """Adds a fragment; returns the characters of its arguments or input."""
        self.id = self.id or fragment.id
        self.type = self.type or fragment.type
        custom = fragment.custom
        if custom is not None:
            self.custom = True
        name = fragment.function.name if custom is None else custom.name
        text = fragment.function.arguments if custom is None else custom.input
        if name:
            self.name.append(name)
        if text:
            self.arguments.append(text)
        raw = fragment._raw
        if not raw.keys() <= _OF_CALLS:
            for field, value in raw.items():
                if field not in _OF_CALLS and value is not None:
                    self.more.setdefault(field, []).append(value)
        return len(text)

    def whole(self) -> types.ToolCall:
        name, text = "".join(self.name) or None, "".join(self.arguments)
        raw: dict[str, Any] = {"id": self.id, "type": self.type or ("custom" if self.custom else "function")}
        function, custom = types.FunctionCall(), None
        if self.custom:
            custom = types.CustomCall(name, text)
            raw["custom"] = {"name": name, "input": text}
        else:
            function = types.FunctionCall(name, text)
            raw["function"] = {"name": name, "arguments": text}
        for field, values in self.more.items():
            raw[field] = merged(values)
        return types.ToolCall(id=self.id, type=raw["type"], function=function, custom=custom, raw=raw)


class ChoiceSoFar:
    """What has arrived of one choice."""

    __slots__ = ("calls", "content", "ending", "extra", "finish_reason", "lists", "refusal", "role")

    def __init__(self) -> None:
        self.role: str | None = None
        self.content: list[str] = []
        self.refusal: list[str] = []
        # Values of fields that OpenAI does not have, or that `Delta` does not name, by field.
        self.extra: dict[str, list[Any]] = {}
        # The items of each list, by path: see `_item`.
        self.lists: dict[str, dict[Any, tuple[int, dict[str, Any]]]] = {}
        self.calls: dict[int, CallSoFar] = {}
        self.finish_reason: str | None = None
        self.ending: Mapping[str, Any] = {}  # the JSON of the choice in the chunk with the finish reason

    def add_call(self, fragment: types.ToolCall) -> int:
        index = fragment.index or 0
        call = self.calls.get(index)
        if call is None:
            call = self.calls[index] = CallSoFar()
        return call.add(fragment)

    def add_extra(self, raw: Any, name: str) -> int:
        """Adds a further field of a delta; returns the characters that the model wrote.

        Args:
            raw: the delta's own dict, where items of a list that lack an index get one.
            name: the field.
        """
        value = raw[name]
        if value is None:
            return 0
        if value and type(value) in (list, dict):
            shown, value = self._numbered(name, value)
            if shown is not raw[name]:
                raw[name] = shown
        self.extra.setdefault(name, []).append(value)
        if name == "function_call" and type(value) is dict:
            value = value.get("arguments")
        elif name not in _WRITTEN:
            return 0
        return _length(value)

    def _numbered(self, path: str, value: Any) -> tuple[Any, Any]:
        """A list, or an object with lists, as it is shown and as it is kept to be merged.

        Shown items have indices from 0 in the order in which they began. Kept ones have none if the provider
        gave none, so that none of them is taken for a part of another.
        """
        if type(value) is dict:
            shown, kept = value, value
            for name, part in value.items():
                if part and type(part) in (list, dict):
                    part_shown, part_kept = self._numbered(f"{path}.{name}", part)
                    if part_shown is not part:
                        shown = {**shown, name: part_shown}
                    if part_kept is not part:
                        kept = {**kept, name: part_kept}
            return shown, kept
        known = self.lists.setdefault(path, {})
        pairs = [_item(known, item, path in _WHOLE) if type(item) is dict else (item, item) for item in value]
        if all(shown is item and kept is item for (shown, kept), item in zip(pairs, value)):
            return value, value
        return [shown for shown, _ in pairs], [kept for _, kept in pairs]

    def message(self) -> types.Message:
        """The message so far, with all pieces joined."""
        calls = tuple(call.whole() for _, call in sorted(self.calls.items()))
        # Without any content, it is null beside tool calls or a refusal, and empty text otherwise.
        content = "".join(self.content) if self.content or not (calls or self.refusal) else None
        refusal = "".join(self.refusal) or None
        raw: dict[str, Any] = {"role": self.role or "assistant", "content": content}
        if refusal is not None:
            raw["refusal"] = refusal
        if calls:
            raw["tool_calls"] = [call._raw for call in calls]
        for name, values in self.extra.items():
            raw[name] = merged(values)
        return types.Message(raw["role"], content, calls or None, refusal, raw)


def _length(value: Any) -> int:
    """The characters of a text, or of a list of parts with text."""
    if type(value) is list:
        return sum(_length(part.get("text") if type(part) is dict else part) for part in value)
    return len(value) if type(value) is str else 0


def _item(
    known: dict[Any, tuple[int, dict[str, Any]]], item: dict[str, Any], whole: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """An item of a list, as it is shown and as it is kept.

    Args:
        known: the items of the list that have begun: their own indices, and the names sent with them.
        item: the item, or a part of one.
        whole: whether it is never a part.
    """
    given = item.get("index")
    numbered = type(given) is int and given >= 0 and not whole
    # Some servers count the items of each type by themselves.
    key = (given, str(item.get("type"))) if numbered else (None, len(known))
    begun = known.get(key)
    if begun is None:
        index = len(known)
        known[key] = index, {name: item[name] for name in _ONCE if type(item.get(name)) is str}
        shown = item if given == index and type(given) is int else {**item, "index": index}
    else:
        index, names = begun
        shown = item
        if given != index or any(item.get(name) == value for name, value in names.items()):
            shown = {name: part for name, part in item.items() if name not in names or part != names[name]}
            shown["index"] = index
    if numbered:
        return shown, shown
    return shown, {name: part for name, part in item.items() if name != "index"} if "index" in item else item


class _Placed:
    """A call that has begun, as `CallPlaces` knows it."""

    __slots__ = ("arguments", "begun", "identified", "index", "name")

    def __init__(self, index: int | None, name: str) -> None:
        self.index = index  # the provider's own
        self.name = name
        self.identified = False  # it has an id
        self.begun = False  # some of its arguments have come
        self.arguments: list[str] = []

    def is_whole(self) -> bool:
        text = "".join(self.arguments)
        if not text.rstrip().endswith("}"):
            return False
        try:
            jsontext.loads(text)
        except ValueError:
            return False
        return True


class CallPlaces:
    """Gives the tool calls of one choice indices from 0, whatever the provider's indices and ids are.

    Some servers put every call at index 0, each with an id of its own; some send another id with every
    fragment; some send no index, some no id, some neither. A new id together with a name begins a new call;
    a new id alone goes on with the call. Without an id it is the name: with one a new call begins, unless it
    repeats the name of a call whose arguments are not whole yet.
    """

    __slots__ = ("_by_id", "_by_index", "_calls")

    def __init__(self) -> None:
        self._calls: list[_Placed] = []
        self._by_index: dict[int, int] = {}  # the latest call at each of the provider's indices
        self._by_id: dict[str, int] = {}

    def latest(self, index: Any) -> int | None:
        """The call that a fragment with the provider's index, but without id and name, goes on with."""
        place = self._by_index.get(index) if type(index) is int else None
        if place is None:
            return None
        call = self._calls[place]
        call.begun = True
        # The arguments of calls without an id must be seen: they tell where another begins.
        return place if call.identified else None

    def place(self, index: int | None, identity: str, name: str, text: str) -> tuple[int, bool, bool]:
        """Where a fragment belongs.

        Args:
            index: the provider's index, or None.
            identity: the call's id, or empty.
            name: the function's name, or empty.
            text: the fragment's arguments.

        Returns:
            The call's own index, whether the fragment begins the call, and whether its name is a part of the
            call's name.
        """
        place = self._known(index, identity, name)
        begins = place is None
        if place is None:
            place = len(self._calls)
            self._calls.append(_Placed(index, name))
        call = self._calls[place]
        if index is not None:
            self._by_index[index] = place
        if identity:
            self._by_id[identity] = place
            call.identified = True
        # A name hardly ever comes in pieces, and then before the arguments; the same one again is the whole.
        named = begins or (bool(name) and name != call.name and not call.begun)
        if named and not begins:
            call.name += name
        if text:
            call.begun = True
            call.arguments.append(text)
        return place, begins, named

    def _known(self, index: int | None, identity: str, name: str) -> int | None:
        """The call that the fragment goes on with; None if it begins one."""
        latest = self._by_index.get(index) if index is not None else len(self._calls) - 1
        if latest is None or latest < 0:
            return None
        if identity:
            known = self._by_id.get(identity)
            if known is not None and (index is None or self._calls[known].index == index):
                return known
            return None if name else latest
        if not name:
            return latest
        call = self._calls[latest]
        if not call.begun:
            return latest if index is not None or name == call.name else None
        return None if name != call.name or call.is_whole() else latest

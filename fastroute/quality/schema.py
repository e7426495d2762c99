"""Reads the JSON in answers, and checks it against JSON Schemas.

jsonschema validates; it is imported when the first schema is made. Its messages quote the value, so none of
them is used.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

from fastroute import errors, json_codec
from fastroute.config.messages import quoted, show
from fastroute.providers import jsontext

PLACE = "route.validate"
LONGEST_REASON = 300
_MOST_PROBLEMS = 3
_TYPES = ("array", "boolean", "integer", "null", "number", "object", "string")
_DRAFT = "https://json-schema.org/draft/2020-12/schema"


def one_line(text: str) -> str:
    """The text on one line, shortened for a log."""
    words = " ".join(text[: 4 * LONGEST_REASON].split())
    return words if len(words) <= LONGEST_REASON else words[: LONGEST_REASON - 1] + "…"


class _NotJSON(ValueError):
    """Why a text is not JSON, without quoting it."""


def read_json(text: str) -> Any:
    """The value of an answer that is one JSON document, bare or in one Markdown code fence.

    Raises:
        ValueError: it is not; the message says where, without quoting it.
    """
    document = _unfenced(text)
    try:
        jsontext.check(document)
    except ValueError as error:
        raise _NotJSON(f"it is {error}") from None
    try:
        return json.loads(
            document,
            object_pairs_hook=_distinct,
            parse_constant=_no_constant,
            parse_float=_finite,
        )
    except _NotJSON:
        raise
    except json.JSONDecodeError as error:
        found = f"{error.msg} at line {error.lineno}, column {error.colno}"
        raise _NotJSON("it is empty, not JSON" if not text.strip() else f"it is not JSON: {found}") from None
    except RecursionError:
        raise _NotJSON("its JSON is nested too deeply") from None
    except ValueError:
        raise _NotJSON("its JSON has a number of too many digits") from None


def _unfenced(text: str) -> str:
    """The text without a code fence around it: models add one even when told not to."""
    stripped = text.strip()
    if not (stripped.startswith("```") and stripped.endswith("```") and len(stripped) > 6):
        return stripped
    label, line_break, inner = stripped[3:-3].partition("\n")
    return inner.strip() if line_break and label.strip().lower() in ("", "json") else stripped


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _NotJSON("its JSON has an object with the same key twice")
    return found


def _no_constant(word: str) -> Any:
    raise _NotJSON(f"it is not JSON: {word} is not a JSON number")


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise _NotJSON("its JSON has a number that is too large")
    return number


def schema_text(rule: Mapping[str, Any]) -> bytes:
    """A schema as JSON, to compare schemas.

    Raises:
        BadRequestError: it cannot be written as JSON.
    """
    try:
        return json_codec.dumps(rule if isinstance(rule, dict) else dict(rule))
    except (TypeError, RecursionError) as error:
        raise errors.BadRequestError(f"{PLACE}: must contain JSON values only: {error}") from None


def schema_check(rule: Mapping[str, Any]) -> Callable[[str], str | None]:
    """A function that checks a text against a JSON Schema: it returns None, or why the text fails.

    Raises:
        BadRequestError: it is not a valid schema; the message has the place.
        ConfigError: the jsonschema package is not installed.
    """
    # A copy, because the caller may change the mapping later.
    schema = json_codec.loads(schema_text(rule))
    judge = _schema_validator(schema)
    own_names = frozenset(_property_names(schema))

    def check(text: str) -> str | None:
        try:
            value = read_json(text)
        except ValueError as error:
            return str(error)
        try:
            problems = [_problem(error, own_names) for error in islice(judge(value), _MOST_PROBLEMS)]
        except RecursionError:
            return "its JSON is nested too deeply"
        return "; ".join(dict.fromkeys(problems)) or None

    return check


def _schema_validator(schema: dict[str, Any]) -> Callable[[Any], Iterator[Any]]:
    """jsonschema's validator for a schema, after checking the schema itself."""
    try:
        import jsonschema.validators
        import referencing.jsonschema
        from jsonschema_specifications import REGISTRY  # type: ignore[import-untyped]
    except ImportError:
        raise errors.ConfigError(
            f"{PLACE}: a JSON Schema needs the jsonschema package; run pip install 'fastroute[validate]'"
        ) from None
    dialect = schema.get("$schema", _DRAFT)
    known = sorted(uri.rstrip("#") for uri in REGISTRY if uri.rstrip("#").endswith("/schema"))
    if not isinstance(dialect, str) or dialect.rstrip("#") not in known:
        raise errors.BadRequestError(
            f'{PLACE}."$schema": unknown draft {show(dialect)}; leave it out, or use one of '
            f"{', '.join(known)}"
        )
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    _refuse_wrong(kind, schema, PLACE)
    specification = referencing.jsonschema.specification_with(dialect)
    resource = specification.create_resource(schema)
    own_uri = resource.id() or ""
    resolver = REGISTRY.with_resource(own_uri, resource).resolver(own_uri)
    waiting = [(resource, resolver)]
    seen = {id(schema)}
    while waiting:
        # Every reference is followed once, so that an invalid one is found before a request costs money.
        current, own = waiting.pop()
        for reference, led in _references(current.contents, own):
            if isinstance(led.contents, Mapping) and id(led.contents) not in seen:
                # It may be in a place where no schema is expected, and then it has not been checked.
                seen.add(id(led.contents))
                _refuse_wrong(kind, led.contents, f"{PLACE}.{quoted(reference)}")
                waiting.append((specification.create_resource(led.contents), led.resolver))
        waiting += [(inner, own.in_subresource(inner)) for inner in current.subresources()]
    # With its default registry, jsonschema would fetch a $ref over the network.
    found: Callable[[Any], Iterator[Any]] = kind(
        schema, registry=REGISTRY, format_checker=kind.FORMAT_CHECKER
    ).iter_errors
    try:
        list(islice(found(None), _MOST_PROBLEMS))
    except RecursionError:
        raise errors.BadRequestError(
            f'{PLACE}: a "$ref" is circular; a reference to itself must be inside properties or items',
            param="validate",
        ) from None
    return found


def _refuse_wrong(kind: Any, schema: Any, place: str) -> None:
    """Raises BadRequestError for a schema that its draft does not allow, with the place."""
    from jsonschema.exceptions import best_match

    try:
        wrong = best_match(kind(kind.META_SCHEMA, format_checker=kind.FORMAT_CHECKER).iter_errors(schema))
    except RecursionError:
        raise errors.BadRequestError(
            f"{place}: the schema is nested too deeply; make it flatter", param="validate"
        ) from None
    if wrong is not None:
        place += "".join(
            f"[{part}]" if isinstance(part, int) else f".{quoted(part)}" for part in wrong.absolute_path
        )
        right = f"must be one of {', '.join(_TYPES)}" if place.endswith(".type") else _expected(wrong)
        raise errors.BadRequestError(f"{place}: {right}, not {show(wrong.instance)}", param="validate")


def _references(contents: Any, resolver: Any) -> Iterator[tuple[str, Any]]:
    """The references in a schema itself, without its subschemas, and what each refers to."""
    from referencing.exceptions import Unresolvable

    for word in ("$ref", "$dynamicRef") if isinstance(contents, Mapping) else ():
        reference = contents.get(word)
        if not isinstance(reference, str):
            continue
        try:
            led = resolver.lookup(reference)
        except Unresolvable:
            raise errors.BadRequestError(
                f'{PLACE}: "{word}" {show(reference)} was not found; refer to a place in the schema or to a '
                "published draft (nothing is fetched)",
                param="validate",
            ) from None
        if not isinstance(led.contents, (Mapping, bool)):
            raise errors.BadRequestError(
                f'{PLACE}: "{word}" {show(reference)} is not a schema; refer to a schema', param="validate"
            )
        yield reference, led


def _property_names(schema: Any) -> Iterator[str]:
    waiting = [schema]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            properties = part.get("properties")
            if isinstance(properties, dict):
                yield from properties
            required = part.get("required")
            if isinstance(required, list):
                yield from (name for name in required if isinstance(name, str))
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part


def _problem(error: Any, own_names: frozenset[str]) -> str:
    """One violation: its place, by names that the schema itself has, and what is required."""
    place = "".join(
        f"[{part}]" if isinstance(part, int) else f".{part}" if part in own_names else ".*"
        for part in error.absolute_path
    )
    return f"${one_line(place)} {_expected(error)}" if place else f"the JSON {_expected(error)}"


def _expected(error: Any) -> str:
    """What the violated keyword requires. jsonschema's own messages quote the value, so they are not used."""
    word, wanted = error.validator, error.validator_value
    if word == "required" and isinstance(error.instance, dict) and isinstance(wanted, list):
        missing = [str(name) for name in wanted if name not in error.instance]
        return one_line(f"must have {', '.join(missing)}")
    if word == "type":
        return f"must be of type {' or '.join(wanted) if isinstance(wanted, list) else wanted}"
    if word == "enum":
        return one_line(f"must be one of {_json(wanted)}")
    if word in ("additionalProperties", "unevaluatedProperties") and wanted is False:
        return "must have no other properties than the schema names"
    if word in ("anyOf", "oneOf"):
        number = len(wanted) if isinstance(wanted, list) else 0
        return f"must match {'exactly' if word == 'oneOf' else 'at least'} one of {number} alternatives"
    return one_line(f"must satisfy {word or 'the schema'}: {_json(wanted)}")


def _json(value: Any) -> str:
    return json_codec.dumps(value, default=str).decode()

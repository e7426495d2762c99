"""Judges answers, and notices when a model's answers get worse.

Owns what a validation rule is, what is said of an answer that fails one, and the success and validation rates
of each model in each tier. What is done about a failed answer is `dispatch.py`'s; nothing here sends, retries
or waits.

- `validation`: rules (a JSON Schema, a pattern, a callable), verdicts, and the message that asks again
- `schema`: JSON as answers hold it, and JSON Schemas
- `rates`: rates and drift

No reason given here quotes the answer: reasons end up in logs, errors and events, and an answer may hold
anything. They name what the rule asks for, in the rule's own words. The one exception is a callable of the
user's, whose words are passed on.
"""

from __future__ import annotations

from .rates import Measure, Rate, Rates
from .schema import read_json
from .validation import Rule, Validator, feedback, with_feedback

__all__ = ["Measure", "Rate", "Rates", "Rule", "Validator", "feedback", "read_json", "with_feedback"]

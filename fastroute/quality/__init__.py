"""Validates answers, and detects when a model's answers get worse.

- `validation`: rules (a JSON Schema, a pattern, a callable), and the message that asks for a better answer
- `schema`: JSON in answers, and JSON Schemas
- `rates`: success and validation rates, and drift

Nothing here sends, retries or waits; `calls/dispatch.py` does.

The reason why an answer fails never quotes the answer, because reasons are logged and an answer may contain
anything. It names what the rule requires. The exception is the reason that a user's callable returns.
"""

from __future__ import annotations

from .rates import Measure, Rate, Rates
from .schema import read_json
from .validation import Rule, Validator, feedback, with_feedback

__all__ = ["Measure", "Rate", "Rates", "Rule", "Validator", "feedback", "read_json", "with_feedback"]

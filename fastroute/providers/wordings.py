"""How providers word their errors: one table, of which the first line that matches decides.

Each line names the error's class and what the failure holds for (`errors.Blame`), and how providers word it:
the status, the codes and types, and a pattern in the message. `calls/retry.py` decides what to do about an
error. A recorded body for each line is in ``tests/providers/refusals.jsonl``; to add a wording,
add a line there and, if it is not recognised, a word here.

Codes and types are compared in lower case. Errors that the status alone identifies are in
`errors.for_status`; the lines here are for all others.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from attrs import frozen

from fastroute import errors
from fastroute.errors import Blame


def _pattern(*parts: str) -> re.Pattern[str]:
    return re.compile("|".join(parts), re.IGNORECASE)


@frozen
class Wording:
    """One line of the table: one meaning that an error may have.

    Attributes:
        about: the meaning, in a few words.
        error: the class of the error; None for the class of its status.
        blame: what the failure holds for.
        statuses: the statuses that it has.
        status: its status if the provider sends none, in a 200 answer or a stream.
        names: codes and types that stand for it.
        text: a pattern that its messages contain.
    """

    about: str
    error: type[errors.APIStatusError] | None
    blame: Blame
    statuses: tuple[int, ...]
    status: int
    names: tuple[str, ...] = ()
    text: re.Pattern[str] | None = None

    def said(self, status: int | None, names: set[str], text: str) -> bool:
        """Whether an error with this status, these codes and types, and this text has this meaning."""
        if status is not None and status not in self.statuses:
            return False
        if any(name in names for name in self.names):
            return True
        return self.text is not None and self.text.search(text) is not None


_NINE_SIGNS = (r"tool call id was .{0,200} but must be a-z, a-z, 0-9, with a length of 9",)
_SHORT_IDS = (r"tool_call(?:s\W{0,2}\d+\W{0,2}id|_id)\W{0,3} string too long.{0,60}length 40\b",)

WORDINGS: tuple[Wording, ...] = (
    Wording(
        "the account can pay for a smaller request only",
        errors.QuotaExceededError,
        Blame.REQUEST,
        statuses=(400, 402, 403, 429),
        status=402,
        text=_pattern(
            r"can only afford", r"more credits, or fewer max_tokens", r"prompt tokens limit exceeded"
        ),
    ),
    Wording(
        "the content filter refused",
        errors.ContentFilterError,
        Blame.REQUEST,
        statuses=(400, 403, 422, 451),
        status=400,
        names=(
            "content_filter",
            "content_filtered",
            "content_policy_violation",
            "responsibleaipolicyviolation",
            "moderation_blocked",
            "data_inspection_failed",
            "datainspectionfailed",
            "invalid_prompt",
            "cyber_policy_violation",
            "sensitive_content",
            "1301",
            "1026",
            "1027",
        ),
        text=_pattern(
            r"content (?:management|moderation|filter\w{0,4}|safety) (?:policy|policies|system|filter)",
            r"content policy",
            r"content exists risk",
            r"requires moderation",
            r"input .{0,20}flagged",
            r"flagged as potentially violating",
            r"violat\w+ (?:our |the |\w+'s )?(?:usage|content) (?:guidelines|policy|policies)",
            r"rejected as a result of our safety system",
            r"(?:inappropriate|unsafe|sensitive) content",
            r"new_sensitive",
            r"considered high risk",
            r"敏感内容",
        ),
    ),
    Wording(
        "the account has no money or quota left",
        errors.QuotaExceededError,
        Blame.ACCOUNT,
        statuses=(400, 401, 402, 403, 412, 429),
        status=429,
        names=(
            "insufficient_quota",
            "credit_balance_exhausted",
            "organization_spend_limit_exceeded",
            "project_spend_limit_exceeded",
            "organization_usage_limit_exceeded",
            "enforced_spend_limit_reached",
            "contract_spend_limit_reached",
            "linked_organization_spend_limit_reached",
            "billing_hard_limit_reached",
            "billing_not_active",
            "billing_disabled",
            "billing_error",
            "insufficient_balance",
            "insufficient_credits",
            "insufficient_user_quota",
            "exceeded_current_quota_error",
            "accountoverdueerror",
            "arrearage",
            "1008",
            "1113",
        ),
        text=_pattern(
            r"credit balance is too low",
            r"insufficient (?:account )?(?:balance|credits?|funds)",
            r"prepayment credits",
            r"monthly spending (?:cap|limit)",
            r"account is in good standing",
            r"reached your specified api usage limits",
            r"failure to pay past invoices",
            r"(?:used all available|doesn't have any|have exceeded your monthly included) credits",
            r"余额不足",
        ),
    ),
    Wording(
        "the key is not valid",
        errors.AuthenticationError,
        Blame.ACCOUNT,
        statuses=(400, 401, 403),
        status=401,
        names=(
            "invalid_api_key",
            "api_key_invalid",
            "authentication_error",
            "invalid_authentication_error",
            "invalid_iam_token",
            "unauthorized",
            "unauthenticated",
            "1004",
            "2049",
        ),
        text=_pattern(
            r"(?:incorrect|invalid|wrong|unknown|missing|bad) api[- _]?key",
            r"api[- _]?key (?:is |was )?(?:not valid|invalid|incorrect|not found|expired|revoked|disabled)",
            r"api[- _]?key was reported as leaked",
        ),
    ),
    Wording(
        "a file that the request names is gone",
        errors.NotFoundError,
        Blame.REQUEST,
        statuses=(400, 403, 404),
        status=404,
        text=_pattern(
            r"permission to access the file",
            r"no such (?:file|cached ?content)",
            r"(?:file|cached ?content)s?\b.{0,80}(?:not found|not exist|no longer exists?|expired)",
        ),
    ),
    Wording(
        "the endpoint cannot do what the request asks for",
        errors.BadRequestError,
        Blame.ENDPOINT,
        statuses=(400, 404, 422),
        status=400,
        text=_pattern(
            r"no endpoints (?:found|available) (?:that (?:support|can)|matching)",
            r"does not support (?:image|audio|video|tool|function|pdf|file|document|multimodal|vision)",
        ),
    ),
    Wording(
        "the model is not served, or not to this account, or not in this region",
        errors.NotFoundError,
        Blame.ENDPOINT,
        statuses=(400, 403, 404, 410, 422),
        status=404,
        names=(
            "model_not_found",
            "modelnotfound",
            "model_not_available",
            "model_not_supported",
            "model_decommissioned",
            "model_deprecated",
            "model_permission_blocked_org",
            "model_permission_blocked_project",
            "deploymentnotfound",
            "invalid_model",
            "accessdenied.unpurchased",
            "modelnotopen",
            "1211",
        ),
        text=_pattern(
            r"\bmodels?\b[^.]{0,120}(?:does not exist|not exist|(?:was |is |been )?not found|not be found"
            r"|been (?:decommissioned|deprecated|retired|removed|shut ?down|sunset)|is (?:deprecated|retired)"
            r"|no longer (?:supported|available|served))",
            r"\bmodels?/?[^.]{0,80} (?:is|are) not (?:supported|available|deployed|accessible|served)",
            r"(?:not found|unable to access|don't have access to|no access to) (?:the )?model",
            r"(?:unknown|invalid) model",
            r"model not (?:exist|found)",
            r"is not a (?:valid model|chat model)",
            r"deployment for this resource does not exist",
            r"no endpoints found for",
        ),
    ),
    Wording(
        "the account is not served here",
        errors.PermissionDeniedError,
        Blame.ACCOUNT,
        statuses=(400, 403, 451),
        status=403,
        names=("unsupported_country_region_territory",),
        text=_pattern(
            r"(?:country|region|territory|location)\b.{0,40} (?:is )?not (?:supported|allowed|available) "
            r"(?:for|by|to) (?:the |this )?(?:api|service)",
            r"country, region, or territory not supported",
            r"not available in your (?:country|region|location)",
        ),
    ),
    Wording(
        "the request is larger than the limit of tokens a minute",
        errors.RequestTooLargeError,
        Blame.ENDPOINT,
        statuses=(413,),
        status=413,
        text=_pattern(r"request too large for .{0,120}tokens per minute"),
    ),
    Wording(
        "ids of tool calls in another form than the endpoint demands",
        None,
        Blame.ENDPOINT,
        statuses=(400, 422),
        status=400,
        text=_pattern(*_NINE_SIGNS, *_SHORT_IDS),
    ),
    Wording(
        "the input is longer than the context window",
        errors.ContextLengthExceeded,
        Blame.REQUEST,
        statuses=(400, 413, 422, 500),
        status=400,
        names=(
            "context_length_exceeded",
            "context_window_exceeded",
            "exceed_context_size_error",
            "model_max_prompt_tokens_exceeded",
            "tokens_limit_reached",
            "string_above_max_length",
            "request_too_large",
            "1261",
        ),
        text=_pattern(
            r"max(?:imum)? (?:context|prompt|input|model|sequence) length",
            r"(?:exceed\w*|larger than|longer than|greater than|too (?:large|long) for)"
            r".{0,60}(?:context|input|prompt) (?:length|size|window|limit)",
            r"context (?:length|size|window|limit) .{0,30}exceed",
            r"(?:prompt|input|request|conversation|messages?) (?:is |are )?too long",
            r"too many (?:input |prompt )?tokens(?!: max tokens)",
            r"token count .{0,40}exceeds? the (?:maximum|limit)",
            r"input token count is \d+ but",
            r"input tokens exceed",
            r"(?:input|prompt) (?:length|tokens) .{0,30}exceeds?",
            r"message size \d+ exceeds",
            r"reduce the length of (?:the|your) (?:messages|prompt|input)",
            r"exceeded model token limit",
            r"model max length exceeded",
            r"range of input length should be",
            r"tokens when (?:the )?context (?:the )?overflows",
            r"n_keep .{0,20}n_ctx",
            r"`?inputs`? tokens \+ `?max_new_tokens`? must be",
            r"`?inputs`? must have less than \d+ tokens",
            r"max_tokens must be at least 1, got -\d",
            r"too large for .{0,80}max size: \d+ tokens",
        ),
    ),
    Wording(
        "the output limit is above what the model gives",
        errors.BadRequestError,
        Blame.ENDPOINT,
        statuses=(400, 422),
        status=400,
        text=_pattern(
            r"max_(?:completion_)?tokens\W{0,3} (?:is too large|must be (?:less than or equal to|at most))",
            r"max(?:_| )tokens: \d+ > \d+, which is the maximum",
            r"range of max_tokens (?:is|should be)",
            r"supports at most \d+ (?:completion|output) tokens",
            r"maxoutputtokens\b.{0,60} but the supported range",
            r"max tokens must be less than or equal to",
        ),
    ),
    Wording(
        "a parameter that this model or provider does not take",
        None,
        Blame.ENDPOINT,
        statuses=(400, 422),
        status=400,
        names=("unsupported_parameter", "unsupported_value", "extra_forbidden"),
        text=_pattern(
            r"(?:not (?:supported|allowed|available|permitted|compatible)|unsupported) (?:with|by|for|in|on) "
            r"(?:this|the selected|the requested) model",
            r"(?:this|the selected|the requested) model does not (?:support|accept|allow)",
            r"extra inputs are not permitted",
            r"unknown variant `developer`",
            r"unknown role: developer",
        ),
    ),
    Wording(
        "the account may not use the service",
        errors.PermissionDeniedError,
        Blame.ACCOUNT,
        statuses=(400, 401, 403, 412),
        status=403,
        names=(
            "account_deactivated",
            "access_terminated",
            "organization_restricted",
            "service_disabled",
            "api_key_service_blocked",
            "consumer_suspended",
            "consumer_invalid",
        ),
        text=_pattern(
            r"(?:account|organi[sz]ation|team|workspace|subscription)\b[^.]{0,80} (?:is|was|has been) "
            r"(?:suspended|deactivated|disabled|terminated|restricted|blocked|not active|banned)",
            r"api has not been used in project",
            r"(?:token|key|credentials?)\b[^.]{0,60} (?:does not have|lacks?|has no|insufficient) "
            r"(?:sufficient |the required )?permissions?",
            r"does not have sufficient permissions to call",
            r"virtual network/firewall rules",
        ),
    ),
)


# -------------------------------------------------------------------------------------------- finish reasons

BROKEN_OFF: Mapping[str, int] = {
    "insufficient_system_resource": 503,  # DeepSeek
    "network_error": 502,  # GLM
    "abort": 503,  # SGLang, vLLM
    "aborted": 503,
    "error": 500,  # OpenRouter, Mistral, Cohere
    "model_error": 500,
    "timeout": 504,  # Cohere
    "preempted": 503,
}
"""Finish reasons that mean that the provider failed, and the status of such a failure."""

FILTERED = frozenset({"content_filter", "sensitive", "error_toxic"})
"""Finish reasons of an answer that a content filter has cut: OpenAI's, GLM's, Cohere's."""

OPENAI_REASONS = frozenset({"stop", "length", "tool_calls", "content_filter", "function_call"})
"""The finish reasons that clients of OpenAI's API know."""

# Other servers' finish reasons, in lower case, and what they are in OpenAI's words. One that says that the
# answer was given up, whatever for, is "length": the answer is not whole.
_IN_OPENAIS_WORDS: Mapping[str, str] = {
    "complete": "stop",  # Cohere
    "eos": "stop",  # Together
    "eos_token": "stop",  # TGI
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "max_length": "length",
    "model_length": "length",  # Mistral
    "model_context_window_exceeded": "length",
    "other": "length",  # Gemini
    "finish_reason_unspecified": "length",
    "unknown": "length",
    "cancelled": "length",
    "canceled": "length",
    "interrupted": "length",
    "incomplete": "length",
    "pause_turn": "length",
    "user_cancel": "length",
    "tool_use": "tool_calls",
    "tool_call": "tool_calls",
    "repetition": "length",  # vLLM
    "sensitive": "content_filter",  # GLM
    "error_toxic": "content_filter",
    "refusal": "content_filter",
    "safety": "content_filter",
    "recitation": "content_filter",
    "blocklist": "content_filter",
    "prohibited_content": "content_filter",
    "guardrail_intervened": "content_filter",  # Bedrock
}


def openai_reason(finish_reason: str) -> str:
    """A finish reason in OpenAI's words; ``stop`` for one that is not known."""
    lowered = finish_reason.lower()
    return lowered if lowered in OPENAI_REASONS else _IN_OPENAIS_WORDS.get(lowered, "stop")


def broken_off(finish_reason: str) -> errors.InternalServerError:
    """The error for an answer that ended because the provider failed."""
    return errors.InternalServerError(
        f"the provider broke the answer off (finish_reason {finish_reason})",
        status_code=BROKEN_OFF[finish_reason.lower()],
        code=finish_reason,
        maybe_billed=True,
    )


# ------------------------------------------------------------------------------------ errors that are charged

CHARGED: Mapping[int, str] = {
    408: "the provider gave up in the midst of its answer (Azure charges for what it has processed)",
    499: "the connection was given up while the model was at work",
    504: "a gateway gave up waiting, and the model may go on",
    520: "Cloudflare got no proper answer of a provider that was at work",
    524: "Cloudflare gave up waiting, and the model may go on",
}
"""Statuses of errors that a provider may charge for all the same, and why. All others are free."""

CHARGED_CODES = frozenset({"content_filter"})
"""Codes of such errors: Azure reads the prompt before its filter refuses it, and charges for that."""


# ------------------------------------------------------------------------------------------- other spellings


@frozen
class Spelling:
    """A refusal after which the same endpoint accepts the same request in another spelling.

    Attributes:
        about: what is refused.
        refused: a pattern of such refusals; a group, if there is one, is the number to use.
        change: the attribute of a `Target` to change.
        value: its new value; None: the number in the refusal.
    """

    about: str
    refused: re.Pattern[str]
    change: str
    value: object = None


_REFUSAL = r"unsupported|unknown|unrecogni[sz]ed|unexpected|extra|invalid|not (?:supported|permitted|allowed)"

SPELLINGS: tuple[Spelling, ...] = (
    Spelling(
        "stream_options",
        _pattern(r"stream_options|include_usage"),
        "include_usage",
        False,
    ),
    Spelling(
        "max_tokens of newer models",
        _pattern(r"\bmax_tokens\b.{0,60}not (?:supported|compatible).{0,80}max_completion_tokens"),
        "output_limit",
        "max_completion_tokens",
    ),
    Spelling(
        "max_completion_tokens of older servers",
        _pattern(
            rf"(?:{_REFUSAL}).{{0,60}}\bmax_completion_tokens\b",
            rf"\bmax_completion_tokens\b.{{0,40}}(?:{_REFUSAL})",
        ),
        "output_limit",
        "max_tokens",
    ),
    Spelling(
        "messages of developers",
        _pattern(r"unknown variant `developer`", r"unknown role: developer", r"does not support 'developer'"),
        "developer_role",
        "system",
    ),
    Spelling(
        "ids of tool calls that are not nine letters and digits",
        _pattern(*_NINE_SIGNS),
        "call_ids",
        "nine",
    ),
    Spelling(
        "ids of tool calls with more than 40 characters",
        _pattern(*_SHORT_IDS),
        "call_ids",
        "short",
    ),
    Spelling(
        "an output limit above the model's",
        _pattern(
            r"at most (\d{1,9}) (?:completion|output) tokens",
            r"max(?:_| )tokens: \d+ > (\d{1,9}), which is the maximum",
            r"range of max_tokens (?:is|should be) \[\d+, ?(\d{1,9})\]",
            r"max(?:_completion)?(?:_| )tokens\W{0,3} must be (?:less than or equal to|at most) `?(\d{1,9})",
        ),
        "max_output",
    ),
)
"""Tried in order on a 400 or 422 that is about a parameter."""

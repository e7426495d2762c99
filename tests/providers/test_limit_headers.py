"""Headers about waiting and limits: which values are read, and which are ignored."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastroute.providers.limit_headers import (
    HeaderLimit,
    RateLimitHeaders,
    parse_duration,
    parse_http_date,
    parse_limits,
    parse_reset,
    parse_retry_after,
    parse_spent,
)
from fastroute.testing import go_duration

DATE = "Sun, 06 Nov 1994 08:49:37 GMT"
DATE_WALL = 784111777.0
LATER = "Sun, 06 Nov 1994 08:49:57 GMT"

# ---------------------------------------------------------------------------------------------- Retry-After


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("20", 20), ("20.5", 20.5), (" 20 ", 20), ("61", 61), ("86400", 86400), ("0.25", 0.25)],
)
def test_retry_after_in_seconds(text: str, seconds: float) -> None:
    assert parse_retry_after({"Retry-After": text}) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "-10",
        "0",
        "0.0",
        "",
        "abc",
        "nan",
        "inf",
        "Infinity",
        "1_000",
        "٢٠",
        "20,20",
        "10, 20",
        "5;q=1",
        "9" * 5000,
        "9" * 13,
        "+5",
        "1e3",
        ".5",
        "5.",
        "0x10",
        "20 s",
        "\u00a020",
        "Fri, 31 Feb 2027 00:00:00 GMT",
        "Sun, 06 Nov 100000 08:49:37 GMT",
        "Sun, 06 Nov 1994 08:49:37",
        "Sun, 06 Nov 1994 08:49:37 +0000",
        "Sun, 06 Nov 1994 25:49:37 GMT",
        "Sun, 06 Nov 0000 08:49:37 GMT",
        "Sat, 05 Nov 1994 08:49:37 GMT",
    ],
)
def test_retry_after_that_is_not_understood_is_no_answer(text: str) -> None:
    assert parse_retry_after({"retry-after": text, "date": DATE}) is None


def test_a_date_is_compared_with_the_response_and_not_with_our_clock() -> None:
    assert parse_retry_after({"Retry-After": LATER, "Date": DATE}) == 20
    assert parse_retry_after({"Retry-After": LATER, "Date": DATE}, 0.0) == 20
    assert parse_retry_after({"Retry-After": LATER}) is None
    assert parse_retry_after({"Retry-After": LATER, "Date": "rubbish"}) is None


def test_a_date_without_the_response_s_own_is_compared_with_our_clock() -> None:
    assert parse_retry_after({"Retry-After": LATER}, DATE_WALL) == 20
    assert parse_retry_after({"Retry-After": LATER, "Date": "rubbish"}, DATE_WALL) == 20
    assert parse_retry_after({"Retry-After": DATE}, DATE_WALL) is None


@pytest.mark.parametrize("moment", ["1741305600", "1741305600000", "1741305600000000", "1741305600.0"])
def test_times_since_the_epoch_in_seconds_and_smaller_units(moment: str) -> None:
    assert parse_retry_after({"Retry-After": moment}, 1741305570.0) == 30
    assert parse_reset(moment, 1741305570.0) == 30
    assert parse_retry_after({"Retry-After": moment}) is None


def test_milliseconds_come_first_and_what_is_not_understood_is_passed_over() -> None:
    headers = {"Retry-After": "30", "retry-after-ms": "500", "x-ms-retry-after-ms": "700"}
    assert parse_retry_after(headers) == 0.5
    assert parse_retry_after({**headers, "retry-after-ms": "soon"}) == 0.7
    assert parse_retry_after({**headers, "retry-after-ms": "0", "x-ms-retry-after-ms": "-1"}) == 30


def test_http_date() -> None:
    assert parse_http_date(DATE) == DATE_WALL


NAMES = st.sampled_from(
    [
        "retry-after",
        "retry-after-ms",
        "x-ms-retry-after-ms",
        "date",
        "x-ratelimit-limit-requests",
        "x-ratelimit-remaining-requests",
        "x-ratelimit-reset-requests",
        "x-ratelimit-remaining-tokens",
        "x-ratelimit-reset-tokens",
        "anthropic-ratelimit-tokens-remaining",
        "anthropic-ratelimit-tokens-reset",
    ]
)
VALUES = st.one_of(
    st.text(),
    st.from_regex(r"-?[0-9]{1,30}(\.[0-9]{1,5})?(s|ms|h)?", fullmatch=True),
    st.datetimes().map(lambda moment: moment.isoformat() + "Z"),
    st.sampled_from([DATE, "9" * 5000, "1h" * 50]),
)


@given(st.dictionaries(NAMES, VALUES))
def test_no_header_raises_or_gives_a_time_below_zero(headers: dict[str, str]) -> None:
    wait = parse_retry_after(headers)
    assert wait is None or wait > 0
    limits = parse_limits(headers)
    if limits is not None:
        for limit in (limits.requests, limits.tokens):
            if limit is not None:
                assert all(each is None or each >= 0 for each in (limit.limit, limit.remaining, limit.reset))
                assert 1 <= limit.window <= 60
    for value in headers.values():
        assert (parse_reset(value, DATE_WALL) or 0.0) >= 0
        assert (parse_duration(value) or 0.0) >= 0


# ------------------------------------------------------------------------------------------------ durations


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("6m0s", 360),
        ("1s", 1),
        ("12ms", 0.012),
        ("1m30.951s", 90.951),
        ("1h2m3s", 3723),
        ("6m", 360),
        ("1.5h", 5400),
        ("3us", 3e-6),
        ("3µs", 3e-6),
        ("3μs", 3e-6),
        ("7ns", 7e-9),
        ("34.07s", 34.07),
        ("0s", 0),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "-5s",
        "1.5.2s",
        "m",
        "",
        "5",
        "s",
        ".5s",
        "5.s",
        "1 s",
        "1S",
        "1d",
        "+1s",
        "1_0s",
        "٢s",
        "1s ",
        "9" * 13 + "s",
        None,
        5,
    ],
)
def test_what_is_no_duration(text: object) -> None:
    assert parse_duration(text) is None


@given(st.integers(0, 10**9))
def test_durations_are_read_as_they_were_written(milliseconds: int) -> None:
    assert parse_duration(go_duration(milliseconds / 1000)) == milliseconds / 1000


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1994-11-06T08:49:57Z", 20),
        ("1994-11-06T08:49:37.500Z", 0.5),
        ("1994-11-06T09:49:57+01:00", 20),
        ("1994-11-06t03:49:57-05:00", 20),
        ("1994-11-06T08:49:36Z", 0),
        ("1994-13-06T08:49:36Z", None),
        ("1994-11-06T08:49:57", None),
        ("1994-11-06T08:49:57+24:00", None),
        ("17", 17),
        ("17.5", 17.5),
        ("6m0s", 360),
        ("-1", None),
        ("", None),
        ("soon", None),
    ],
)
def test_resets(text: str, seconds: float | None) -> None:
    assert parse_reset(text, DATE_WALL) == seconds


def test_a_reset_that_is_a_time_needs_a_clock() -> None:
    assert parse_reset("1994-11-06T08:49:57Z") is None
    assert parse_reset("1755780059", 1755780000.0) == 59
    assert parse_reset("1755780059") is None


# --------------------------------------------------------------------------------------------------- limits


def test_limits_of_openai() -> None:
    limits = parse_limits(
        {
            "x-ratelimit-limit-requests": "10000",
            "x-ratelimit-remaining-requests": "9000",
            "x-ratelimit-reset-requests": "6s",
            "x-ratelimit-limit-tokens": "200000",
            "x-ratelimit-remaining-tokens": "0",
            "x-ratelimit-reset-tokens": "1m0s",
        }
    )
    assert limits == RateLimitHeaders(HeaderLimit(10000, 9000, 6.0), HeaderLimit(200000, 0, 60.0))


def test_limits_of_anthropic_by_the_response_s_clock() -> None:
    limits = parse_limits(
        {
            "date": DATE,
            "anthropic-ratelimit-requests-limit": "50",
            "anthropic-ratelimit-requests-remaining": "49",
            "anthropic-ratelimit-requests-reset": "1994-11-06T08:49:36Z",
            "anthropic-ratelimit-tokens-limit": "40000",
            "anthropic-ratelimit-tokens-remaining": "30000",
            "anthropic-ratelimit-tokens-reset": "1994-11-06T08:49:47Z",
        }
    )
    assert limits == RateLimitHeaders(HeaderLimit(50, 49, 0.0), HeaderLimit(40000, 30000, 10.0))


@pytest.mark.parametrize("unknown", ["-1", "0"])
def test_what_azure_sends_when_it_does_not_know(unknown: str) -> None:
    limits = parse_limits(
        {"x-ratelimit-remaining-tokens": unknown, "x-ratelimit-remaining-requests": unknown}
    )
    assert limits is None
    limits = parse_limits({"x-ratelimit-limit-tokens": unknown, "x-ratelimit-remaining-tokens": "5"})
    assert limits is None


@pytest.mark.parametrize("remaining", ["14399", "14370", "100"])
def test_requests_per_day_do_not_pace_minutes(remaining: str) -> None:
    used = 14400 - int(remaining)
    limits = parse_limits(
        {
            "x-ratelimit-limit-requests": "14400",
            "x-ratelimit-remaining-requests": remaining,
            "x-ratelimit-reset-requests": go_duration(used * 6.0),
            "x-ratelimit-limit-tokens": "18000",
            "x-ratelimit-remaining-tokens": "17000",
            "x-ratelimit-reset-tokens": "3.33s",
        }
    )
    assert limits is not None
    assert limits.requests is None
    assert limits.tokens == HeaderLimit(18000, 17000, 3.33)


@pytest.mark.parametrize("what", ["requests", "tokens"])
@pytest.mark.parametrize(
    ("limit", "remaining", "reset", "told"),
    [
        ("1000", "3", "23h59m0s", False),
        ("1000", "1000", "24h0m0s", False),  # nothing is used yet
        (None, "3", "1h0m1s", False),
        ("1000", "0", "1h0m0s", True),
        ("1000", "1000", "1h0m0s", True),
        (None, "3", "1h0m0s", True),
        ("1000", "3", None, True),
    ],
)
def test_what_is_left_of_a_day_is_not_taken_for_this_minutes(
    what: str, limit: str | None, remaining: str, reset: str | None, told: bool
) -> None:
    parts = {"limit": limit, "remaining": remaining, "reset": reset}
    limits = parse_limits(
        {f"x-ratelimit-{part}-{what}": text for part, text in parts.items() if text is not None}
    )
    assert limits is not None
    assert (getattr(limits, what) is not None) == told


def test_a_day_that_is_used_up_is_waited_for_and_a_minute_that_is_longer_is_not() -> None:
    spent = {"x-ratelimit-remaining-{}": "0", "x-ratelimit-limit-{}": "9"}
    for what, reset, wait in (
        ("requests-day", "86400", 86400),
        ("tokens-day", "7200", 7200),
        ("requests", "60s", 60),
        ("requests", "61s", None),
        ("tokens", "1h0m0s", None),
        ("tokens", "0s", None),
    ):
        headers = {name.format(what): text for name, text in spent.items()}
        headers[f"x-ratelimit-reset-{what}"] = reset
        assert parse_spent(headers) == wait, (what, reset)
        headers[f"x-ratelimit-remaining-{what}"] = "1"
        assert parse_spent(headers) is None, (what, reset)
    # The longest of several, and one whose rest is not told counts as used up.
    both = {"x-ratelimit-reset-requests-day": "60", "x-ratelimit-reset-tokens-day": "90"}
    assert parse_spent(both) == 90
    two = {f"x-ratelimit-{part}-{what}": "0" for part in ("remaining",) for what in ("requests", "tokens")}
    assert parse_spent({**two, "x-ratelimit-reset-requests": "2s", "x-ratelimit-reset-tokens": "5s"}) == 5


@pytest.mark.parametrize("text", ["10, 20", "ten", "1_0", "٣", "9" * 40, "1.5"])
def test_counts_that_are_none(text: str) -> None:
    assert parse_limits({"x-ratelimit-remaining-requests": text}) is None


@pytest.mark.parametrize(
    ("limit", "remaining", "reset", "window"),
    [
        ("30", "29", "2s", 60),
        ("30", "0", "1m0s", 60),
        ("5", "4", "200ms", 1),
        ("60", "30", "5s", 10),
        ("60", "30", "0s", 1),
        ("500", "450", "60s", 60),
        ("30", "30", "0s", 60),
        ("30", "29", None, 60),
    ],
)
def test_the_window_of_a_limit_is_a_minute_unless_its_reset_shows_less(
    limit: str, remaining: str, reset: str | None, window: float
) -> None:
    headers = {"x-ratelimit-limit-requests": limit, "x-ratelimit-remaining-requests": remaining}
    if reset is not None:
        headers["x-ratelimit-reset-requests"] = reset
    limits = parse_limits(headers)
    assert limits is not None
    assert limits.requests is not None
    assert limits.requests.window == pytest.approx(window)


def test_limits_under_names_with_their_window() -> None:
    mistral = parse_limits(
        {
            "x-ratelimit-limit-req-minute": "60",
            "x-ratelimit-remaining-req-minute": "59",
            "x-ratelimit-limit-tokens-minute": "50000",
            "x-ratelimit-remaining-tokens-minute": "47196",
            "x-ratelimit-limit-tokens-month": "4000000",
            "x-ratelimit-remaining-tokens-month": "3950246",
        }
    )
    assert mistral == RateLimitHeaders(HeaderLimit(60, 59, None), HeaderLimit(50000, 47196, None))
    day = {"x-ratelimit-limit-requests-day": "100", "x-ratelimit-remaining-requests-day": "3"}
    assert parse_limits(day) is None


def test_no_limits_at_all() -> None:
    assert parse_limits({"content-type": "application/json"}) is None

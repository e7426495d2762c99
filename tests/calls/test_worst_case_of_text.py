"""A request of text alone does not pay for what can be charged beside it."""

from __future__ import annotations

import subprocess
import sys

PLAIN = """
import sys
import fastroute
from fastroute.testing import Provider

with Provider(models=["m"]) as provider:
    config = {
        "fastroute": {"ledger": ""},
        "providers": {"p": {"base_url": provider.base_url}},
        "endpoints": [{"provider": "p", "model": "m"}],
        "models": {"m": {"input_price": 1, "output_price": 1, "context_window": 8000}},
        "budgets": [{"name": "all", "limit": 5, "window": "total"}],
    }
    calls = []
    with fastroute.Client(config) as client:
        def note(frame, event, argument):
            file = frame.f_code.co_filename
            if event == "call" and file.endswith(("media.py", "media_tokens.py", "charges.py", "pricing.py")):
                calls.append(frame.f_code.co_name)

        sys.setprofile(note)
        client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}], max_tokens=5)
        sys.setprofile(None)
print(calls, "fastroute.providers.media_tokens" in sys.modules)
"""


def test_it_enters_none_of_that_code() -> None:
    done = subprocess.run([sys.executable, "-c", PLAIN], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] False"

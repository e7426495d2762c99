"""What `.ci/packagers` packs: calls over two wire formats, or the command line where there are arguments."""

from __future__ import annotations

import sys

import fastroute
from fastroute.testing import Provider


def main() -> None:
    if sys.argv[1:]:
        from fastroute import cli

        cli.main()
    # Two formats, because each is imported when its first provider is made.
    with Provider(process=True) as provider, Provider(format="anthropic") as other:
        tables = {
            "fastroute": {"ledger": "calls.db"},
            "policy": {"classifier": "task-tier"},
            "providers": {
                "a": {"base_url": provider.base_url},
                "b": {"base_url": other.base_url, "format": "anthropic"},
            },
            "endpoints": [{"provider": "a", "model": "m"}, {"provider": "b", "model": "n"}],
        }
        with fastroute.Client(tables) as client:
            for model in ("m", "n"):
                question = [{"role": "user", "content": "hello"}]
                reply = client.chat.completions.create(model=model, messages=question)
                assert reply.route is not None
                print(reply.route.endpoint, reply.choices[0].message.content)
            assert client.ledger is not None
            print("recorded", client.ledger.totals().calls)


if __name__ == "__main__":
    main()

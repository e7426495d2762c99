"""gevent: waiting for PostgreSQL keeps no other greenlet from going on."""

from __future__ import annotations

from pathlib import Path

from needs import need
from patched import run
from postgres_server import PostgresServer

from fastroute.testing import Provider

need("gevent")

HOLDER = """
import sys, time, psycopg
with psycopg.connect(sys.argv[1], autocommit=True) as own, psycopg.connect(sys.argv[1]) as other:
    other.execute("LOCK TABLE fastroute_attempts IN ACCESS EXCLUSIVE MODE")
    print(flush=True)
    while not own.execute("SELECT count(*) FROM pg_locks WHERE NOT granted").fetchone()[0]:
        time.sleep(0.01)
    print(flush=True)
    input()
"""

LOCKED = """
address, holder = sys.argv[1:]
ask()
client.ledger.flush()
other = subprocess.Popen(
    [sys.executable, "-c", holder, address], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
)
other.stdout.readline()
ask()
other.stdout.readline()  # the ledger's greenlet waits for the lock
for _ in range(20):
    ask()
healthy = client.ledger.health.ok
other.communicate(b"\\n")
client.ledger.flush(30)
found = client.ledger.totals().attempts
client.close()
print(json.dumps([healthy, found]))
"""


def test_a_postgresql_that_is_slow_stops_no_call(server: PostgresServer, tmp_path: Path) -> None:
    """Were the hub to wait, the lock would never be let go, and the ledger would give up."""
    address = server.new_schema()
    with Provider(models=["m"]) as provider:
        tables = {
            "fastroute": {"ledger": address, "timeout": 20.0},
            "providers": {"p": {"base_url": provider.base_url}},
            "endpoints": [{"provider": "p", "model": "m"}],
            "cache": {"enabled": False},
        }
        assert run(tmp_path, tables, LOCKED, address, HOLDER) == [True, 22]

"""gevent: waiting for Redis keeps no other greenlet from going on.

What ends the waiting is done by another greenlet, so were the hub to wait too, it would never end well.
"""

from __future__ import annotations

from pathlib import Path

from needs import need
from patched import run
from redis_server import RedisServer

from fastroute.testing import Provider

need("gevent")

STOPPED = """
server = int(sys.argv[1])
events = []
client.on(lambda event: events.append(event.shared), fastroute.events.SharingChanged)
ticks = []

def wake():
    while len(ticks) < 5:
        ticks.append(1)
        gevent.sleep(0.01)
    os.kill(server, signal.SIGCONT)

ask("first")
os.kill(server, signal.SIGSTOP)
waking = gevent.spawn(wake)
jobs = [gevent.spawn(ask, f"call-{n}") for n in range(60)]  # more than were leased
gevent.joinall([waking, *jobs], raise_error=True)
answers = [job.value.choices[0].message.content for job in jobs]
state = client.stats()["redis"]
client.close()
print(json.dumps([answers == [f"call-{n}" for n in range(60)], len(ticks), state["there"], events]))
"""


def test_a_redis_that_is_slow_stops_only_who_needs_it(redis: RedisServer, tmp_path: Path) -> None:
    assert redis.process is not None
    with Provider(models=["m"], latency=0.05) as provider:
        limits = {"rpm": 600, "burst": 100, "max_in_flight": 80}
        tables = redis.config(provider.base_url, timeout=10.0, limits=limits)
        assert run(tmp_path, tables, STOPPED, str(redis.process.pid)) == [True, 5, True, []]


AWAY = """
os.kill(int(sys.argv[1]), signal.SIGKILL)
jobs = [gevent.spawn(ask, f"call-{n}") for n in range(20)]
gevent.joinall(jobs, raise_error=True)
there = client.stats()["redis"]["there"]
with gevent.Timeout(20):
    client.close()
print(json.dumps([len(jobs), there]))
"""


def test_a_redis_that_is_away_hangs_nobody(tmp_path: Path) -> None:
    redis = RedisServer()
    try:
        assert redis.process is not None
        with Provider(models=["m"]) as provider:
            tables = redis.config(provider.base_url, limits={"rpm": 600, "burst": 100})
            assert run(tmp_path, tables, AWAY, str(redis.process.pid)) == [20, False]
    finally:
        redis.close()

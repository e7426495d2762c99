"""Damages what is stored and read again: bytes at random places become 0, 255 or random, parts are cut off.

    python -m tests.soak.stored --rounds 20000
    python -m tests.soak.stored --only keys --seed 7

Each round makes one to four damages. What is read may be an error of fastroute or what is still intact, never
another exception. The seed is printed; it repeats the run.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

_TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(_TESTS)]

from attrs import evolve  # noqa: E402

import fastroute  # noqa: E402
from fastroute import errors  # noqa: E402
from fastroute.config import price_update  # noqa: E402
from fastroute.config.catalog import Catalog  # noqa: E402
from fastroute.gateway.keyring import Keyring, KeysUnavailable  # noqa: E402
from fastroute.gateway.keys import Caller, KeyFile  # noqa: E402
from fastroute.ledger import Ledger  # noqa: E402
from fastroute.ledger import journal as journals  # noqa: E402
from fastroute.types import Attempt  # noqa: E402


def damaged(data: bytes, chance: random.Random) -> bytes:
    """The data with one to four damages."""
    found = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        kind = chance.randrange(6)
        at = chance.randrange(max(len(found), 1))
        if kind < 3 and found:
            found[at] = (0, 255, chance.randrange(256))[kind]
        elif kind == 3:
            length = chance.choice((1, 8, 100, 4096))
            found[at : at + length] = chance.randbytes(len(found[at : at + length]))
        elif kind == 4 and chance.random() < 0.2:
            del found[at:]
        else:
            source = chance.randrange(max(len(found), 1))
            found[at : at + 16] = found[source : source + len(found[at : at + 16])]
    return bytes(found)


def keys(chance: random.Random, folder: Path, rounds: int) -> Counter[str]:
    """Damages a key file; who is found has the settings that were stored under that name."""
    file = KeyFile(folder / "keys.db")
    callers = [
        Caller(
            f"caller-{number}",
            rpm=number * 10 or None,
            budgets={"day": 5.0},
            tags={"team": f"t{number}"},
            models=("auto", f"model-{number}") if number % 2 else None,
        )
        for number in range(20)
    ]
    tokens = [file.create(caller).encode() for caller in callers]
    stored = {caller.name: caller for caller in callers}
    good = Path(file.path).read_bytes()
    counts: Counter[str] = Counter()
    for _ in range(rounds):
        Path(file.path).write_bytes(damaged(good, chance))
        try:
            keyring = Keyring(file)
        except errors.ConfigError:
            counts["file refused"] += 1
            continue
        for token in tokens:
            try:
                found = keyring.find(token)
                counts["refused" if found is None else "found"] += 1
                assert found is None or evolve(found, created=0.0) == stored[found.name]
            except KeysUnavailable:
                counts["damaged"] += 1
    return counts


def journal(chance: random.Random, folder: Path, rounds: int) -> Counter[str]:
    """Damages a segment of a ledger's journal; entries that are read are those that were written.

    If one is missing, what was spent is unknown.
    """
    total = 20
    good = b"".join(journals.encode(_attempt(n)) for n in range(total))
    counts: Counter[str] = Counter()
    path = folder / "ledger.db"
    for number in range(rounds):
        with Ledger(path):
            pass
        segment = Path(f"{path}.journal/1-{number}-1{journals.SUFFIX}")
        segment.write_bytes(damaged(good, chance))
        with Ledger(path) as ledger:
            found = {entry.id: entry.cost_nano for entry in ledger.entries(None)}
            assert all(found[name] == int(name) for name in found), found
            try:
                spent = ledger.spent()
                counts["read"] += 1
                counts["cut off"] += len(found) < total
                assert spent == sum(found.values())
            except errors.LedgerError:
                counts["said to be damaged"] += 1
            ledger.append(_attempt(total))
        for left in (*folder.glob("ledger.db*"), *folder.glob("ledger.db.journal/*")):
            if left.is_file():
                left.unlink()
    return counts


def database(chance: random.Random, folder: Path, rounds: int) -> Counter[str]:
    """Damages a ledger's database; reports succeed, or fail as errors of the ledger; entries can be added."""
    path = folder / "ledger.db"
    with Ledger(path) as ledger:
        for n in range(200):
            ledger.append(_attempt(n))
    good = path.read_bytes()
    counts: Counter[str] = Counter()
    for _ in range(rounds):
        path.write_bytes(damaged(good, chance))
        reports: tuple[Callable[[Ledger], object], ...] = (
            lambda ledger: ledger.spent(),
            lambda ledger: ledger.totals(),
            lambda ledger: ledger.by("day", "model", "tag:team"),
            lambda ledger: ledger.entries(),
            lambda ledger: ledger.append(_attempt(1000)),
        )
        try:
            with Ledger(path) as ledger:
                for report in reports:
                    try:
                        report(ledger)
                        counts["read"] += 1
                    except errors.LedgerError:
                        counts["said to be damaged"] += 1
        except errors.ConfigError:
            counts["refused"] += 1
        for left in folder.glob("ledger.db*"):
            if left.is_file():
                left.unlink()
    return counts


def _attempt(n: int) -> Attempt:
    return Attempt(
        id=str(n),
        call_id=f"call-{n}",
        time=1_700_000_000.0 + n,
        endpoint="openai/gpt-4.1",
        provider="openai",
        model="gpt-4.1",
        cost_nano=n,
        prompt_tokens=10,
        latency=0.1,
        tags={"team": f"t{n % 3}"},
    )


def catalogue(chance: random.Random, folder: Path, rounds: int) -> Counter[str]:
    """Damages a catalogue file, and the file and the source of a price update.

    Either all of a file is used or none of it; prices that are used are possible ones.
    """
    whole = (Path(fastroute.__file__).parent / "config" / "data" / "catalog.toml").read_bytes()
    good = b"\n[models.".join(whole.split(b"\n[models.")[:5])
    used, source = folder / "catalog.toml", folder / "source.toml"
    counts: Counter[str] = Counter()
    for number in range(rounds):
        used.write_bytes(damaged(good, chance) if number % 4 < 2 else good)
        source.write_bytes(damaged(good, chance) if number % 4 == 2 else good)
        before = used.read_bytes()
        try:
            models = Catalog.builtin().with_file(used).models.values()
            assert all(0 <= (model.input_price or 0) <= 10**14 for model in models)
            counts["read"] += 1
        except errors.ConfigError:
            assert number % 4 < 2
            counts["refused"] += 1
        try:
            price_update.update(used, price_update.from_file(source))
            Catalog.builtin().with_file(used)
            counts["updated"] += 1
        except errors.ConfigError:
            assert number % 4 < 3
            assert used.read_bytes() == before
            counts["kept"] += 1
    return counts


def redis(chance: random.Random, folder: Path, rounds: int) -> Counter[str]:
    """Damages values in a Redis server that two machines share."""
    from redis_machines import Machines
    from redis_server import RedisServer

    from fastroute.state.redis import Shared

    Shared.ensure = lambda self: None  # type: ignore[method-assign]
    server = RedisServer()
    machines = Machines(server)
    try:
        return values_in_redis(chance, machines, server, rounds)
    finally:
        machines.close()
        server.close()


def values_in_redis(chance: random.Random, machines: Any, server: Any, rounds: int) -> Counter[str]:
    """Damages values of any key; calls are admitted up to the limit, and money is never spent twice.

    Args:
        machines: makes clients whose threads stand still.
    """
    limits = {"rpm": 600_000, "burst": 100_000, "tpm": 60_000_000, "max_in_flight": 8}
    budgets = [{"name": "soft", "limit": 1e6, "window": "day", "hard": False}]
    clients = [machines.client(limits=limits, budgets=budgets) for _ in range(2)]
    cores = [client.runtime.generation.state.endpoints[0].core for client in clients]
    counts: Counter[str] = Counter()
    with server.connect(encoding_errors="replace") as connection:
        for _ in range(rounds):
            keys = sorted(key for key in connection.scan_iter("*") if "done" not in key)
            for key in chance.sample(keys, min(len(keys), 2)):
                _damage_key(connection, key, chance)
            for client, core in zip(clients, cores):
                held = [core.admit(10) for _ in range(2)]
                for ticket in held:
                    assert ticket >= 0, -ticket & 7
                    core.finish(ticket, 0, 0.01)
                counts["calls"] += len(held)
                client.runtime.generation.budgets.reserve(1000, {}, 60).settle(1000)
                shared = client.runtime.shared
                shared.settle()
                shared.beat()
                assert shared.connection.there, shared.connection.reason
                counts["reports"] += bool(client.stats())
            assert max(core.in_flight for core in cores) == 0
    return counts


def _damage_key(connection: Any, key: str, chance: random.Random) -> None:
    """Damages a value, or a field of a hash, or makes the key one of another kind."""
    if chance.random() < 0.1:
        connection.delete(key)
        chance.choice((connection.rpush, connection.sadd, connection.set))(key, chance.randbytes(8))
    elif connection.type(key) == "hash":
        fields = connection.hgetall(key)
        field = chance.choice(sorted(fields))
        # Under another name, a machine and its permits are another machine's until they expire.
        renamed = chance.random() < 0.2 and "permits" not in key and "machines" not in key
        name = damaged(field.encode(), chance) if renamed else field
        connection.hset(key, name, _damaged_word(fields[field].encode(), chance))
    elif connection.type(key) == "string":
        connection.set(key, _damaged_word(connection.get(key).encode(), chance))


_WORDS = (b"", b"nan", b"-inf", b"1e309", b"-1", b"0x7f", b"9" * 19, b"9" * 400, b"1 2 3", b"\0", b"\xff\xfe")


def _damaged_word(value: bytes, chance: random.Random) -> bytes:
    kind = chance.random()
    if kind < 0.5:
        return damaged(value, chance)
    if kind < 0.8:
        return chance.choice(_WORDS)
    words = value.split(b" ")
    words[chance.randrange(len(words))] = chance.choice(_WORDS)
    return b" ".join(words)


PARTS: dict[str, Callable[[random.Random, Path, int], Counter[str]]] = {
    "keys": keys,
    "journal": journal,
    "database": database,
    "catalogue": catalogue,
    "redis": redis,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=20_000, help="damages of each part")
    parser.add_argument("--only", choices=PARTS, help="only this part")
    parser.add_argument("--seed", type=int, default=None)
    options = parser.parse_args()
    seed = random.randrange(2**32) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    for name, part in PARTS.items():
        if options.only in (None, name):
            started = time.monotonic()
            with tempfile.TemporaryDirectory() as folder:
                counts = part(random.Random(seed), Path(folder), options.rounds)
            took = time.monotonic() - started
            shown = ", ".join(f"{count:,} {what}" for what, count in sorted(counts.items()))
            print(f"{name}: {options.rounds:,} damages in {took:.0f} s: {shown}", flush=True)


if __name__ == "__main__":
    main()

"""Mutation test: changes the code in one place at a time and looks whether a test fails.

``python tools/mutate.py`` runs a fixed sample of mutants over the modules of `ROOMS`, and prints the score of
each module and the mutants that no test noticed. It needs ``pip install -e '.[mutate]'`` and a built core.

Nothing in the project's folder is changed: the mutants are made in a copy of it below ``--work``. The first
run records there which tests run which lines and how long they take (all of `TESTS` once, a quarter of an
hour on a machine of its own). Later runs record the test files that have changed since; ``--record`` records
all of them again. A mutant meets the tests that run its lines, the quick ones of its own room first, until
one fails. That test must pass without the mutation, or it does not count. ``--resume`` runs those again that
were not killed the last time.

The sample consists of the mutants with the smallest hashes of seed, file, function, line and change. It
therefore stays the same when other code changes. Mutants that change nothing that can be seen are listed in
``mutate_equivalents.toml`` with a reason each, and left out of the score.

No mutation tester from the package index does this: cosmic-ray runs one command for all mutants and knows no
sample; mutmut wraps each function, which changes the frames that the tests of interrupts and schedules trace,
and forks a process that has threads.
"""

from __future__ import annotations

import argparse
import ast
import collections
import difflib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TOP = Path(__file__).resolve().parents[1]
ROOMS = ("fastroute/calls", "fastroute/budget", "fastroute/state", "fastroute/gateway/limits.py")
TESTS = ("budget", "calls", "client", "faults", "gateway", "integrations", "quality", "routing", "runtime")
TESTS += ("state",)
QUICK = 4.0
"""Seconds of tests that a mutant meets at first, in one process: most are killed by them."""
MARK = "MUTATE_RUN"
"""A variable in the environment of all processes of a run, to find those that a killed test left behind."""

SWAPS: dict[type[ast.AST], tuple[str, str]] = {
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"),
    ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
    ast.And: ("and", "or"),
    ast.Or: ("or", "and"),
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "*"),
    ast.LShift: ("<<", ">>"),
    ast.RShift: (">>", "<<"),
    ast.BitAnd: ("&", "|"),
    ast.BitOr: ("|", "&"),
}
CALLS = {"min": "max", "max": "min", "any": "all", "all": "any"}


KEY = ("file", "function", "before", "after")


@dataclass(frozen=True)
class Mutant:
    """One change of one file."""

    file: str
    function: str
    line: int
    last_line: int
    before: str
    """The first changed line, without its indentation."""
    after: str
    start: int
    """Where the replaced text starts and ends, in bytes."""
    end: int
    text: str
    at_import: bool
    """Its line runs when the module is imported, so no test is recorded for it."""

    @property
    def key(self) -> tuple[str, ...]:
        """What names it in the list of equivalents, whatever its line is."""
        return tuple(getattr(self, name) for name in KEY)

    def place(self, seed: int) -> bytes:
        return hashlib.sha256(repr((seed, *self.key)).encode()).digest()


class Mutations(ast.NodeVisitor):
    """Finds the mutants of one file."""

    def __init__(self, file: str, source: bytes) -> None:
        self.found: list[Mutant] = []
        self._file = file
        self._source = source
        self._starts = [0]
        for line in source.splitlines(keepends=True):
            self._starts.append(self._starts[-1] + len(line))
        self._functions: list[str] = []
        self._depth = 0  # of functions: 0 is run at import
        self.visit(ast.parse(source))

    def _span(self, node: Any) -> tuple[int, int]:
        return (
            self._starts[node.lineno - 1] + node.col_offset,
            self._starts[node.end_lineno - 1] + node.end_col_offset,
        )

    def _add(self, node: Any, start: int, end: int, text: str) -> None:
        # The lines below keep their numbers, which some tests and all tracebacks show.
        text += "\\\n" * (self._source.count(b"\n", start, end) - text.count("\n"))
        row = self._source.count(b"\n", 0, start)
        begin = self._starts[row]
        finish = self._source.find(b"\n", end)
        before = self._source[begin:finish].decode()
        after = (self._source[begin:start] + text.encode() + self._source[end:finish]).decode()
        self.found.append(
            Mutant(
                file=self._file,
                function=".".join(self._functions),
                line=node.lineno,
                last_line=node.end_lineno,
                before=" ".join(before.split()),
                after=" ".join(after.replace("\\\n", "").split()),
                start=start,
                end=end,
                text=text,
                at_import=self._depth == 0,
            )
        )

    def _replace(self, node: Any, text: str) -> None:
        self._add(node, *self._span(node), text)

    def _negate(self, test: Any) -> None:
        start, end = self._span(test)
        self._add(test, start, end, f"(not ({self._source[start:end].decode()}))")

    def _swap(self, node: Any, operator: ast.AST, left: Any, right: Any) -> None:
        if type(operator) not in SWAPS:
            return
        old, new = SWAPS[type(operator)]
        start, end = self._span(left)[1], self._span(right)[0]
        pattern = rb"(?<![\w<>=!*/])" + re.escape(old.encode()).replace(rb"\ ", rb"\s+") + rb"(?![\w<>=*/])"
        found = re.search(pattern, self._source[start:end])
        if found:
            self._add(node, start + found.start(), start + found.end(), new)

    def _function(self, node: Any) -> None:
        self._functions.append(node.name)
        self._depth += 1
        defaults = [*node.args.defaults, *(default for default in node.args.kw_defaults if default)]
        for part in (*defaults, *node.body):
            self.visit(part)
        self._depth -= 1
        self._functions.pop()

    visit_FunctionDef = visit_AsyncFunctionDef = _function

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._functions.append(node.name)
        for part in node.body:
            self.visit(part)
        self._functions.pop()

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)  # an annotation does nothing

    def visit_Assign(self, node: ast.Assign) -> None:
        names = [target.id for target in node.targets if isinstance(target, ast.Name)]
        if "__slots__" in names or "__all__" in names:
            return
        if any(isinstance(target, (ast.Attribute, ast.Subscript)) for target in node.targets):
            self._replace(node, "pass")
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        if type(node.op) in SWAPS:
            old, new = SWAPS[type(node.op)]
            start, end = self._span(node.target)[1], self._span(node.value)[0]
            place = start + self._source[start:end].index(old.encode() + b"=")
            self._add(node, place, place + len(old), new if new != "/" else "//")
        self.visit(node.value)

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Constant):
            return  # a docstring
        if isinstance(node.value, ast.Call):
            self._replace(node, "pass")
        self.generic_visit(node)

    def visit_If(self, node: Any) -> None:
        self._negate(node.test)
        self.generic_visit(node)

    visit_IfExp = visit_If

    def visit_While(self, node: ast.While) -> None:
        if not isinstance(node.test, ast.Constant):
            self._negate(node.test)
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        for operator, left, right in zip(node.ops, [node.left, *node.comparators], node.comparators):
            self._swap(node, operator, left, right)
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        for left, right in zip(node.values, node.values[1:]):
            self._swap(node, node.op, left, right)
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        if not isinstance(node.left, (ast.JoinedStr, ast.List, ast.Tuple)):  # would raise TypeError
            self._swap(node, node.op, node.left, node.right)
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, (ast.Not, ast.USub)):
            start, end = self._span(node.operand)
            self._replace(node, f"({self._source[start:end].decode()})")
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        value = node.value
        if isinstance(value, bool):
            self._replace(node, str(not value))
        elif isinstance(value, (int, float)):
            self._replace(node, repr(value + 1))
        elif isinstance(value, str) and re.fullmatch(r"[A-Za-z_][\w-]*", value):  # names, not prose
            self._replace(node, repr(value + "X"))

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        pass  # prose

    def visit_Call(self, node: ast.Call) -> None:
        if isinstance(node.func, ast.Name) and node.func.id in CALLS:
            self._replace(node.func, CALLS[node.func.id])
        if isinstance(node.func, ast.Name) and node.func.id in ("TypeVar", "NewType", "cast"):
            return
        self.generic_visit(node)

    def visit_Return(self, node: ast.Return) -> None:
        if node.value is not None and not (isinstance(node.value, ast.Constant) and node.value.value is None):
            self._replace(node.value, "None")
            self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> None:
        self._replace(node, "pass")
        self.generic_visit(node)

    def visit_Break(self, node: ast.Break) -> None:
        self._replace(node, "continue")

    def visit_Continue(self, node: ast.Continue) -> None:
        self._replace(node, "break")

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        if node.type is not None:
            self._replace(node.type, "()")  # catches nothing
        for part in node.body:
            self.visit(part)


def mutants_of(top: Path) -> Iterator[Mutant]:
    """All mutants of `ROOMS`, each once."""
    for room in ROOMS:
        paths = [top / room] if room.endswith(".py") else sorted((top / room).rglob("*.py"))
        for path in paths:
            seen = set()
            for mutant in Mutations(path.relative_to(top).as_posix(), path.read_bytes()).found:
                if mutant.key not in seen:  # a line that a function has twice is changed at its first place
                    seen.add(mutant.key)
                    yield mutant


Lines = dict[str, dict[str, list[str]]]
"""By file and line, the tests that run it."""


def packed(lines: Lines) -> dict[str, Any]:
    """The same with each test's name once."""
    names = sorted({test for rows in lines.values() for tests in rows.values() for test in tests})
    places = {name: place for place, name in enumerate(names)}
    numbered = {
        file: {row: [places[test] for test in tests] for row, tests in rows.items()}
        for file, rows in lines.items()
    }
    return {"names": names, "lines": numbered}


def unpacked(record: dict[str, Any]) -> Lines:
    names = record["names"]
    return {
        file: {row: [names[place] for place in places] for row, places in rows.items()}
        for file, rows in record["lines"].items()
    }


class Recorder:
    """A pytest plugin: writes which tests run which lines of `ROOMS`, and how long each test takes."""

    def __init__(self, folder: Path) -> None:
        import coverage

        self._folder = folder
        self._seconds: dict[str, float] = collections.defaultdict(float)
        self._failed: set[str] = set()
        include = [f"{room}" if room.endswith(".py") else f"{room}/*" for room in ROOMS]
        self._coverage = coverage.Coverage(str(folder / "coverage"), config_file=False, include=include)
        # Warnings are errors here, and some tests trace lines themselves.
        self._coverage.set_option("run:disable_warnings", ["trace-changed", "no-data-collected"])
        self._coverage.start()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._coverage.switch_context(nodeid)

    def pytest_runtest_logreport(self, report: Any) -> None:
        self._seconds[report.nodeid] += report.duration
        if report.failed:
            self._failed.add(report.nodeid)

    def pytest_unconfigure(self) -> None:
        self._coverage.stop()
        data = self._coverage.get_data()
        lines: Lines = {}
        for file in data.measured_files():
            name = Path(file).relative_to(Path.cwd()).as_posix()
            lines[name] = {
                str(line): sorted(
                    test for test in tests if test in self._seconds and test not in self._failed
                )
                for line, tests in data.contexts_by_lineno(file).items()
            }
        part = {"seconds": self._seconds, "lines": packed(lines)}
        (self._folder / "part.json").write_text(json.dumps(part))


def pytest_configure(config: Any) -> None:
    """Makes this file a plugin, for `record`."""
    config.pluginmanager.register(Recorder(Path(os.environ[MARK])), "mutate-recorder")


class Workshop:
    """The copy of the project in which mutants are made, and the record of its tests."""

    def __init__(self, work: Path, again: bool, most: float) -> None:
        self.folder = work
        self._most = most
        self.copy = work / "copy"
        work.mkdir(parents=True, exist_ok=True)
        left_out = shutil.ignore_patterns(
            ".git", "build", "dist", "__pycache__", ".*_cache", ".hypothesis", "*.db"
        )
        shutil.rmtree(self.copy, ignore_errors=True)
        shutil.copytree(TOP, self.copy, ignore=left_out)
        self._written = 0
        path = work / "record.json"
        record = json.loads(path.read_text()) if path.exists() and not again else {}
        self._seconds: dict[str, float] = record.get("seconds", {})
        self._lines = unpacked(record["lines"]) if record else {}
        self._follow(record.get("sources", {}))
        self._record(record.get("hashes", {}))
        sources = {name: (self.copy / name).read_text() for name in self._lines}
        record = {"seconds": self._seconds, "sources": sources, "hashes": self._hashes}
        path.write_text(json.dumps({**record, "lines": packed(self._lines)}))

    def _follow(self, sources: dict[str, str]) -> None:
        """Gives recorded lines their new numbers; lines that have changed get their neighbours' tests."""
        for name, old in sources.items():
            rows = self._lines.pop(name)
            if not (self.copy / name).exists():
                continue
            new = (self.copy / name).read_text()
            moved = self._lines[name] = {}
            matcher = difflib.SequenceMatcher(None, old.splitlines(), new.splitlines(), autojunk=False)
            for _, start, stop, first, end in matcher.get_opcodes():
                if stop - start == end - first:
                    for row in range(start, stop):
                        if str(row + 1) in rows:
                            moved[str(first + row - start + 1)] = rows[str(row + 1)]
                else:
                    tests = {test for row in range(start, stop + 1) for test in rows.get(str(row + 1), ())}
                    moved.update((str(row + 1), sorted(tests)) for row in range(first, end))

    def _record(self, hashes: dict[str, str]) -> None:
        """Runs the test files that are new or have changed, and records what they run."""
        files = [path for name in TESTS for path in sorted((self.copy / "tests" / name).rglob("test_*.py"))]
        self._hashes = {
            path.relative_to(self.copy).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in files
        }
        changed = [name for name, digest in self._hashes.items() if hashes.get(name) != digest]
        gone = {*changed, *(hashes.keys() - self._hashes.keys())}
        self._seconds = {test: s for test, s in self._seconds.items() if test.partition("::")[0] not in gone}
        if not changed:
            return
        print(f"recording which lines {len(changed)} test files run …", flush=True)
        path = self.folder / "part.json"
        path.unlink(missing_ok=True)
        self.run(changed, 7200, "-p", "mutate", "-q")
        part = json.loads(path.read_text())
        self._seconds.update(part["seconds"])
        lines = unpacked(part["lines"])
        for name in self._lines.keys() | lines.keys():
            rows = self._lines.setdefault(name, {})
            new = lines.get(name, {})
            for row in rows.keys() | new.keys():
                rows[row] = [test for test in rows.get(row, ()) if test.partition("::")[0] not in gone]
                rows[row] += new.get(row, [])

    def write(self, file: str, content: bytes) -> None:
        """Replaces a file's content; the time of change tells Python that its cached bytecode is old."""
        path = self.copy / file
        path.write_bytes(content)
        self._written += 1
        os.utime(path, (2_000_000_000 + self._written, 2_000_000_000 + self._written))

    def tests_of(self, mutant: Mutant) -> list[str]:
        """The tests that run a mutant's lines, the best first.

        What runs at import, or in another process only, is recorded for no test: then all tests of the file.
        """
        by_line = self._lines.get(mutant.file, {})
        found: set[str] = set()
        if not mutant.at_import:
            rows = range(mutant.line, mutant.last_line + 1)
            found = {test for row in rows for test in by_line.get(str(row), ())}
        found = found or {test for tests in by_line.values() for test in tests}
        room = f"tests/{mutant.file.split('/')[1]}/"
        near: set[str] = set()
        if mutant.at_import:
            # Those of files that import the module are the first that may need it.
            near = self._importers(mutant.file)
            found |= {test for test in self._seconds if test.partition("::")[0] in near}
        return sorted(
            found,
            key=lambda test: (
                test.partition("::")[0] not in near,
                not test.startswith(room),
                self._seconds[test],
            ),
        )

    def _importers(self, file: str) -> set[str]:
        """The test files that import a module by its name."""
        path = Path(file)
        name = path.parent.name if path.stem == "__init__" else path.stem
        imports = re.compile(rf"^(?:from|import) .*\b{name}\b", re.MULTILINE)
        return {test for test in self._hashes if imports.search((self.copy / test).read_text())}

    def batches(self, tests: list[str]) -> Iterator[tuple[list[str], float]]:
        """The tests in the portions in which they are run, each with its seconds."""
        total, portion, seconds, limit = 0.0, [], 0.0, QUICK
        for test in tests:
            # What a test takes alone, with its module's imports.
            takes = self._seconds[test] + 0.02
            if total + takes > self._most:
                break
            if portion and seconds + takes > limit:
                yield portion, seconds
                portion, seconds, limit = [], 0.0, self._most
            portion.append(test)
            seconds += takes
            total += takes
        if portion:
            yield portion, seconds

    def run(self, tests: list[str], limit: float, *options: str) -> tuple[int | None, str]:
        """Runs tests in the copy until one fails; None for the status if it took longer than the limit."""
        # Short, because paths of sockets must be.
        scratch = tempfile.mkdtemp(prefix="mutate-")
        names = Path(scratch, "tests")
        names.write_text("\n".join(tests))
        mark = str(self.folder)
        paths = os.pathsep.join([str(self.copy), str(self.copy / "tools")])
        environment = {**os.environ, "PYTHONPATH": paths, "TMPDIR": scratch, MARK: mark}
        # Importing the plugins that are not used takes longer than most tests.
        environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
        command = ["nice", sys.executable, "-m", "pytest"]
        command += ["-p", "no:cacheprovider", "-p", "_hypothesis_pytestplugin"]
        process = subprocess.Popen(
            [*command, *(options or ("-x", "--tb=no")), f"@{names}"],
            cwd=self.copy,
            env=environment,
            stdout=subprocess.PIPE if not options else None,
            stderr=subprocess.STDOUT if not options else None,
            start_new_session=True,
            text=True,
            errors="replace",
        )
        try:
            output, _ = process.communicate(timeout=limit)
            return process.returncode, output or ""
        except subprocess.TimeoutExpired:
            return None, ""
        finally:
            _end(process.pid, mark)
            process.wait()
            shutil.rmtree(scratch, ignore_errors=True)

    def verdict(self, mutant: Mutant) -> tuple[str, str]:
        """What came of a mutant: killed, survived or not covered; and the test that killed it."""
        original = (self.copy / mutant.file).read_bytes()
        mutated = original[: mutant.start] + mutant.text.encode() + original[mutant.end :]
        tests = self.tests_of(mutant)
        if not tests:
            return "not covered", ""
        for portion, seconds in self.batches(tests):
            while portion:
                limit = 30 + 5 * seconds
                self.write(mutant.file, mutated)
                try:
                    status, output = self.run(portion, limit)
                finally:
                    self.write(mutant.file, original)
                if status == 0:
                    break
                failed = re.findall(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", output, re.MULTILINE)
                if status is None or not failed:
                    # Past its time; or the module cannot be imported, or has crashed the interpreter.
                    return "killed", "time limit" if status is None else f"exit status {status}"
                if failed[0] not in portion or self.run(failed[:1], limit)[0] == 0:
                    return "killed", failed[0]
                # It fails without the mutation too: a victim of the machine's load.
                portion = portion[portion.index(failed[0]) + 1 :]
        return "survived", ""


def _end(group: int, mark: str) -> None:
    """Ends what tests have left behind: the process group, and what has left it but has its environment."""
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        pass
    wanted = f"{MARK}={mark}".encode()
    for path in Path("/proc").glob("[0-9]*/environ"):
        pid = int(path.parent.name)
        try:
            if pid != os.getpid() and wanted in path.read_bytes().split(b"\0"):
                os.kill(pid, signal.SIGKILL)
        except OSError:
            pass  # has ended, or is another user's


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sample", type=int, default=150, help="how many mutants (default 150); 0 for all")
    parser.add_argument("--seed", type=int, default=1, help="which mutants (default 1)")
    parser.add_argument("--only", default="", help="a pattern: only the sample's mutants of such files")
    parser.add_argument(
        "--work", type=Path, default=TOP / "build" / "mutate", help="folder for the copy and the record"
    )
    parser.add_argument("--record", action="store_true", help="record again which tests run which lines")
    # Some lines are run by thousands of tests.
    parser.add_argument("--most", type=float, default=60.0, help="seconds of tests that a mutant meets")
    parser.add_argument("--resume", action="store_true", help="keep the last results of killed mutants")
    parser.add_argument("--list", action="store_true", help="print the sample and end")
    parser.add_argument(
        "--json", type=Path, help="file for the results; default: results.json in the work folder"
    )
    options = parser.parse_args()

    with open(Path(__file__).with_name("mutate_equivalents.toml"), "rb") as file:
        listed = tomllib.load(file)["equivalent"]
    equivalents = {tuple(row[name] for name in KEY) for row in listed}
    everything = list(mutants_of(TOP))
    unknown = equivalents - {mutant.key for mutant in everything}
    for key in sorted(unknown):
        print("mutate_equivalents.toml lists a mutant that no longer exists:", *key, sep="\n    ")
    chosen = sorted(
        (mutant for mutant in everything if mutant.key not in equivalents),
        key=lambda mutant: mutant.place(options.seed),
    )[: options.sample or None]
    chosen = [mutant for mutant in chosen if re.search(options.only, mutant.file)]
    print(f"{len(chosen)} of {len(everything)} mutants, {len(equivalents)} equivalent ones left out")
    if options.list:
        for mutant in chosen:
            print(f"{mutant.file}:{mutant.line} {mutant.before}  →  {mutant.after}")
        return 0

    workshop = Workshop(options.work.resolve(), options.record, options.most)
    results: list[dict[str, Any]] = []
    path = options.json or workshop.folder / "results.json"
    known = json.loads(path.read_text())["results"] if options.resume and path.exists() else []
    killed = {tuple(row[name] for name in KEY): row for row in known if row["verdict"] == "killed"}
    for number, mutant in enumerate(chosen, 1):
        if mutant.key in killed:
            results.append(killed[mutant.key])
            continue
        began = time.monotonic()
        verdict, test = workshop.verdict(mutant)
        results.append({**asdict(mutant), "verdict": verdict, "test": test})
        path.write_text(json.dumps({"seed": options.seed, "results": results}, indent=1))
        where = f"{mutant.file}:{mutant.line}"
        print(f"{number:4} {verdict:11} {time.monotonic() - began:5.1f} s  {where}  {test}", flush=True)
        if verdict != "killed":
            print(f"       {mutant.function}\n       - {mutant.before}\n       + {mutant.after}", flush=True)
    table: dict[str, list[int]] = {}
    for result in results:
        for name in (result["file"], "all"):
            row = table.setdefault(name, [0, 0])
            row[0] += result["verdict"] == "killed"
            row[1] += 1
    for name, (killed, count) in sorted(table.items(), key=lambda item: (item[0] == "all", item[0])):
        print(f"{killed:4} of {count:4}  {100 * killed / count:5.1f} %  {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

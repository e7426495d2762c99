"""Runs the tests on every supported Python version that is installed: ``nox``."""

import nox

nox.options.error_on_missing_interpreters = False


@nox.session(python=["3.10", "3.11", "3.12", "3.13"])
def tests(session: nox.Session) -> None:
    session.install("-e", ".[test]")
    session.run("pytest", *session.posargs)


@nox.session
def typing(session: nox.Session) -> None:
    """The package, and calls as typed programs make them, with and without mistakes."""
    session.install("-e", ".[lint]")
    session.run("mypy")
    session.run("mypy", "--strict", "tests/typing")
    session.run("pyright")

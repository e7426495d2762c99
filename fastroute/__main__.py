"""``python -m fastroute``: the command line without an installed script."""

from fastroute.cli import main

main()

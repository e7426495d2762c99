"""A command is imported when it is used."""

from PyInstaller.utils.hooks import collect_submodules

hiddenimports = collect_submodules("fastroute.cli", on_error="ignore")

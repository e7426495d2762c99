"""A wire format is imported when its first provider is made; the catalogue and rule sets are files."""

from PyInstaller.utils.hooks import collect_data_files, collect_submodules

hiddenimports = collect_submodules("fastroute.providers")
datas = collect_data_files("fastroute")

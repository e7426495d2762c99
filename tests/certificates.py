"""Keys and certificates for local TLS servers, made by openssl as a test needs them."""

from __future__ import annotations

import subprocess
from pathlib import Path

from needs import need

AUTHORITY = """
[ca]
default_ca = here
[here]
database = index
serial = serial
new_certs_dir = .
policy = any
default_md = sha256
[any]
commonName = supplied
[names]
subjectAltName = {name}
"""


def certificate(folder: Path, name: str = "IP:127.0.0.1", end: str = "20990101000000Z") -> tuple[Path, Path]:
    """A key and a certificate that it has signed itself."""
    need("openssl")
    (folder / "ca.cnf").write_text(AUTHORITY.format(name=name))
    (folder / "index").write_text("")
    (folder / "serial").write_text("01")
    for command in (
        "openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=x "
        "-keyout key.pem -out request.pem",
        "openssl ca -batch -config ca.cnf -selfsign -keyfile key.pem -in request.pem -out cert.pem "
        f"-startdate 20200101000000Z -enddate {end} -extensions names -notext",
    ):
        subprocess.run(command, shell=True, check=True, capture_output=True, cwd=folder)
    return folder / "key.pem", folder / "cert.pem"

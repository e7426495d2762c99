"""Builds the native extension; everything else about the package is in pyproject.toml.

Three environment variables select other builds, for developers:

- ``FASTROUTE_ASAN=1``      address and undefined-behaviour sanitizers, no optimisation beyond -O1
- ``FASTROUTE_TRACE=1``     line tracing, so that coverage sees the Cython lines
- ``FASTROUTE_ANNOTATE=1``  writes ``fastroute/_core.html``, which shows the calls of Python
"""

import os

from Cython.Build import cythonize
from setuptools import Extension, setup

asan = os.environ.get("FASTROUTE_ASAN") == "1"
trace = os.environ.get("FASTROUTE_TRACE") == "1"

# Without fused multiply-adds, so that a score has the same bits on every processor.
compile_args = ["-std=c11", "-fno-strict-aliasing", "-fstack-protector-strong", "-ffp-contract=off"]
link_args: list[str] = []
if asan:
    sanitizers = ["-fsanitize=address,undefined", "-fno-omit-frame-pointer"]
    compile_args += ["-O1", "-g", *sanitizers]
    link_args += sanitizers
else:
    compile_args += ["-O3", "-g0"]  # debug symbols: a third of the build time, ten times its size

setup(
    ext_modules=cythonize(
        [
            Extension(
                "fastroute._core",
                ["fastroute/_core.pyx"],
                depends=[
                    "fastroute/core/" + name
                    for name in sorted(os.listdir("fastroute/core"))
                    if name.endswith((".pxi", ".h"))
                ],
                include_dirs=["fastroute/core"],
                extra_compile_args=compile_args,
                extra_link_args=link_args,
                define_macros=[("CYTHON_TRACE_NOGIL", "1")] if trace else [],
            )
        ],
        annotate=os.environ.get("FASTROUTE_ANNOTATE") == "1",
        compiler_directives={"linetrace": trace},
    )
)

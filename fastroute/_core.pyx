# cython: language_level=3, freethreading_compatible=True, embedsignature=True, embedsignature.format=clinic
# cython: binding=False, initializedcheck=False, cdivision=True, auto_pickle=False, autotestdict=False
"""The native core: routing state and arithmetic in C.

Units: times are integer nanoseconds on CLOCK_MONOTONIC (a ``now`` of 0 means: read the clock here), latencies
are float seconds, prices integer nano-dollars per million tokens.

Concurrency: all state lives in 64-byte cells of one mapping that forked workers share. Every update is one
compare-and-swap, or harmless if the process dies between two. There is no lock, so nothing to unlock after a
kill, nothing to deadlock after a fork, and nothing that stalls a gevent hub.

Not here: I/O, sleeping, configuration, when a window of a budget begins, and the meaning of names.
"""

cimport cython
from cpython.exc cimport PyErr_Occurred
from cpython.long cimport PyLong_AsLongLong, PyLong_AsUnsignedLongLong, PyLong_Check
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.mem cimport PyMem_Calloc, PyMem_Free, PyMem_Malloc, PyMem_Realloc
from libc.errno cimport errno
from libc.math cimport ceil, exp2, log, log2, sqrt
from libc.stdint cimport UINT32_MAX
from libc.string cimport memset

include "core/stack.pxi"
include "core/segment.pxi"
include "core/bucket.pxi"
include "core/breaker.pxi"
include "core/latency.pxi"
include "core/tail.pxi"
include "core/event_count.pxi"
include "core/admission.pxi"
include "core/quota.pxi"
include "core/endpoint.pxi"
include "core/judging.pxi"
include "core/ranking.pxi"
include "core/choosing.pxi"
include "core/money.pxi"
include "core/values.pxi"
include "core/pool.pxi"
include "core/scan.pxi"
include "core/json_bounds.pxi"
include "core/learned.pxi"

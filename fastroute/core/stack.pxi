# ======================================================================================================================
# Stack: room for a call before it takes anything
# ======================================================================================================================
#
# A RecursionError may come at any call of a function, also in the code that gives back what a call holds, which
# calls functions too. So whatever takes something first makes sure that its whole way fits.

cdef extern from "core/stack.h":
    int fr_frames_left() noexcept

cdef enum:
    MOST_FRAMES = 100              # of a call of the package, about twice what any takes


def check_stack() -> None:
    """Raises unless this thread may nest 100 more calls of Python functions, as many as a routed call may need.

    Raises:
        RecursionError: It may not. Nothing was done.
    """
    cdef int left = fr_frames_left()
    if left < MOST_FRAMES:
        raise RecursionError(
            f"fastroute: {max(left, 0)} frames are left on the stack, and a call may need {MOST_FRAMES}; "
            "nest fewer calls around it, or raise sys.setrecursionlimit()"
        )



/* How many more calls of Python functions this thread may nest before a RecursionError. */
#ifndef FASTROUTE_STACK_H
#define FASTROUTE_STACK_H

#include <Python.h>

static inline int fr_frames_left(void) {
    PyThreadState *thread = PyThreadState_Get();
#if PY_VERSION_HEX >= 0x030C0000
    return thread->py_recursion_remaining;
#elif PY_VERSION_HEX >= 0x030B0000
    return thread->recursion_remaining;
#else
    return Py_GetRecursionLimit() - thread->recursion_depth;
#endif
}

#endif

/* What the segment asks of the operating system: a shared mapping, and whether this process has been forked. */
#ifndef FASTROUTE_PROCESS_H
#define FASTROUTE_PROCESS_H

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

#if !defined(MAP_ANONYMOUS) && defined(MAP_ANON)
#define MAP_ANONYMOUS MAP_ANON
#endif

/* Counts the forks between the first process and this one. getpid() is a system call; reading this is one load. */
static uint32_t fr_forks = 1;

static void fr_count_fork(void) { __atomic_fetch_add(&fr_forks, 1, __ATOMIC_RELAXED); }

static inline uint32_t fr_fork_count(void) { return __atomic_load_n(&fr_forks, __ATOMIC_RELAXED); }

/* To be called before the first segment is used; more calls change nothing. Returns 0, or an errno. */
static inline int fr_watch_forks(void) {
    static int watching = 0;
    if (__atomic_exchange_n(&watching, 1, __ATOMIC_ACQ_REL)) return 0;
    return pthread_atfork(NULL, NULL, fr_count_fork);
}

static inline void *fr_map_shared(size_t bytes) {
    void *place = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    return place == MAP_FAILED ? NULL : place;
}

static inline int fr_process_exists(int pid) { return kill(pid, 0) == 0 || errno == EPERM; }

#endif

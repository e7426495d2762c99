/* What the segment needs from the operating system: a shared mapping (anonymous or of a file), whether this process
 * has been forked, and whether other processes still exist. */
#ifndef FASTROUTE_PROCESS_H
#define FASTROUTE_PROCESS_H

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#if !defined(MAP_ANONYMOUS) && defined(MAP_ANON)
#define MAP_ANONYMOUS MAP_ANON
#endif

/* Counts the forks between the first process and this one. getpid() is a system call; reading this is one load.
 * pthread_atfork also sees forks made in C, which run none of Python's hooks. */
static uint32_t fr_forks = 1;

static void fr_count_fork(void) { __atomic_fetch_add(&fr_forks, 1, __ATOMIC_RELAXED); }

static inline uint32_t fr_fork_count(void) { return __atomic_load_n(&fr_forks, __ATOMIC_RELAXED); }

/* Idempotent. Returns 0, or an errno. */
static inline int fr_watch_forks(void) {
    static int watching = 0;
    if (__atomic_exchange_n(&watching, 1, __ATOMIC_ACQ_REL)) return 0;
    return pthread_atfork(NULL, NULL, fr_count_fork);
}

/* Anonymous memory (fd < 0), or that of an open file at least this long. On NULL the reason is in errno. */
static inline void *fr_map_shared(size_t bytes, int fd) {
    void *place = mmap(NULL, bytes, PROT_READ | PROT_WRITE, fd < 0 ? MAP_SHARED | MAP_ANONYMOUS : MAP_SHARED, fd, 0);
    return place == MAP_FAILED ? NULL : place;
}

static inline int64_t fr_file_size(int fd) {
    struct stat status;
    return fstat(fd, &status) ? -1 : (int64_t)status.st_size;
}

/* A duplicate of a descriptor, and the file's identity, by which fr_drop_file recognises it. */
typedef struct {
    int fd;
    dev_t device;
    ino_t inode;
} fr_file;

static inline int fr_keep_file(fr_file *file, int fd) {
    struct stat status;
    if (fstat(fd, &status)) return 0;
    file->device = status.st_dev;
    file->inode = status.st_ino;
    file->fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    return file->fd >= 0;
}

/* A program that becomes a daemon closes every descriptor, so by now the number may belong to another file, which must
 * not be closed here. */
static inline void fr_drop_file(const fr_file *file) {
    struct stat status;
    if (!fstat(file->fd, &status) && status.st_dev == file->device && status.st_ino == file->inode) close(file->fd);
}

static inline int fr_process_exists(int pid) { return kill(pid, 0) == 0 || errno == EPERM; }

/* When the process started, in the kernel's ticks since boot; 0 if that cannot be found out; -1 if it does not exist. A
 * zombie counts as not existing: it will never run again, and may stay for long if its parent does not wait for it. */
static inline int64_t fr_process_start(int pid) {
    char name[32], text[1024];
    char *at;
    int fd, field;
    ssize_t length;
    if (!fr_process_exists(pid)) return -1;
    snprintf(name, sizeof name, "/proc/%d/stat", pid);
    fd = open(name, O_RDONLY | O_CLOEXEC);
    /* No file though /proc is there: the process ended since. Without /proc (macOS) nothing can be said. */
    if (fd < 0) return errno == ENOENT && access("/proc/self/stat", F_OK) == 0 ? -1 : 0;
    length = read(fd, text, sizeof text - 1);
    close(fd);
    if (length < 0) return errno == ESRCH ? -1 : 0;
    text[length] = 0;
    /* The second field is the command in parentheses and may itself hold blanks and parentheses. */
    at = strrchr(text, ')');
    if (at == NULL || at[1] != ' ') return 0;
    at += 2;
    if (*at == 'Z' || *at == 'X' || *at == 'x') return -1;
    for (field = 3; field < 22; field++) {
        at = strchr(at, ' ');
        if (at == NULL) return 0;
        at++;
    }
    return strtoll(at, NULL, 10);
}

#endif

/* Makes a chosen call of the operating system fail, in a process that was started with LD_PRELOAD of this library.
 *
 * Calls are counted in two classes, those that make a descriptor and those that write to a file. `fail_at` arms the
 * count: the k-th call of the class fails with the given errno, and with `sticky` every later one too. SQLite and the
 * package's C core go through the same doors as Python. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { NONE, OPENING, WRITING };

static atomic_int armed, with_errno, sticks;
static atomic_long wanted, seen;

void fail_at(int kind, long at, int error, int sticky) {
    atomic_store(&armed, NONE);
    atomic_store(&seen, 0);
    atomic_store(&wanted, at);
    atomic_store(&with_errno, error);
    atomic_store(&sticks, sticky);
    atomic_store(&armed, kind);
}

/* How many calls of the class there were since `fail_at`. */
long stop_failing(void) {
    atomic_store(&armed, NONE);
    return atomic_load(&seen);
}

static int fails(int kind) {
    if (atomic_load(&armed) != kind) return 0;
    long now = atomic_fetch_add(&seen, 1) + 1, at = atomic_load(&wanted);
    if (now == at || (now > at && atomic_load(&sticks))) {
        errno = atomic_load(&with_errno);
        return 1;
    }
    return 0;
}

static int is_file(int fd) {
    struct stat status;
    return fstat(fd, &status) == 0 && S_ISREG(status.st_mode);
}

#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

#define OPEN(name)                                                                                                     \
    int name(const char *path, int flags, ...) {                                                                       \
        REAL(name);                                                                                                    \
        va_list rest;                                                                                                  \
        va_start(rest, flags);                                                                                         \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;                                        \
        va_end(rest);                                                                                                  \
        return fails(OPENING) ? -1 : real(path, flags, mode);                                                          \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                                                                   \
    int name(int at, const char *path, int flags, ...) {                                                               \
        REAL(name);                                                                                                    \
        va_list rest;                                                                                                  \
        va_start(rest, flags);                                                                                         \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;                                        \
        va_end(rest);                                                                                                  \
        return fails(OPENING) ? -1 : real(at, path, flags, mode);                                                      \
    }
OPENAT(openat)
OPENAT(openat64)

#define FCNTL(name)                                                                                                    \
    int name(int fd, int command, ...) {                                                                               \
        REAL(name);                                                                                                    \
        va_list rest;                                                                                                  \
        va_start(rest, command);                                                                                       \
        long value = va_arg(rest, long);                                                                               \
        va_end(rest);                                                                                                  \
        if ((command == F_DUPFD || command == F_DUPFD_CLOEXEC) && fails(OPENING)) return -1;                           \
        return real(fd, command, value);                                                                               \
    }
FCNTL(fcntl)
FCNTL(fcntl64)

int socket(int family, int kind, int protocol) {
    REAL(socket);
    return fails(OPENING) ? -1 : real(family, kind, protocol);
}
int dup(int fd) {
    REAL(dup);
    return fails(OPENING) ? -1 : real(fd);
}

ssize_t write(int fd, const void *data, size_t size) {
    REAL(write);
    return is_file(fd) && fails(WRITING) ? -1 : real(fd, data, size);
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
    REAL(pwrite);
    return fails(WRITING) ? -1 : real(fd, data, size, at);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
    REAL(pwrite64);
    return fails(WRITING) ? -1 : real(fd, data, size, at);
}
int ftruncate(int fd, off_t size) {
    REAL(ftruncate);
    return fails(WRITING) ? -1 : real(fd, size);
}
int ftruncate64(int fd, off64_t size) {
    REAL(ftruncate64);
    return fails(WRITING) ? -1 : real(fd, size);
}
int posix_fallocate(int fd, off_t at, off_t size) {
    REAL(posix_fallocate);
    return fails(WRITING) ? errno : real(fd, at, size);
}
int posix_fallocate64(int fd, off64_t at, off64_t size) {
    REAL(posix_fallocate64);
    return fails(WRITING) ? errno : real(fd, at, size);
}
int fsync(int fd) {
    REAL(fsync);
    return fails(WRITING) ? -1 : real(fd);
}
int fdatasync(int fd) {
    REAL(fdatasync);
    return fails(WRITING) ? -1 : real(fd);
}
int mkdir(const char *path, mode_t mode) {
    REAL(mkdir);
    return fails(WRITING) ? -1 : real(path, mode);
}
void *mmap(void *at, size_t size, int protection, int flags, int fd, off_t offset) {
    REAL(mmap);
    return fd >= 0 && flags & MAP_SHARED && fails(WRITING) ? MAP_FAILED : real(at, size, protection, flags, fd, offset);
}
void *mmap64(void *at, size_t size, int protection, int flags, int fd, off64_t offset) {
    REAL(mmap64);
    return fd >= 0 && flags & MAP_SHARED && fails(WRITING) ? MAP_FAILED : real(at, size, protection, flags, fd, offset);
}

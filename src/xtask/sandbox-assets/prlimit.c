// Preloaded in the nodes (/etc/ld.so.preload); acts only in programs called `criu`.
//
// Without CAP_SYS_RESOURCE, prlimit() refuses to read the limits of a process of another user, and
// CRIU could dump no application that does not run as root. Real nodes have the capability; where
// the machine under the sandbox lacks it, the limits are read from /proc/PID/limits instead.
// Nothing is made up: only reading is answered, and only after the kernel has refused.
#define _GNU_SOURCE
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

// The kernel's names in the order of the RLIMIT_ numbers.
static const char *const names[] = {
    "Max cpu time",     "Max file size",       "Max data size",     "Max stack size",    "Max core file size", "Max resident set",
    "Max processes",    "Max open files",      "Max locked memory", "Max address space", "Max file locks",     "Max pending signals",
    "Max msgqueue size", "Max nice priority",  "Max realtime priority", "Max realtime timeout",
};
#define COUNT (sizeof(names) / sizeof(names[0]))

// The C library's syscall() is replaced below, so this file needs its own.
static long kernel(long number, long a, long b, long c, long d, long e, long f) {
  long result;
#if defined(__x86_64__)
  register long r10 __asm__("r10") = d;
  register long r8 __asm__("r8") = e;
  register long r9 __asm__("r9") = f;
  __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9) : "rcx", "r11", "memory");
#elif defined(__aarch64__)
  register long x8 __asm__("x8") = number;
  register long x0 __asm__("x0") = a;
  register long x1 __asm__("x1") = b;
  register long x2 __asm__("x2") = c;
  register long x3 __asm__("x3") = d;
  register long x4 __asm__("x4") = e;
  register long x5 __asm__("x5") = f;
  __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
  result = x0;
#else
#error "unknown processor"
#endif
  if (result < 0 && result > -4096) {
    errno = (int)-result;
    return -1;
  }
  return result;
}

// One of the two columns: a number or `unlimited`.
static rlim_t limit(const char *text, char **end) {
  while (*text == ' ') text++;
  if (strncmp(text, "unlimited", 9) == 0) {
    *end = (char *)text + 9;
    return RLIM_INFINITY;
  }
  return strtoull(text, end, 10);
}

static int read_limit(pid_t pid, unsigned resource, struct rlimit *out) {
  char path[64], line[256];
  snprintf(path, sizeof(path), "/proc/%d/limits", (int)pid);
  FILE *file = fopen(path, "re");
  if (!file) return -1;
  int result = -1;
  size_t length = strlen(names[resource]);
  while (result && fgets(line, sizeof(line), file)) {
    if (strncmp(line, names[resource], length) == 0 && line[length] == ' ') {
      char *next = line + length;
      out->rlim_cur = limit(next, &next);
      out->rlim_max = limit(next, &next);
      result = 0;
    }
  }
  fclose(file);
  return result;
}

static int get_or_set(pid_t pid, unsigned resource, const struct rlimit *new, struct rlimit *old) {
  long result = kernel(SYS_prlimit64, pid, resource, (long)new, (long)old, 0, 0);
  if (result == 0 || errno != EPERM || new || !old || resource >= COUNT) return (int)result;
  if (strcmp(program_invocation_short_name, "criu") != 0) return (int)result;
  result = read_limit(pid, resource, old);
  if (result) errno = EPERM;
  return (int)result;
}

int prlimit(pid_t pid, enum __rlimit_resource resource, const struct rlimit *new, struct rlimit *old) {
  return get_or_set(pid, resource, new, old);
}

int prlimit64(pid_t pid, enum __rlimit_resource resource, const struct rlimit64 *new, struct rlimit64 *old) {
  return get_or_set(pid, resource, (const struct rlimit *)new, (struct rlimit *)old);
}

// CRIU asks through syscall().
long syscall(long number, ...) {
  va_list list;
  long a[6];
  va_start(list, number);
  for (int i = 0; i < 6; i++) a[i] = va_arg(list, long);
  va_end(list);
  if (number == SYS_prlimit64) return get_or_set((pid_t)a[0], (unsigned)a[1], (const struct rlimit *)a[2], (struct rlimit *)a[3]);
  return kernel(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

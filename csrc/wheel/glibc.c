// What a wheel for glibc 2.28 must not ask of the machine that it meets: linked into it by "make wheel", beside
// libstdc++.a, these keep to what 2.28 has, as audit.py asks. Each is hidden, so nobody else's calls come here.
#include <dlfcn.h>
#include <math.h>
#include <pthread.h>
#include <stdint.h>
#include <sys/random.h>
#include <sys/stat.h>

#define HIDDEN __attribute__((visibility("hidden")))
#ifdef __x86_64__
#    define OLDEST "GLIBC_2.2.5"
#    define STAT_VERSION 1
#else  // AArch64
#    define OLDEST "GLIBC_2.17"
#    define STAT_VERSION 0
#endif
#define FIRST(name)                       \
    extern __typeof__(name) first_##name; \
    __asm__(".symver first_" #name "," #name "@" OLDEST)  // later ones take more of errno away

FIRST(dlsym);
FIRST(exp);
FIRST(log);
FIRST(pthread_once);

HIDDEN void* dlsym(void* restrict handle, const char* restrict name) {  // of headers of torch 2.14
    return first_dlsym(handle, name);
}
HIDDEN double exp(double x) {
    return first_exp(x);
}
HIDDEN double log(double x) {
    return first_log(x);
}
HIDDEN int pthread_once(pthread_once_t* control, void (*routine)(void)) {
    return first_pthread_once(control, routine);
}

HIDDEN char __libc_single_threaded = 0;  // reference counts are atomic then

HIDDEN uint32_t arc4random(void) {
    uint32_t drawn = 0;
    while (getrandom(&drawn, sizeof drawn, 0) != sizeof drawn) continue;
    return drawn;
}

int __fxstat64(int version, int file, struct stat64* found);
HIDDEN int fstat64(int file, struct stat64* found) {
    return __fxstat64(STAT_VERSION, file, found);
}

// Threads of a kernel as fibers: how one leaves its stack for another's, and what ThreadSanitizer must know of it,
// which fiber runs, and what happens before what. It sees the memory of a kernel that was compiled with
// -fsanitize=thread; the emulator is not.
#pragma once

#if !defined(__x86_64__)
#    error "the emulator switches stacks in x86-64 assembly"
#endif

#if defined(VRNN_THREAD_SANITIZER)
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
}
#else
inline void* __tsan_get_current_fiber() {
    return nullptr;
}
inline void* __tsan_create_fiber(unsigned) {
    return nullptr;
}
inline void __tsan_destroy_fiber(void*) {}
inline void __tsan_switch_to_fiber(void*, unsigned) {}
inline void __tsan_acquire(void*) {}
inline void __tsan_release(void*) {}
#endif

// void vrnn_switch(void** from, void* to): leave this stack, its pointer in *from, and go on with that one.
extern "C" void vrnn_switch(void** from, void* to);

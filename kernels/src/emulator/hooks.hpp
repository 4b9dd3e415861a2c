/* What a compiler calls for every access of a kernel's memory: modules are compiled with -fsanitize=thread, and linked with this
 * instead of the sanitizer's own runtime. Accesses to stacks and constants end here too, and are let pass. */
#pragma once
#include "engine.hpp"

namespace card {
/* Addresses that no pointer to anything has. */
static const uintptr_t NULL_BYTES = 64 << 10;

static void check_shared(Shared& shared, size_t offset, size_t bytes, int kind) {
    Conflict conflict = access(shared, offset, bytes, kind);
    if (__builtin_expect(!conflict.words, 1)) return;
    const char* region = &shared == &run.dynamic ? "" : " of the static arrays";
    if (!conflict.with) fail("%s, at byte %zu%s", conflict.words, offset, region);
    char other[96];
    unsigned who = conflict.with & WHO;
    if (who >= MANY) snprintf(other, sizeof other, "several threads");
    else if (who >= LANES) snprintf(other, sizeof other, "lanes of warp %u", who - (unsigned)LANES);
    else say_thread(other, sizeof other, who);
    fail("race in shared memory at byte %zu%s: it %s by %s, without a barrier between", offset, region, conflict.words, other);
}

/* Neither the card's memory nor the launch's shared memory. */
__attribute__((noinline)) static void check_elsewhere(uintptr_t at, size_t bytes, int kind) {
    size_t offset = at - run.fixed.base, beyond = at - run.dynamic.base;
    if (offset < run.fixed.len) return check_shared(run.fixed, offset, bytes, kind);
    if (beyond < SHARED_BYTES_MAX) fail("shared memory to byte %zu, the launch has %zu", beyond + bytes, run.dynamic.len);
    if (at < NULL_BYTES) fail("%s address %zx", kind & WRITE ? "writes to" : "reads", at);
}

inline void check_access(const void* pointer, size_t bytes, size_t alignment, int kind) {
    uintptr_t at = (uintptr_t)pointer;
    size_t offset = at - run.dynamic.base;
    if (at - card_begin < card_end - card_begin) {
        if (__builtin_expect(at % alignment != 0, 0)) fail("misaligned access: %zu bytes at address %zx", bytes, at);
        const char* why = nullptr;
        if (kind & READ) why = card_touch(pointer, bytes, kind & ATOMIC);
        if (kind & WRITE && !why) why = card_touch(pointer, bytes, 1 | (kind & ATOMIC));
        if (__builtin_expect(why != nullptr, 0)) fail("%s", why);
    } else if (offset < run.dynamic.len) {
        if (at % alignment != 0) fail("misaligned access: %zu bytes at byte %zu of shared memory", bytes, offset);
        if (offset + bytes > run.dynamic.len) fail("shared memory to byte %zu, the launch has %zu", offset + bytes, run.dynamic.len);
        check_shared(run.dynamic, offset, bytes, kind);
    } else {
        check_elsewhere(at, bytes, kind);
    }
}
}  // namespace card

extern "C" {
void card_load_row(const void* row, uint32_t* to) {
    uintptr_t at = (uintptr_t)row;
    bool shared = at - card::run.dynamic.base < card::SHARED_BYTES_MAX || at - card::run.fixed.base < card::run.fixed.len;
    if (!shared) card::fail("ldmatrix of a row at %zx, which is not in shared memory", at);
    card::check_access(row, 16, 16, card::READ);
    memcpy(to, row, 16);
}

#define CARD_HOOKS(N)                                                                                     \
    void __tsan_read##N(void* at) { card::check_access(at, N, N, card::READ); }                           \
    void __tsan_write##N(void* at) { card::check_access(at, N, N, card::WRITE); }                         \
    void __tsan_unaligned_read##N(void* at) { card::check_access(at, N, 1, card::READ); }                 \
    void __tsan_unaligned_write##N(void* at) { card::check_access(at, N, 1, card::WRITE); }               \
    void __tsan_volatile_read##N(void* at) { card::check_access(at, N, N, card::READ); }                  \
    void __tsan_volatile_write##N(void* at) { card::check_access(at, N, N, card::WRITE); }                \
    void __tsan_read_write##N(void* at) { card::check_access(at, N, N, card::UPDATE); }
CARD_HOOKS(1)
CARD_HOOKS(2)
CARD_HOOKS(4)
CARD_HOOKS(8)
CARD_HOOKS(16)
#undef CARD_HOOKS

void __tsan_read_range(void* at, size_t bytes) { card::check_access(at, bytes, 1, card::READ); }
void __tsan_write_range(void* at, size_t bytes) { card::check_access(at, bytes, 1, card::WRITE); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}

/* One CPU thread runs everything: an atomic operation need not be one here. */
#define CARD_FETCH(BITS, NAME, RESULT)                                                       \
    uint##BITS##_t __tsan_atomic##BITS##_##NAME(void* at, uint##BITS##_t operand, int) {     \
        card::check_access(at, BITS / 8, BITS / 8, card::UPDATE | card::ATOMIC);             \
        uint##BITS##_t before = *(uint##BITS##_t*)at;                                        \
        *(uint##BITS##_t*)at = (uint##BITS##_t)(RESULT);                                     \
        return before;                                                                       \
    }
#define CARD_ATOMICS(BITS)                                                                                            \
    uint##BITS##_t __tsan_atomic##BITS##_load(const void* at, int) {                                                  \
        card::check_access(at, BITS / 8, BITS / 8, card::READ | card::ATOMIC);                                        \
        return *(const uint##BITS##_t*)at;                                                                            \
    }                                                                                                                 \
    void __tsan_atomic##BITS##_store(void* at, uint##BITS##_t value, int) {                                           \
        card::check_access(at, BITS / 8, BITS / 8, card::WRITE | card::ATOMIC);                                       \
        *(uint##BITS##_t*)at = value;                                                                                 \
    }                                                                                                                 \
    CARD_FETCH(BITS, exchange, operand)                                                                               \
    CARD_FETCH(BITS, fetch_add, before + operand)                                                                     \
    CARD_FETCH(BITS, fetch_sub, before - operand)                                                                     \
    CARD_FETCH(BITS, fetch_and, before & operand)                                                                     \
    CARD_FETCH(BITS, fetch_or, before | operand)                                                                      \
    CARD_FETCH(BITS, fetch_xor, before ^ operand)                                                                     \
    int __tsan_atomic##BITS##_compare_exchange_strong(void* at, void* expected, uint##BITS##_t value, int, int) {     \
        card::check_access(at, BITS / 8, BITS / 8, card::UPDATE | card::ATOMIC);                                      \
        uint##BITS##_t before = *(uint##BITS##_t*)at;                                                                 \
        bool same = before == *(uint##BITS##_t*)expected;                                                             \
        *(uint##BITS##_t*)(same ? at : expected) = same ? value : before;                                             \
        return same;                                                                                                  \
    }                                                                                                                 \
    int __tsan_atomic##BITS##_compare_exchange_weak(void* at, void* expected, uint##BITS##_t value, int a, int b) {   \
        return __tsan_atomic##BITS##_compare_exchange_strong(at, expected, value, a, b);                              \
    }
CARD_ATOMICS(8)
CARD_ATOMICS(16)
CARD_ATOMICS(32)
CARD_ATOMICS(64)
#undef CARD_ATOMICS
#undef CARD_FETCH
void __tsan_atomic_thread_fence(int) {}
void __tsan_atomic_signal_fence(int) {}

/* What a kernel's memcpy and the like are; see device.hpp. */
void* card_memcpy(void* to, const void* from, size_t bytes) {
    if (bytes) __tsan_read_range((void*)from, bytes), __tsan_write_range(to, bytes);
    return memcpy(to, from, bytes);
}
void* card_memmove(void* to, const void* from, size_t bytes) {
    if (bytes) __tsan_read_range((void*)from, bytes), __tsan_write_range(to, bytes);
    return memmove(to, from, bytes);
}
void* card_memset(void* at, int value, size_t bytes) {
    if (bytes) __tsan_write_range(at, bytes);
    return memset(at, value, bytes);
}
}

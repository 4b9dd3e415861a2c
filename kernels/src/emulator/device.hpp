/* CUDA as a kernel's text knows it: threads, barriers, exchanges within a warp, atomics, and functions of numbers. Comes before the
 * text; what it declares is of the engine. */
#pragma once
extern "C" {
/* Before the C library declares them: a kernel's are the engine's, which look at what they read and write. */
void* memcpy(void* to, const void* from, __SIZE_TYPE__ bytes) noexcept __asm__("card_memcpy");
void* memmove(void* to, const void* from, __SIZE_TYPE__ bytes) noexcept __asm__("card_memmove");
void* memset(void* at, int value, __SIZE_TYPE__ bytes) noexcept __asm__("card_memset");
}
#include <cassert>
#include <math.h>
#include <cstdint>
#include <cstdio>
#include <cstring>

#include "exchanges.hpp"
#include "vectors.hpp"

/* Where this is defined a kernel's text calls `multiply` and `load_matrices` below instead of the PTX that a card has. */
#define CARD_IN_SOFTWARE

#define __device__
#define __host__
#define __constant__ const
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(n) __attribute__((aligned(n)))

extern "C" {
/* Constants while a thread runs, and so never instrumented. */
extern const uint3 threadIdx __asm__("card_thread_index"), blockIdx __asm__("card_block_index");
extern const uint3 blockDim __asm__("card_block_dim"), gridDim __asm__("card_grid_dim");
/* What `extern __shared__` arrays are. */
extern unsigned char card_shared_memory[];
void card_barrier_at(int line);
uint64_t card_exchange(int kind, uint32_t mask, uint64_t value, int source);
uint32_t card_active();
/* 16 bytes of shared memory, as ldmatrix reads them. */
void card_load_row(const void* row, uint32_t* to);
[[noreturn]] void card_stop(const char* what, const char* file, int line);
}
static const int warpSize = 32;

#undef assert
#define assert(what) ((what) ? (void)0 : card_stop("assertion failed: " #what, __FILE__, __LINE__))
inline void __trap() { card_stop("trap", "__trap", 0); }

namespace card {
inline int lane() { return (threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) % 32; }

template <class T> inline T shuffle(unsigned mask, T value, int source) {
    static_assert(sizeof(T) <= 8, "a lane sends at most eight bytes");
    /* The builtin, here and below: these are registers, which the engine need not look at. */
    uint64_t bits = 0;
    __builtin_memcpy(&bits, &value, sizeof(T));
    bits = card_exchange(SHUFFLE, mask, bits, source & 31);
    __builtin_memcpy(&value, &bits, sizeof(T));
    return value;
}
/* Lanes exchange within groups of `width`: where that would leave the group, a lane gets its own value. */
inline int within(int source, int width) { return source / width == lane() / width && source >= 0 ? source : lane(); }

/* sum += a b of a tensor core, for kind PRODUCT_BF16 or PRODUCT_F16. Not instrumented: it touches registers only. */
__attribute__((noinline, no_sanitize("thread"))) static void multiply(Exchange kind, float (&sum)[4], const uint32_t (&a)[4], uint32_t b0,
                                                                     uint32_t b1) {
    Product part = {{a[0], a[1], a[2], a[3]}, {b0, b1}, {sum[0], sum[1], sum[2], sum[3]}, __builtin_return_address(0)};
    card_exchange(kind, 0xffffffffu, (uint64_t)&part, lane());
    for (int i = 0; i < 4; i++) sum[i] = part.sum[i];
}

/* This lane's part of four matrices, one row of which lies at `row`, for kind MATRICES or MATRICES_TRANSPOSED. */
__attribute__((noinline, no_sanitize("thread"))) static void load_matrices(Exchange kind, const void* row, uint32_t (&part)[4]) {
    Matrices matrices = {{}, {}, __builtin_return_address(0)};
    card_load_row(row, matrices.row);
    card_exchange(kind, 0xffffffffu, (uint64_t)&matrices, lane());
    for (int i = 0; i < 4; i++) part[i] = matrices.part[i];
}

template <class To, class From> inline To bits_as(From from) {
    static_assert(sizeof(To) == sizeof(From), "as many bits");
    To to;
    __builtin_memcpy(&to, &from, sizeof(To));
    return to;
}
}  // namespace card

/* Its line tells two barriers apart. */
inline void __syncthreads(int line = __builtin_LINE()) { card_barrier_at(line); }
inline void __syncwarp(unsigned mask = 0xffffffffu) { card_exchange(card::SYNC, mask, 0, card::lane()); }
inline unsigned __activemask() { return card_active(); }
template <class T> inline T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
    return card::shuffle(mask, value, (card::lane() & ~(width - 1)) | (source & (width - 1)));
}
template <class T> inline T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
    int source = card::lane() ^ bits;
    /* As on a card, a group may look at those before it. */
    return card::shuffle(mask, value, source / width > card::lane() / width ? card::lane() : source);
}
template <class T> inline T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32) {
    return card::shuffle(mask, value, card::within(card::lane() + (int)by, width));
}
template <class T> inline T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32) {
    return card::shuffle(mask, value, card::within(card::lane() - (int)by, width));
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
    return (unsigned)card_exchange(card::BALLOT, mask, predicate != 0, card::lane());
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, !predicate) == 0; }
inline void __threadfence() {}
inline void __threadfence_block() {}

/* Atomics, which a compiler that instruments accesses turns into calls of the engine. */
#define CARD_FETCH(NAME, T, OPERATION) \
    inline T NAME(T* at, T value) { return OPERATION(at, value, __ATOMIC_RELAXED); }
#define CARD_INTEGER(T)                                                        \
    CARD_FETCH(atomicAdd, T, __atomic_fetch_add)                               \
    CARD_FETCH(atomicSub, T, __atomic_fetch_sub)                               \
    CARD_FETCH(atomicAnd, T, __atomic_fetch_and)                               \
    CARD_FETCH(atomicOr, T, __atomic_fetch_or)                                 \
    CARD_FETCH(atomicXor, T, __atomic_fetch_xor)                               \
    CARD_FETCH(atomicExch, T, __atomic_exchange_n)                             \
    inline T atomicMax(T* at, T value) {                                       \
        T before = __atomic_load_n(at, __ATOMIC_RELAXED);                      \
        __atomic_store_n(at, before < value ? value : before, __ATOMIC_RELAXED); \
        return before;                                                         \
    }                                                                          \
    inline T atomicMin(T* at, T value) {                                       \
        T before = __atomic_load_n(at, __ATOMIC_RELAXED);                      \
        __atomic_store_n(at, value < before ? value : before, __ATOMIC_RELAXED); \
        return before;                                                         \
    }
#define CARD_SWAP(T)                                                                                       \
    inline T atomicCAS(T* at, T expected, T value) {                                                       \
        __atomic_compare_exchange_n(at, &expected, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);      \
        return expected;                                                                                   \
    }
CARD_INTEGER(int)
CARD_INTEGER(unsigned)
CARD_INTEGER(unsigned long long)
CARD_INTEGER(long long)
CARD_SWAP(unsigned short)
CARD_SWAP(int)
CARD_SWAP(unsigned)
CARD_SWAP(unsigned long long)
#undef CARD_FETCH
#undef CARD_INTEGER
#undef CARD_SWAP

namespace card {
/* `at` as an integer of as many bits, read and written atomically. */
template <class Bits, class T> inline T add_atomically(T* at, T value) {
    T before = bits_as<T>(__atomic_load_n((Bits*)at, __ATOMIC_RELAXED));
    __atomic_store_n((Bits*)at, bits_as<Bits>((T)(before + value)), __ATOMIC_RELAXED);
    return before;
}
}  // namespace card
inline float atomicAdd(float* at, float value) { return card::add_atomically<uint32_t>(at, value); }
inline double atomicAdd(double* at, double value) { return card::add_atomically<uint64_t>(at, value); }
inline float atomicExch(float* at, float value) {
    return card::bits_as<float>(__atomic_exchange_n((uint32_t*)at, card::bits_as<uint32_t>(value), __ATOMIC_RELAXED));
}

template <class T> inline T __ldg(const T* at) { return *at; }

/* CUDA's own, which take two types where the C++ library's take one. */
#define CARD_MIN_MAX(A, B, R)                                     \
    inline R min(A a, B b) { return (R)a < (R)b ? (R)a : (R)b; } \
    inline R max(A a, B b) { return (R)a > (R)b ? (R)a : (R)b; }
CARD_MIN_MAX(int, int, int)
CARD_MIN_MAX(unsigned, unsigned, unsigned)
CARD_MIN_MAX(int, unsigned, unsigned)
CARD_MIN_MAX(unsigned, int, unsigned)
CARD_MIN_MAX(long, long, long)
CARD_MIN_MAX(unsigned long, unsigned long, unsigned long)
CARD_MIN_MAX(long, unsigned long, unsigned long)
CARD_MIN_MAX(unsigned long, long, unsigned long)
CARD_MIN_MAX(long long, long long, long long)
CARD_MIN_MAX(unsigned long long, unsigned long long, unsigned long long)
CARD_MIN_MAX(long long, unsigned long long, unsigned long long)
CARD_MIN_MAX(unsigned long long, long long, unsigned long long)
#undef CARD_MIN_MAX
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }

inline unsigned __float_as_uint(float value) { return card::bits_as<unsigned>(value); }
inline int __float_as_int(float value) { return card::bits_as<int>(value); }
inline float __uint_as_float(unsigned bits) { return card::bits_as<float>(bits); }
inline float __int_as_float(int bits) { return card::bits_as<float>(bits); }
inline long long __double_as_longlong(double value) { return card::bits_as<long long>(value); }
inline double __longlong_as_double(long long bits) { return card::bits_as<double>(bits); }

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __popcll(unsigned long long bits) { return __builtin_popcountll(bits); }
inline int __clz(int bits) { return bits ? __builtin_clz((unsigned)bits) : 32; }
inline int __clzll(long long bits) { return bits ? __builtin_clzll((unsigned long long)bits) : 64; }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline int __ffsll(long long bits) { return __builtin_ffsll(bits); }
inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((unsigned long long)a * b >> 32); }

inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __expf(float value) { return expf(value); }
inline float __logf(float value) { return logf(value); }
inline float rsqrtf(float value) { return 1.0f / sqrtf(value); }
inline double rsqrt(double value) { return 1.0 / sqrt(value); }
inline float normcdff(float value) { return (float)(0.5 * erfc(-(double)value * M_SQRT1_2)); }
inline double normcdf(double value) { return 0.5 * erfc(-value * M_SQRT1_2); }

namespace card {
/* Four bytes at once. */
template <class Function> inline int each_byte(int a, int b, Function function) {
    int out = 0;
    for (int shift = 0; shift < 32; shift += 8)
        out |= (function((int8_t)(a >> shift), (int8_t)(b >> shift)) & 0xff) << shift;
    return out;
}
}  // namespace card
inline int __dp4a(int a, int b, int sum) {
    for (int shift = 0; shift < 32; shift += 8) sum += (int8_t)(a >> shift) * (int8_t)(b >> shift);
    return sum;
}
inline int __vsubss4(int a, int b) {
    return card::each_byte(a, b, [](int x, int y) { return x - y > 127 ? 127 : x - y < -128 ? -128 : x - y; });
}
inline int __vaddss4(int a, int b) {
    return card::each_byte(a, b, [](int x, int y) { return x + y > 127 ? 127 : x + y < -128 ? -128 : x + y; });
}
inline int __vsub4(int a, int b) {
    return card::each_byte(a, b, [](int x, int y) { return x - y; });
}

/* CUDA as the kernels know it, for one CPU thread: a block's threads are fibers that run one after another, each to the next
 * barrier or exchange. Comes before the kernels' text; `registry.hpp` after it. */
#include <csetjmp>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <algorithm>
#include <ucontext.h>
#include <utility>
#include <vector>

#define EMULATED
#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct Index {
    unsigned x, y, z;
};
static Index threadIdx, blockIdx, blockDim, gridDim;
/* Names of the emulation itself, which kernels may use for theirs. */
namespace emulator {
enum State { READY, AT_BARRIER, AT_EXCHANGE, DONE };
enum Exchange { SYNC, SHUFFLE, BALLOT };

struct Fiber {
    ucontext_t context;
    jmp_buf jump;
    char* stack = nullptr;
    bool started = false;
    State state = DONE;
    Exchange exchange = SYNC;
    unsigned long long value = 0;
    int source = 0;
};

static const size_t STACK_BYTES = 128 << 10;
static std::vector<Fiber> fibers;
static jmp_buf scheduler;
static void (*body)();
static std::vector<unsigned char> shared_bytes;
static char* failure;
static size_t failure_len;

/* Back to the scheduler until it resumes this thread. */
static void yield(State state) {
    Fiber& me = fibers[threadIdx.x];
    me.state = state;
    if (!_setjmp(me.jump)) _longjmp(scheduler, 1);
}

static void say(const char* what, long long a, long long b) {
    if (failure[0]) return;
    int used = snprintf(failure, failure_len, "block (%u, %u, %u), thread %u: ", blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x);
    snprintf(failure + used, failure_len - used, what, a, b);
}

/* Ends the launch from within a thread. */
[[noreturn]] static void fail(const char* what, long long a = 0, long long b = 0) {
    say(what, a, b);
    _longjmp(scheduler, 1);
}

template <class T> T exchange(unsigned mask, Exchange kind, T value, int source) {
    if (mask != 0xffffffffu) fail("an exchange of lanes %llx only", mask);
    Fiber& me = fibers[threadIdx.x];
    me.exchange = kind;
    me.value = 0;
    memcpy(&me.value, &value, sizeof(T));
    me.source = source;
    yield(AT_EXCHANGE);
    T received;
    memcpy(&received, &me.value, sizeof(T));
    return received;
}
inline int lane() { return threadIdx.x % 32; }

template <class T> T replace(T* at, T value) {
    T before = *at;
    *at = value;
    return before;
}

/* A fiber's life: one thread of block after block. */
static void live() {
    for (;;) {
        body();
        yield(DONE);
    }
}

static void resume(unsigned thread) {
    Fiber& fiber = fibers[thread];
    threadIdx = {thread, 0, 0};
    if (_setjmp(scheduler)) return;
    if (fiber.started) _longjmp(fiber.jump, 1);
    if (!fiber.stack) fiber.stack = (char*)malloc(STACK_BYTES);
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack;
    fiber.context.uc_stack.ss_size = STACK_BYTES;
    makecontext(&fiber.context, live, 0);
    fiber.started = true;
    setcontext(&fiber.context);
}

/* Hands out the values of a warp whose lanes all wait for each other; false where they do not. */
static bool release_warp(Fiber* lanes) {
    unsigned long long values[32], ballot = 0;
    for (int i = 0; i < 32; i++) {
        if (lanes[i].state != AT_EXCHANGE || lanes[i].exchange != lanes[0].exchange) return false;
        values[i] = lanes[i].value;
        ballot |= (values[i] & 1) << i;
    }
    for (int i = 0; i < 32; i++) {
        lanes[i].value = lanes[0].exchange == BALLOT ? ballot : values[lanes[i].source];
        lanes[i].state = READY;
    }
    return true;
}

static void run_block(bool reverse) {
    unsigned threads = blockDim.x;
    std::fill(shared_bytes.begin(), shared_bytes.end(), 0xff);
    for (unsigned i = 0; i < threads; i++) fibers[i].state = READY;
    for (;;) {
        unsigned done = 0, at_barrier = 0;
        for (unsigned i = 0; i < threads; i++) {
            unsigned thread = reverse ? threads - 1 - i : i;
            if (fibers[thread].state == READY) resume(thread);
            if (failure[0]) return;
            done += fibers[thread].state == DONE;
            at_barrier += fibers[thread].state == AT_BARRIER;
        }
        if (done == threads) return;
        bool moved = false;
        if (at_barrier == threads) {
            for (unsigned i = 0; i < threads; i++) fibers[i].state = READY;
            moved = true;
        }
        for (unsigned i = 0; i < threads; i += 32) moved |= release_warp(&fibers[i]);
        if (!moved) return say("not all threads meet: %lld have ended, %lld are at a barrier", done, at_barrier);
    }
}

/* Runs `body` for every thread of every block; the first mistake in words. */
static void run_grid(Index grid, unsigned threads, unsigned shared, bool reverse, void (*kernel)(), char* error, size_t error_len) {
    body = kernel;
    failure = error;
    failure_len = error_len;
    failure[0] = 0;
    shared_bytes.resize(shared);
    if (fibers.size() < threads) fibers.resize(threads);
    for (Fiber& fiber : fibers) fiber.started = false;
    gridDim = grid;
    blockDim = {threads, 1, 1};
    unsigned long long blocks = (unsigned long long)grid.x * grid.y * grid.z;
    for (unsigned long long i = 0; i < blocks && !failure[0]; i++) {
        unsigned long long block = reverse ? blocks - 1 - i : i;
        blockIdx = {(unsigned)(block % grid.x), (unsigned)(block / grid.x % grid.y), (unsigned)(block / grid.x / grid.y)};
        run_block(reverse);
    }
}
}  // namespace emulator

using std::max;
using std::min;

inline void check(long long index, long long len) {
    if (index < 0 || index >= len) emulator::fail("element %lld of %lld", index, len);
}

inline void* shared_at(long long offset, long long bytes) {
    if (offset < 0 || bytes < 0 || offset + bytes > (long long)emulator::shared_bytes.size())
        emulator::fail("shared memory to byte %lld, the launch has %lld", offset + bytes, emulator::shared_bytes.size());
    return emulator::shared_bytes.data() + offset;
}

inline unsigned float_bits(float value) {
    unsigned bits;
    memcpy(&bits, &value, 4);
    return bits;
}
inline float bits_float(unsigned bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

inline void __syncthreads() { emulator::yield(emulator::AT_BARRIER); }

inline void __syncwarp(unsigned mask = 0xffffffffu) { emulator::exchange(mask, emulator::SYNC, 0, 0); }
template <class T> T __shfl_sync(unsigned mask, T value, int source) { return emulator::exchange(mask, emulator::SHUFFLE, value, source & 31); }
template <class T> T __shfl_xor_sync(unsigned mask, T value, int bits) { return emulator::exchange(mask, emulator::SHUFFLE, value, emulator::lane() ^ bits); }
template <class T> T __shfl_down_sync(unsigned mask, T value, int by) {
    return emulator::exchange(mask, emulator::SHUFFLE, value, emulator::lane() + by < 32 ? emulator::lane() + by : emulator::lane());
}
template <class T> T __shfl_up_sync(unsigned mask, T value, int by) {
    return emulator::exchange(mask, emulator::SHUFFLE, value, emulator::lane() >= by ? emulator::lane() - by : emulator::lane());
}
inline unsigned __ballot_sync(unsigned mask, int predicate) { return emulator::exchange(mask, emulator::BALLOT, (unsigned)(predicate != 0), 0); }

template <class T> T atomicAdd(T* at, T value) { return emulator::replace(at, (T)(*at + value)); }
template <class T> T atomicMax(T* at, T value) { return emulator::replace(at, max(*at, value)); }
template <class T> T atomicMin(T* at, T value) { return emulator::replace(at, min(*at, value)); }

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __clz(int bits) { return bits ? __builtin_clz(bits) : 32; }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float rsqrtf(float value) { return 1.0f / sqrtf(value); }

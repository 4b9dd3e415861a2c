/* Runs a kernel's threads on one CPU thread: each to its next barrier or exchange, and in another order for another seed.
 *
 * A thread that is about to wait picks the next to run and switches to it directly. A thread that ends hands its stack to the next
 * that has not begun, so that a kernel without barriers runs on one stack, without any switch. */
#pragma once
#include <cstdarg>
#include <cstdio>
#include <cstring>

#include "fibers.hpp"
#include "launch.hpp"
#include "shared.hpp"
#include "tensor.hpp"

struct CardIndex {
    unsigned x, y, z;
};

extern "C" {
/* Kernels read these as constants: within one thread's run they are. */
CardIndex card_thread_index, card_block_index, card_block_dim, card_grid_dim;
/* All `extern __shared__` arrays; as large as any launch may ask for. */
alignas(1024) unsigned char card_shared_memory[card::SHARED_BYTES_MAX];
}

namespace card {
enum { WARP = 32, THREADS_MAX = 1024 };

/* Sets of lanes, and what those that wait in an exchange brought to it. */
struct Warp {
    uint32_t all, ready, started, exchanging, waiting, done;
    uint32_t mask[WARP];
    uint64_t value[WARP];
    uint8_t source[WARP], kind[WARP];
    int barrier_line[WARP];  // of those that wait at one
};

/* Which of those that could run does. */
enum Choice { LOWEST, HIGHEST, RANDOM };

struct Run {
    const Launch* launch;
    Warp warps[THREADS_MAX / WARP];
    CardIndex indices[THREADS_MAX];
    Context contexts[THREADS_MAX];  // of the threads that have begun
    unsigned stacks[THREADS_MAX];   // which each of them is on
    unsigned idle[THREADS_MAX];     // stacks that no thread is on
    unsigned idle_count, stack_count, threads, warp_count;
    unsigned waiting, done;
    uint32_t busy;  // warps in which something may go on
    uint64_t blocks, block;
    Choice lanes, order;
    bool interleave;
    uint64_t random, stride, position;
    Shared dynamic, fixed;
    Context main;
    char failure[512];
};
static Run run;
static Stacks stacks;

inline uint64_t draw() {
    run.random ^= run.random << 13;
    run.random ^= run.random >> 7;
    return run.random ^= run.random << 17;
}

inline int pick(uint32_t set, Choice choice) {
    if (choice == LOWEST) return __builtin_ctz(set);
    if (choice == HIGHEST) return 31 - __builtin_clz(set);
    int turn = draw() & 31;
    return ((__builtin_ctz(set >> turn | set << (31 & -turn)) + turn) & 31);
}

inline int say_thread(char* to, size_t len, unsigned thread) {
    CardIndex at = run.indices[thread];
    bool flat = card_block_dim.y == 1 && card_block_dim.z == 1;
    return flat ? snprintf(to, len, "thread %u", at.x) : snprintf(to, len, "thread (%u, %u, %u)", at.x, at.y, at.z);
}

static void say(const char* what, va_list list) {
    if (run.failure[0]) return;
    CardIndex at = card_block_index;
    size_t len = sizeof run.failure, used = snprintf(run.failure, len, "block (%u, %u, %u), ", at.x, at.y, at.z);
    used += say_thread(run.failure + used, len - used, now.thread);
    used += snprintf(run.failure + used, len - used, ": ");
    vsnprintf(run.failure + used, len - used, what, list);
}

/* What went wrong, without ending the thread that runs. */
__attribute__((format(printf, 1, 2))) static void note(const char* what, ...) {
    va_list list;
    va_start(list, what);
    say(what, list);
    va_end(list);
}

/* Ends the launch from within a thread, whose stack is left as it is. */
__attribute__((format(printf, 1, 2))) [[noreturn]] static void fail(const char* what, ...) {
    va_list list;
    va_start(list, what);
    say(what, list);
    va_end(list);
    Context nowhere;
    nowhere.switch_to(run.main);
    __builtin_unreachable();
}

/* The block that comes next in this launch's order; false after the last. */
static bool begin_block() {
    if (run.block++ == run.blocks) return false;
    uint64_t block = run.position;
    run.position = (block + run.stride) % run.blocks;
    CardIndex grid = card_grid_dim;
    card_block_index = {(unsigned)(block % grid.x), (unsigned)(block / grid.x % grid.y), (unsigned)(block / grid.x / grid.y)};
    now.block_began = now.barrier = ++now.clock;
    for (unsigned i = 0; i < run.warp_count; i++) {
        Warp& warp = run.warps[i];
        warp.ready = warp.all;
        warp.started = warp.exchanging = warp.waiting = warp.done = 0;
        now.synced[i] = now.clock;
    }
    run.waiting = run.done = 0;
    run.busy = (uint32_t)((1ull << run.warp_count) - 1);
    now.warp = pick(run.busy, run.order);
    return true;
}

/* False, and said, where threads wait at barriers of two lines: a card may let none of them pass, or all. */
static bool meet_at_one_barrier() {
    int line = 0;
    for (unsigned i = 0; i < run.warp_count; i++) {
        const Warp& warp = run.warps[i];
        for (uint32_t left = warp.waiting; left; left &= left - 1) {
            int other = warp.barrier_line[__builtin_ctz(left)];
            if (line && other != line) {
                note("threads of a block wait at different barriers, in lines %d and %d", line, other);
                return false;
            }
            line = other;
        }
    }
    return true;
}

static void release_barrier() {
    if (!meet_at_one_barrier()) return;
    now.barrier = ++now.clock;
    for (unsigned i = 0; i < run.warp_count; i++) {
        run.warps[i].ready = run.warps[i].waiting;
        run.warps[i].waiting = 0;
        if (run.warps[i].ready) run.busy |= 1u << i;
    }
    run.waiting = 0;
    now.warp = pick(run.busy, run.order);
}

/* Where in the kernel a lane came to an exchange that takes all of them. */
static const void* site_of(uint64_t value, Exchange kind) {
    return kind == PRODUCT_BF16 || kind == PRODUCT_F16 ? ((const Product*)value)->site : ((const Matrices*)value)->site;
}

/* What an instruction of tensor cores does, which all lanes come to. */
static void release_structures(Warp& warp, const uint64_t (&values)[WARP], uint32_t group, Exchange kind) {
    if (~group) return note("tensor cores take all lanes of a warp, and of these only %08x come", group);
    for (int lane = 1; lane < WARP; lane++)
        if (site_of(values[lane], kind) != site_of(values[0], kind))
            return note("lanes 0 and %d come to different instructions of tensor cores: all lanes of a warp must take one way to it", lane);
    exchange_structures(values, kind);
    warp.exchanging = 0;
    warp.ready = group;
}

/* Hands out what the lanes of one exchange brought to it, or makes of it. */
static void release_lanes(Warp& warp, uint32_t group, Exchange kind) {
    uint64_t values[WARP];
    uint32_t ballot = 0;
    for (uint32_t left = group; left; left &= left - 1) {
        int lane = __builtin_ctz(left);
        values[lane] = warp.value[lane];
        ballot |= (uint32_t)(values[lane] & 1) << lane;
    }
    if (kind >= PRODUCT_BF16) return release_structures(warp, values, group, kind);
    for (uint32_t left = group; left; left &= left - 1) {
        int lane = __builtin_ctz(left), source = warp.source[lane];
        if (kind == SHUFFLE && !(group >> source & 1))
            return note("lane %d takes a value from lane %d, which takes no part in the exchange (%08x)", lane, source, group);
        warp.value[lane] = kind == BALLOT ? ballot : values[source];
    }
    warp.exchanging &= ~group;
    warp.ready |= group;
    /* As on a card, a value that lanes hand each other says nothing of their memory. */
    if (kind == SYNC) now.synced[now.warp] = ++now.clock;
}

/* Releases the exchanges of this warp that are complete; false where there are none. */
static bool release(Warp& warp) {
    bool any = false;
    for (uint32_t left = warp.exchanging; left && !run.failure[0];) {
        int first = __builtin_ctz(left);
        uint32_t mask = warp.mask[first], kind = warp.kind[first];
        uint32_t group = run.launch->strict ? mask : mask & warp.all & ~warp.done;
        left &= ~(group | 1u << first);
        if (group & ~warp.exchanging) continue;
        for (uint32_t others = group; others; others &= others - 1) {
            int lane = __builtin_ctz(others);
            if (warp.mask[lane] == mask && warp.kind[lane] == kind) continue;
            note("lanes %d and %d meet in different exchanges (of lanes %08x and %08x)", first, lane, mask, warp.mask[lane]);
            return false;
        }
        release_lanes(warp, group, (Exchange)kind);
        any = true;
    }
    return any && !run.failure[0];
}

static void note_deadlock() {
    unsigned exchanging = 0;
    for (unsigned i = 0; i < run.warp_count; i++) exchanging += __builtin_popcount(run.warps[i].exchanging);
    note("not all threads meet: %u have ended, %u are at a barrier, %u wait for other lanes of their warp", run.done, run.waiting, exchanging);
}

/* The thread to run next, which is then the current one; -1 when the launch is over, or has failed. */
static int choose() {
    for (;;) {
        Warp& warp = run.warps[now.warp];
        if (warp.ready) {
            int lane = pick(warp.ready, run.lanes);
            warp.ready &= ~(1u << lane);
            now.thread = now.warp * WARP + lane;
            card_thread_index = run.indices[now.thread];
            return now.thread;
        }
        if (warp.exchanging && release(warp)) {
            if (run.interleave) now.warp = pick(run.busy, RANDOM);
            continue;
        }
        if (run.failure[0]) return -1;
        run.busy &= ~(1u << now.warp);
        if (run.busy) {
            now.warp = pick(run.busy, run.order);
        } else if (run.done == run.threads) {
            if (!begin_block()) return -1;
        } else if (run.waiting + run.done == run.threads && !(run.launch->strict && run.done)) {
            release_barrier();
            if (run.failure[0]) return -1;
        } else {
            note_deadlock();
            return -1;
        }
    }
}

static void live();

/* From the stack of `from`, which stays as it is, to that of the current thread. */
static void go(Context& from, int thread) {
    if (thread < 0) return from.switch_to(run.main);
    Warp& warp = run.warps[now.warp];
    uint32_t bit = 1u << thread % WARP;
    if (!(warp.started & bit)) {
        warp.started |= bit;
        unsigned stack = run.idle_count ? run.idle[--run.idle_count] : run.stack_count++;
        run.stacks[thread] = stack;
        run.contexts[thread].prepare(stacks.top(stack), live);
    }
    if (warp.ready && run.lanes != RANDOM) run.contexts[now.warp * WARP + pick(warp.ready, run.lanes)].prefetch();
    from.switch_to(run.contexts[thread]);
}

/* A stack's life: thread after thread. */
static void live() {
    for (;;) {
        run.launch->entry->run(run.launch->parameters);
        unsigned me = now.thread;
        run.warps[now.warp].done |= 1u << me % WARP;
        run.done++;
        int next = choose();
        if (next >= 0 && !(run.warps[now.warp].started >> next % WARP & 1)) {
            run.warps[now.warp].started |= 1u << next % WARP;
            run.stacks[next] = run.stacks[me];
            continue;
        }
        run.idle[run.idle_count++] = run.stacks[me];
        go(run.contexts[me], next);
    }
}

/* Lets others run until this thread is released. */
static void wait() {
    unsigned me = now.thread;
    int next = choose();
    if (next != (int)me) go(run.contexts[me], next);
}

static void choose_order(uint64_t seed) {
    run.lanes = run.order = seed == 1 ? HIGHEST : LOWEST;
    run.interleave = false;
    run.position = seed == 1 ? run.blocks - 1 : 0;
    run.stride = seed == 1 ? run.blocks - 1 : 1;
    run.random = (seed + 1) * 0x9e3779b97f4a7c15ull | 1;
    if (seed < 2) return;
    for (int i = 0; i < 8; i++) draw();
    run.lanes = (Choice)(draw() % 3);
    run.order = (Choice)(draw() % 3);
    run.interleave = draw() & 1;
    run.position = draw() % run.blocks;
    /* A step that has no divisor in common with the number of blocks visits each of them once. */
    auto divisor = [](uint64_t a, uint64_t b) {
        while (b) {
            uint64_t rest = a % b;
            a = b, b = rest;
        }
        return a;
    };
    run.stride = draw() % run.blocks | 1;
    while (divisor(run.stride, run.blocks) != 1) run.stride++;
}

static void lay_out(const Launch& launch) {
    card_grid_dim = {launch.grid[0], launch.grid[1], launch.grid[2]};
    card_block_dim = {launch.block[0], launch.block[1], launch.block[2]};
    run.threads = launch.block[0] * launch.block[1] * launch.block[2];
    run.warp_count = (run.threads + WARP - 1) / WARP;
    for (unsigned i = 0; i < run.threads; i++)
        run.indices[i] = {i % launch.block[0], i / launch.block[0] % launch.block[1], i / launch.block[0] / launch.block[1]};
    for (unsigned i = 0; i < run.warp_count; i++) {
        unsigned lanes = run.threads - i * WARP;
        run.warps[i].all = lanes >= WARP ? ~0u : (1u << lanes) - 1;
    }
    run.blocks = (uint64_t)launch.grid[0] * launch.grid[1] * launch.grid[2];
    run.block = 0;
}

const char* card_run(const Launch& launch) {
    run.launch = &launch;
    run.failure[0] = 0;
    uint64_t threads = (uint64_t)launch.block[0] * launch.block[1] * launch.block[2];
    if (threads == 0 || threads > THREADS_MAX) return "a block has 1 to 1024 threads";
    if (launch.dynamic_shared > SHARED_BYTES_MAX) return "no card has that much shared memory";
    lay_out(launch);
    run.dynamic.base = (uintptr_t)card_shared_memory;
    run.dynamic.resize(launch.dynamic_shared);
    run.fixed.base = (uintptr_t)launch.static_shared;
    run.fixed.resize(launch.static_len);
    if (run.blocks == 0) return nullptr;
    choose_order(launch.order);
    run.idle_count = run.stack_count = 0;
    begin_block();
    int first = choose();
    go(run.main, first);
    for (unsigned i = 0; i < run.stack_count; i++)
        if (stacks.overflowed(i)) return "a thread needs a larger stack than this stand-in gives it";
    return run.failure[0] ? run.failure : nullptr;
}
}  // namespace card

extern "C" {
void card_barrier_at(int line) {
    using namespace card;
    run.warps[now.warp].barrier_line[now.thread % WARP] = line;
    run.warps[now.warp].waiting |= 1u << now.thread % WARP;
    run.waiting++;
    wait();
}

/* Of kernels that were compiled before barriers told their lines: a crate's build keeps them. */
void card_barrier() { card_barrier_at(0); }

uint64_t card_exchange(int kind, uint32_t mask, uint64_t value, int source) {
    using namespace card;
    Warp& warp = run.warps[now.warp];
    unsigned lane = now.thread % WARP;
    if (run.launch->strict && mask != ~0u) fail("an exchange of lanes %x only", mask);
    if (!(mask >> lane & 1)) fail("lane %u takes part in an exchange of lanes %08x", lane, mask);
    warp.exchanging |= 1u << lane;
    warp.mask[lane] = mask;
    warp.kind[lane] = (uint8_t)kind;
    warp.value[lane] = value;
    warp.source[lane] = (uint8_t)source;
    wait();
    return warp.value[lane];
}

/* The lanes of this warp that have not ended. */
uint32_t card_active() {
    const card::Warp& warp = card::run.warps[card::now.warp];
    return warp.all & ~warp.done;
}

/* An assertion that does not hold, or another end that the kernel itself chose. */
[[noreturn]] void card_stop(const char* what, const char* file, int line) { card::fail("%s (%s:%d)", what, file, line); }
}

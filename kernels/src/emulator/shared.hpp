/* Shared memory: who wrote and read each part of it since the last barrier, and whether anybody wrote it at all.
 *
 * One clock runs through a process: every barrier and every __syncwarp moves it. Two accesses of different threads are in order
 * where a barrier of the block lies between them, or a __syncwarp of the warp that both belong to; one of some lanes only counts as one
 * of the whole warp. */
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdlib>

namespace card {
/* Bytes of shared memory that the largest card grants a block. */
static const size_t SHARED_BYTES_MAX = 227 << 10;

enum Access { READ = 1, WRITE = 2, UPDATE = 3, ATOMIC = 4 };

/* When and by whom: clock << 13 | atomically << 12 | who. `who` is a thread, LANES + a warp (several of its lanes) or MANY. */
typedef uint64_t Stamp;
enum : Stamp { LANES = 0x400, MANY = 0x800, BY_ATOMIC = 0x1000, WHO = 0xfff, SPLIT = 1ull << 63 };
static const int CLOCK_SHIFT = 13;

/* The running thread's place among the block's, and the times that order its accesses. */
struct Now {
    uint64_t clock = 1, block_began = 0, barrier = 0;
    uint64_t synced[32];  // by warp
    uint32_t thread, warp;
};
static Now now;

/* Of four bytes; of one where accesses of less than four were made, for which the write stamp then says SPLIT. */
struct Cell {
    Stamp write, read;
};

/* Never freed: kernels may run while a program ends. */
struct Shared {
    uintptr_t base = 0;
    size_t len = 0, room = 0;
    Cell *words = nullptr, *bytes = nullptr;

    void resize(size_t new_len) {
        len = new_len;
        if (words && len <= room) return;
        free(words);
        free(bytes);
        room = len;
        words = (Cell*)calloc(room / 4 + 1, sizeof(Cell));
        bytes = (Cell*)calloc(room + 4, sizeof(Cell));
        if (!words || !bytes) abort();
    }
};

/* What a conflict was with. */
struct Conflict {
    const char* words = nullptr;
    Stamp with = 0;
};

inline bool in_order(Stamp before) {
    uint64_t clock = (before & ~SPLIT) >> CLOCK_SHIFT;
    if (clock < now.barrier) return true;
    Stamp who = before & WHO;
    if (who == now.thread) return true;
    if (who >= MANY) return false;
    uint32_t warp = who >= LANES ? who - LANES : who / 32;
    return warp == now.warp && clock < now.synced[warp];
}

inline bool is_current(Stamp stamp) { return (stamp & ~SPLIT) >> CLOCK_SHIFT >= now.block_began; }

inline Stamp stamp_of(Stamp who) { return now.clock << CLOCK_SHIFT | who; }

/* Both accesses in one stamp, as of now. */
inline Stamp join(Stamp before) {
    Stamp who = before & WHO;
    if (who == now.thread) return stamp_of(who);
    uint32_t warp = who >= LANES ? who - LANES : who / 32;
    return stamp_of(who < MANY && warp == now.warp ? LANES + warp : MANY);
}

inline Conflict access(Cell& cell, int kind) {
    bool atomic = kind & ATOMIC;
    if (kind & READ) {
        if (!is_current(cell.write)) return {"reads shared memory that nobody wrote", 0};
        if (!in_order(cell.write) && !(atomic && cell.write & BY_ATOMIC)) return {"reads what was written", cell.write};
    }
    if (kind & WRITE) {
        bool written = is_current(cell.write), both_atomic = atomic && cell.write & BY_ATOMIC;
        if (written && !in_order(cell.write) && !both_atomic) return {"writes what was written", cell.write};
        if (is_current(cell.read) && !in_order(cell.read) && !(atomic && cell.read & BY_ATOMIC)) return {"writes what was read", cell.read};
        bool merge = written && both_atomic && (cell.write >> CLOCK_SHIFT) >= now.barrier;
        cell.write = (merge ? join(cell.write) : stamp_of(now.thread)) | (atomic ? (Stamp)BY_ATOMIC : 0);
        return {};
    }
    bool alone = in_order(cell.read);
    Stamp how = atomic ? (Stamp)BY_ATOMIC : 0;
    cell.read = alone ? stamp_of(now.thread) | how : join(cell.read) | (how & cell.read);
    return {};
}

/* Of the word that holds these bytes: each byte of it on its own from now on. */
inline Conflict access_bytes(Shared& shared, size_t offset, size_t count, int kind) {
    Cell& word = shared.words[offset / 4];
    if (!(word.write & SPLIT) || !is_current(word.write)) {
        if (word.write & SPLIT) word = Cell{};
        for (size_t i = 0; i < 4; i++) shared.bytes[offset / 4 * 4 + i] = word;
        word = Cell{SPLIT | stamp_of(now.thread), 0};
    }
    for (size_t i = 0; i < count; i++) {
        Conflict conflict = access(shared.bytes[offset + i], kind);
        if (conflict.words) return conflict;
    }
    return {};
}

inline Conflict access(Shared& shared, size_t offset, size_t bytes, int kind) {
    for (size_t end = offset + bytes; offset < end;) {
        size_t count = 4 - offset % 4;
        if (count > end - offset) count = end - offset;
        Cell& cell = shared.words[offset / 4];
        bool whole = count == 4 && (!(cell.write & SPLIT) || !is_current(cell.write));
        if (whole && cell.write & SPLIT) cell = Cell{};
        Conflict conflict = whole ? access(cell, kind) : access_bytes(shared, offset, count, kind);
        if (conflict.words) return conflict;
        offset += count;
    }
    return {};
}
}  // namespace card

/* Part of the engine, whose clock orders the accesses; see shared.hpp, which does the same for shared memory and one block.
 *
 * What a block reads after an atomic operation of its own on the card's memory counts as ordered after the blocks that ran before: it may have
 * found there that they are done. */
#pragma once
#include <vector>

#include "races.hpp"

namespace card {
/* Most numbers of a card have two bytes or more; where single ones are accessed, the write stamp says SPLIT. */
static const size_t UNIT = 2;
/* In a read stamp: another block of this launch read it too. */
static const Stamp OTHERS = SPLIT;

struct Marks {
    size_t bytes;
    Cell *units, *single;
};
/* Clocks: when this launch began, and the beginning of the block that did an atomic operation last. */
static uint64_t launch_began, acquired;

static Cell* make_cells(size_t count) {
    Cell* cells = static_cast<Cell*>(calloc(count, sizeof(Cell)));
    if (!cells) abort();
    return cells;
}

Marks* make_marks(size_t bytes) { return new Marks{bytes, make_cells(bytes / UNIT + 1), nullptr}; }

void drop_marks(Marks* marks) {
    free(marks->units);
    free(marks->single);
    delete marks;
}

void forget_marks() { launch_began = now.clock + 1; }

static bool of_launch(Stamp stamp) { return (stamp & ~SPLIT) >> CLOCK_SHIFT >= launch_began; }
static bool of_another_block(Stamp stamp) { return of_launch(stamp) && !is_current(stamp); }

static bool races(Stamp before, bool atomic) {
    before &= ~SPLIT;
    if (!of_launch(before) || (atomic && before & BY_ATOMIC)) return false;
    return of_another_block(before) ? acquired != now.block_began : !in_order(before);
}

/* A write over one that nothing orders with it, and what was there before it is done. Never freed: kernels may run while a program ends. */
static struct {
    const void* at;
    std::vector<unsigned char>& before = *new std::vector<unsigned char>;
    char words[256];
} suspect;

static const char* say_race(const char* verb, Stamp before, const char* done, bool later) {
    static char now_words[sizeof suspect.words];
    char who[64], me[96] = "it";
    char* words = later ? suspect.words : now_words;
    if (later) {
        size_t used = snprintf(me, sizeof me, "block (%u, %u, %u), ", card_block_index.x, card_block_index.y, card_block_index.z);
        say_thread(me + used, sizeof me - used, now.thread);
    }
    unsigned thread = before & WHO;
    if (of_another_block(before)) snprintf(who, sizeof who, "another block");
    else if (thread >= MANY) snprintf(who, sizeof who, "several threads");
    else if (thread >= LANES) snprintf(who, sizeof who, "lanes of warp %u", thread - static_cast<unsigned>(LANES));
    else say_thread(who, sizeof who, thread);
    snprintf(words, sizeof suspect.words, "race in the card's memory: %s %s what %s %s, %s", me, verb, who, done,
             of_another_block(before) ? "and blocks have no order" : "without a barrier between");
    return words;
}

static const char* mark(Cell& cell, int kind) {
    bool atomic = kind & ATOMIC;
    Stamp how = atomic ? static_cast<Stamp>(BY_ATOMIC) : 0;
    if (kind & READ) {
        if (races(cell.write, atomic)) return say_race("reads", cell.write, "wrote", false);
        bool others = of_launch(cell.read) && (cell.read & OTHERS || of_another_block(cell.read));
        bool alone = in_order(cell.read);
        if (others || !alone) how &= cell.read;
        cell.read = (alone ? stamp_of(now.thread) : join(cell.read & ~OTHERS)) | how | (others ? OTHERS : 0);
        return nullptr;
    }
    if (races(cell.write, atomic)) say_race("writes another value over", cell.write, "wrote", true);
    bool others = of_launch(cell.read) && cell.read & OTHERS && acquired != now.block_began && !(atomic && cell.read & BY_ATOMIC);
    if (others) return say_race("writes", launch_began << CLOCK_SHIFT, "read", false);
    if (races(cell.read, atomic)) return say_race("writes", cell.read, "read", false);
    bool merge = is_current(cell.write) && atomic && cell.write & BY_ATOMIC && cell.write >> CLOCK_SHIFT >= now.barrier;
    cell.write = (merge ? join(cell.write) : stamp_of(now.thread)) | how;
    return nullptr;
}

static const char* mark_single(Marks& marks, size_t offset, int kind) {
    if (!marks.single) marks.single = make_cells(marks.bytes + UNIT);
    Cell& unit = marks.units[offset / UNIT];
    if (!(unit.write & SPLIT && of_launch(unit.write))) {
        unit.write &= ~SPLIT;
        for (size_t i = 0; i < UNIT; i++) marks.single[offset / UNIT * UNIT + i] = unit;
        unit = Cell{SPLIT | stamp_of(now.thread), 0};
    }
    return mark(marks.single[offset], kind);
}

Race check_last_race() {
    bool same = suspect.before.empty() || !memcmp(suspect.at, suspect.before.data(), suspect.before.size());
    suspect.before.clear();
    return {same ? nullptr : suspect.words, suspect.at};
}

Race check_race(Marks& marks, size_t offset, const void* at, size_t bytes, int write) {
    int kind = (write & 1 ? WRITE : READ) | (write & ATOMIC);
    Race last = check_last_race();
    if (__builtin_expect(last.words != nullptr, 0)) return last;
    suspect.words[0] = 0;
    for (size_t end = offset + bytes; offset < end;) {
        Cell& unit = marks.units[offset / UNIT];
        bool split = unit.write & SPLIT && of_launch(unit.write), whole = offset % UNIT == 0 && end - offset >= UNIT && !split;
        if (whole) unit.write &= ~SPLIT;
        const char* wrong = whole ? mark(unit, kind) : mark_single(marks, offset, kind);
        if (wrong) return {wrong, at};
        offset += whole ? UNIT : 1;
    }
    if (__builtin_expect(!suspect.words[0], 1)) return {};
    const unsigned char* there = static_cast<const unsigned char*>(at);
    suspect.at = at;
    suspect.before.assign(there, there + bytes);
    return {};
}

void note_acquire() { acquired = now.block_began; }
}  // namespace card

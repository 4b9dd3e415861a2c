/* Part of the engine, whose clock orders the accesses; see shared.hpp, which does the same for shared memory and one block.
 *
 * What a block reads after an atomic operation of its own on the card's memory counts as ordered after the blocks that ran before: it may have
 * found there that they are done. */
#pragma once
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

static const char* say_race(const char* verb, Stamp before, const char* done) {
    static char words[256];
    char who[64];
    unsigned thread = before & WHO;
    if (of_another_block(before)) snprintf(who, sizeof who, "another block");
    else if (thread >= MANY) snprintf(who, sizeof who, "several threads");
    else if (thread >= LANES) snprintf(who, sizeof who, "lanes of warp %u", thread - static_cast<unsigned>(LANES));
    else say_thread(who, sizeof who, thread);
    snprintf(words, sizeof words, "race in the card's memory: it %s what %s %s, %s", verb, who, done,
             of_another_block(before) ? "and blocks have no order" : "without a barrier between");
    return words;
}

static const char* mark(Cell& cell, int kind) {
    bool atomic = kind & ATOMIC;
    Stamp how = atomic ? static_cast<Stamp>(BY_ATOMIC) : 0;
    if (kind & READ) {
        if (races(cell.write, atomic)) return say_race("reads", cell.write, "wrote");
        bool others = of_launch(cell.read) && (cell.read & OTHERS || of_another_block(cell.read));
        bool alone = (cell.read & ~OTHERS) >> CLOCK_SHIFT < now.barrier;
        if (others || !alone) how &= cell.read;
        cell.read = (alone ? stamp_of(now.thread) : join(cell.read & ~OTHERS)) | how | (others ? OTHERS : 0);
        return nullptr;
    }
    if (races(cell.write, atomic)) return say_race("writes", cell.write, "wrote");
    bool others = of_launch(cell.read) && cell.read & OTHERS && acquired != now.block_began && !(atomic && cell.read & BY_ATOMIC);
    if (others) return say_race("writes", launch_began << CLOCK_SHIFT, "read");
    if (races(cell.read, atomic)) return say_race("writes", cell.read, "read");
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

const char* check_race(Marks& marks, size_t offset, size_t bytes, int write) {
    int kind = (write & 1 ? WRITE : READ) | (write & ATOMIC);
    for (size_t end = offset + bytes; offset < end;) {
        Cell& unit = marks.units[offset / UNIT];
        bool split = unit.write & SPLIT && of_launch(unit.write), whole = offset % UNIT == 0 && end - offset >= UNIT && !split;
        if (whole) unit.write &= ~SPLIT;
        const char* wrong = whole ? mark(unit, kind) : mark_single(marks, offset, kind);
        if (wrong) return wrong;
        offset += whole ? UNIT : 1;
    }
    if (kind == (WRITE | ATOMIC)) acquired = now.block_began;
    return nullptr;
}
}  // namespace card

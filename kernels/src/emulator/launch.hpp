/* Runs one launch of a module's kernel, thread by thread, and says what it did wrong. */
#pragma once
#include "module.hpp"

namespace card {
struct Launch {
    const CardEntry* entry;
    void* const* parameters;
    unsigned grid[3], block[3];
    unsigned dynamic_shared;
    void* static_shared;
    size_t static_len;
    /* 0: threads and blocks run forward. 1: backward. Anything else is the seed of another order. */
    uint64_t order;
    /* No thread may end before others reach a barrier, and no exchange be of some lanes only. A card allows both. */
    bool strict = false;
};

/* nullptr, or what was wrong, in words that the next launch overwrites. One launch at a time in a process: the caller holds a lock. */
const char* card_run(const Launch& launch);
}  // namespace card

extern "C" {
/* The card's addresses, [card_begin, card_end): of whoever hands out memory. */
extern uint64_t card_begin, card_end;

/* Of the same: nullptr where a kernel may access these bytes of the card's memory, else why not. Called for every access there; `write` is 0 or 1,
 * and 4 more for an atomic one. */
const char* card_touch(const void* at, size_t bytes, int write);
}

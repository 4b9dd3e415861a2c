/* Races in the card's memory within one launch: blocks have no order among each other, and a block's threads that of barriers and __syncwarp. */
#pragma once
#include <cstddef>

namespace card {
/* Who accessed the bytes of one allocation in this launch. */
struct Marks;
Marks* make_marks(size_t bytes);
void drop_marks(Marks* marks);
/* Before a launch: what was marked before no longer counts. */
void forget_marks();
struct Race {
    /* nullptr where there is none. */
    const char* words;
    const void* at;
};
/* For card_touch, with what it was given and the place in the allocation. Two that write the same value do not race, so that a write is judged
 * when it was done: at the next access, or at the launch's end. */
Race check_race(Marks& marks, size_t offset, const void* at, size_t bytes, int write);
Race check_last_race();
/* The running block has done an atomic operation on the card's memory, marked or not. */
void note_acquire();
/* With the place in words, or nullptr; memory.cpp's. */
const char* say_race(const Race& race);
}  // namespace card

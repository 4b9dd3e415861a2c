/* Races in the card's memory within one launch: blocks have no order among each other, and a block's threads that of barriers and exchanges. */
#pragma once
#include <cstddef>

namespace card {
/* Who accessed the bytes of one allocation in this launch. */
struct Marks;
Marks* make_marks(size_t bytes);
void drop_marks(Marks* marks);
/* Before a launch: what was marked before no longer counts. */
void forget_marks();
/* For card_touch, with what it was given: nullptr, or with whose access this one races. */
const char* check_race(Marks& marks, size_t offset, size_t bytes, int write);
}  // namespace card

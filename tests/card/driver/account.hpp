/* One card for all processes that name the same directory. */
#pragma once
#include <cstdint>

namespace card {
/* Takes bytes of the card for this process; false when it has not as many left. */
bool take_from_card(uint64_t bytes);
void give_to_card(uint64_t bytes);
struct CardMemory {
    uint64_t free_bytes, total_bytes;
    /* The most that was taken at once, by all processes and by this one. */
    uint64_t peak_bytes, process_peak_bytes;
};
CardMemory memory_of_card();
}  // namespace card

/* Host memory that was made known to the card. */
#pragma once
#include <cstdint>

namespace card {
/* Whether all the bytes lie in memory of cuMemHostAlloc or cuMemHostRegister. */
bool is_pinned(const void* at, uint64_t bytes);
}  // namespace card

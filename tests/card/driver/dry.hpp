/* What the host is told in a dry run where it needs more than any number. */
#pragma once
#include <functional>

#include "state.hpp"

namespace card {
struct Invention {
    const char* type = nullptr;
    /* Of the i-th element of the buffer. */
    std::function<double(uint64_t)> number;
};
/* Without a number where the kernel's output has no entry in the table. */
Invention find_invention(const Origin& origin);
}  // namespace card

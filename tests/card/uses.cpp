#include "uses.hpp"

#include <algorithm>
#include <cstdlib>

namespace card {
static int64_t begin_of(const CardUse& use) { return static_cast<int64_t>(reinterpret_cast<uint64_t>(use.at)); }
static int64_t end_of(const CardUse& use) { return begin_of(use) + static_cast<int64_t>((use.rows - 1) * use.stride + use.bytes); }

std::vector<CardUse> uses_of(const Matrices& all, bool writes) {
    int count = all.stride == 0 ? std::min(all.count, 1) : all.count;
    if (all.rows == 0 || all.columns == 0) return {};
    size_t bytes = all.rows * all.width, leading = all.leading * all.width;
    if (count == 1) return {{all.at, bytes, all.columns, leading, writes}};
    /* One matrix after the other is one of more columns. */
    if (all.stride == static_cast<long long>(all.leading * all.columns)) return {{all.at, bytes, all.columns * count, leading, writes}};
    std::vector<CardUse> uses;
    for (int i = 0; i < count; i++) {
        const char* first = static_cast<const char*>(all.at) + i * all.stride * static_cast<long long>(all.width);
        uses.push_back({first, bytes, all.columns, leading, writes});
    }
    return uses;
}

bool overlap_each_other(const Matrices& all) {
    size_t step = static_cast<size_t>(std::llabs(all.stride)), last = all.columns - 1;
    for (int apart = 1; apart < all.count; apart++) {
        size_t columns = apart * step / all.leading, elements = apart * step % all.leading;
        if (columns > last) return false;
        /* The second's columns begin so many elements after some of the first's, or so many before the ones after them. */
        if (elements < all.rows || (columns < last && all.leading - elements < all.rows)) return true;
    }
    return false;
}

/* Whether one row of bytes meets one of the rows. */
static bool meets(int64_t begin, int64_t end, const CardUse& use) {
    int64_t first = begin_of(use), bytes = static_cast<int64_t>(use.bytes), stride = std::max<int64_t>(static_cast<int64_t>(use.stride), 1);
    auto floor = [stride](int64_t value) { return value >= 0 ? value / stride : -((-value + stride - 1) / stride); };
    /* Rows that end after `begin`, and rows that begin before `end`. */
    int64_t from = std::max<int64_t>(floor(begin - bytes - first) + 1, 0);
    int64_t to = std::min<int64_t>(floor(end - 1 - first), static_cast<int64_t>(use.rows) - 1);
    return from <= to;
}

static bool meet(const CardUse& one, const CardUse& other) {
    if (end_of(one) <= begin_of(other) || end_of(other) <= begin_of(one)) return false;
    if (one.rows > other.rows) return meet(other, one);
    for (size_t row = 0; row < one.rows; row++) {
        int64_t begin = begin_of(one) + static_cast<int64_t>(row * one.stride);
        if (meets(begin, begin + static_cast<int64_t>(one.bytes), other)) return true;
    }
    return false;
}

bool overlap(const std::vector<CardUse>& these, const std::vector<CardUse>& those) {
    for (const CardUse& one : these) {
        for (const CardUse& other : those) {
            if (meet(one, other)) return true;
        }
    }
    return false;
}

bool aligned(const Matrices& all, size_t bytes) {
    uint64_t sum = reinterpret_cast<uint64_t>(all.at);
    if (all.columns > 1) sum |= all.leading * all.width;
    if (all.count > 1) sum |= static_cast<uint64_t>(all.stride) * all.width;
    return sum % bytes == 0;
}
}  // namespace card

/* The engine of the unit tests: its card is the buffers of one run. */
#include <algorithm>

#include "hooks.hpp"

namespace {
struct Region {
    uint64_t begin, end;
};
/* Bytes before and after each buffer that are no buffer's: GAP of memory.rs. */
const uint64_t GAP_BYTES = 16;
/* In the order of their addresses. */
const Region* regions;
size_t region_count;
Region last;
}  // namespace

extern "C" {
uint64_t card_begin, card_end;

const char* card_touch(const void* at, size_t bytes, int) {
    uint64_t begin = (uint64_t)at, end = begin + bytes;
    if (begin >= last.begin && end <= last.end) return nullptr;
    const Region* after = std::upper_bound(regions, regions + region_count, begin, [](uint64_t at, const Region& x) { return at < x.begin; });
    if (after == regions || end > after[-1].end) return "an access outside of every buffer";
    last = after[-1];
    return nullptr;
}

[[noreturn]] void card_outside(long long index, long long len) { card::fail("element %lld of %lld", index, len); }

void* card_shared_at(long long offset, long long bytes) {
    long long len = (long long)card::run.dynamic.len;
    if (offset < 0 || bytes < 0 || offset + bytes > len) card::fail("shared memory to byte %lld, the launch has %lld", offset + bytes, len);
    return card_shared_memory + offset;
}

/* Runs a kernel; `error` gets the first mistake in words, and is empty without one. */
__attribute__((visibility("default"))) void emulate(const CardEntry* entry, void* const* parameters, const unsigned* grid, unsigned threads,
                                                    unsigned shared, uint64_t order, const Region* buffers, size_t count, char* error,
                                                    size_t error_len) {
    regions = buffers;
    region_count = count;
    last = {};
    card_begin = count ? buffers[0].begin - GAP_BYTES : 0;
    card_end = count ? buffers[count - 1].end + GAP_BYTES : 0;
    card::Launch launch = {entry, parameters, {grid[0], grid[1], grid[2]}, {threads, 1, 1}, shared, nullptr, 0, order, true};
    const char* wrong = card::card_run(launch);
    snprintf(error, error_len, "%s", wrong ? wrong : "");
}
}

/* Dry runs: nothing is computed, and what the host reads is invented from what wrote it last. */
#include <cstring>

#include "state.hpp"

namespace card {
static const uint64_t REMEMBERED_MAX = 4096;

void note_origin(uint64_t address, const char* writer, int parameter) {
    Allocation* allocation = live_at(address);
    if (!allocation) return;
    allocation->origin.writer = writer;
    allocation->origin.parameter = parameter;
    allocation->origin.times++;
    allocation->origin.bytes.clear();
}

void remember_copy(uint64_t address, const void* from, uint64_t bytes) {
    Allocation* allocation = live_at(address);
    if (!allocation) return;
    allocation->origin.writer = "cuMemcpyHtoDAsync";
    if (bytes > REMEMBERED_MAX) return;
    const unsigned char* first = static_cast<const unsigned char*>(from);
    allocation->origin.bytes[address - allocation->begin].assign(first, first + bytes);
}

void invent(Allocation* allocation, uint64_t offset, void* to, uint64_t bytes) {
    auto remembered = allocation->origin.bytes.find(offset);
    memset(to, 0, bytes);
    if (remembered != allocation->origin.bytes.end()) memcpy(to, remembered->second.data(), std::min<uint64_t>(bytes, remembered->second.size()));
}
}  // namespace card

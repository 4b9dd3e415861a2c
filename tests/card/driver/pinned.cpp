/* Page-locked host memory: the card reads and writes it when an operation runs, not when it is called.
 *
 * What cuMemHostAlloc gives is mapped twice. Until the host has waited for a copy, its own view of the bytes is closed: altogether where the
 * copy writes them, for writes where it reads them; the copy itself goes through the other view. Only whole pages can be closed, so that
 * a page of which other bytes are the host's to use stays open. */
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <map>

#include "context.hpp"
#include "transfer.hpp"

namespace card {
static const uint64_t PAGE = 4096;

/* What an operation that the host has not waited for does with bytes of the host's. */
struct Flight {
    uint64_t begin, end;
    bool written;
    const char* name;
    Point by;
};

struct Pinned {
    uint64_t begin, bytes;
    /* The card's view of the same pages; nullptr where they are not ours. */
    char* of_card;
    std::vector<Flight> flights;

    uint64_t end() const { return begin + bytes; }
};
static std::map<uint64_t, Pinned>& pinned = *new std::map<uint64_t, Pinned>;
static size_t flying;

static Pinned* find_pinned(uint64_t address, uint64_t bytes) {
    auto after = pinned.upper_bound(address);
    if (after == pinned.begin()) return nullptr;
    Pinned& found = std::prev(after)->second;
    return address + bytes <= found.end() ? &found : nullptr;
}

bool is_pinned(const void* at, uint64_t bytes) { return find_pinned(reinterpret_cast<uint64_t>(at), bytes) != nullptr; }

void* seen_by_card(const void* at) {
    uint64_t address = reinterpret_cast<uint64_t>(at);
    Pinned* found = find_pinned(address, 1);
    return found && found->of_card ? found->of_card + (address - found->begin) : const_cast<void*>(at);
}

static void protect(uint64_t begin, uint64_t end, int protection) {
    if (begin < end) mprotect(reinterpret_cast<void*>(begin), end - begin, protection);
}

/* Closes pages all of whose bytes are in flight; those that the card only reads too, or not. */
static void close_pages(const Pinned& memory, bool read_too, int protection) {
    std::vector<std::pair<uint64_t, uint64_t>> parts;
    for (const Flight& flight : memory.flights) {
        if (flight.written || read_too) parts.push_back({flight.begin, flight.end});
    }
    std::sort(parts.begin(), parts.end());
    for (size_t i = 0; i < parts.size();) {
        auto [begin, end] = parts[i];
        for (; i < parts.size() && parts[i].first <= end; i++) end = std::max(end, parts[i].second);
        /* Nobody uses what follows the allocation in its last page. */
        uint64_t first = (begin + PAGE - 1) / PAGE * PAGE, last = end == memory.end() ? end + PAGE - 1 : end;
        protect(first, last / PAGE * PAGE, protection);
    }
}

static void guard(const Pinned& memory) {
    if (!memory.of_card) return;
    protect(memory.begin, memory.end(), PROT_READ | PROT_WRITE);
    close_pages(memory, true, PROT_READ);
    close_pages(memory, false, PROT_NONE);
}

const char* begin_flight(const void* at, uint64_t bytes, bool written, const Stream& stream, const Operation& operation) {
    uint64_t begin = reinterpret_cast<uint64_t>(at);
    Pinned* memory = find_pinned(begin, bytes);
    if (!memory) return nullptr;
    for (const Flight& other : memory->flights) {
        bool conflicts = (written || other.written) && other.begin < begin + bytes && begin < other.end;
        if (!conflicts || other.by.stream == stream.id || operation.after->holds(other.by)) continue;
        return words("%s on stream %u %s pinned memory of the host's that %s on stream %u %s, and nothing orders the two: an event or a synchronisation is missing",
                     operation.name, stream.id, written ? "writes" : "reads", other.name, other.by.stream, other.written ? "writes" : "reads");
    }
    memory->flights.push_back({begin, begin + bytes, written, operation.name, {stream.id, operation.place}});
    flying++;
    guard(*memory);
    return nullptr;
}

void end_flights(const Clock& waited_for) {
    if (!flying) return;
    auto landed = [&](const Flight& flight) { return waited_for.holds(flight.by); };
    for (auto& [begin, memory] : pinned) {
        std::vector<Flight>& flights = memory.flights;
        size_t before = flights.size();
        flights.erase(std::remove_if(flights.begin(), flights.end(), landed), flights.end());
        if (flights.size() == before) continue;
        flying -= before - flights.size();
        guard(memory);
    }
}

void end_all_flights() {
    for (auto& [begin, memory] : pinned) {
        memory.flights.clear();
        guard(memory);
    }
    flying = 0;
}

const char* describe_flight(uint64_t address) {
    Pinned* memory = find_pinned(address, 1);
    if (!memory) return nullptr;
    for (const Flight& flight : memory->flights) {
        if (address < flight.begin || address >= flight.end) continue;
        return words("pinned memory that %s on stream %u %s, and has not waited for it: byte %llu of %llu", flight.name, flight.by.stream,
                     flight.written ? "writes" : "reads", (unsigned long long)(address - flight.begin), (unsigned long long)(flight.end - flight.begin));
    }
    return nullptr;
}

static CUresult forget(const char* call, void* at, bool ours) {
    auto found = pinned.find(reinterpret_cast<uint64_t>(at));
    if (found == pinned.end() || (found->second.of_card != nullptr) != ours) {
        CUresult error = ours ? CUDA_ERROR_INVALID_VALUE : CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED;
        return refuse(words("%s: %p is not such memory", call, at), error);
    }
    /* A copy that still waits may use it. */
    CUresult result = synchronize_all();
    if (ours) {
        munmap(at, found->second.bytes);
        munmap(found->second.of_card, found->second.bytes);
    }
    pinned.erase(found);
    return result;
}
}  // namespace card

using namespace card;

CARD_API CUresult cuMemHostAlloc(void** at, size_t bytes, unsigned) {
    ENTER("cuMemHostAlloc");
    if (bytes == 0) return CUDA_ERROR_INVALID_VALUE;
    int pages = memfd_create("pinned", MFD_CLOEXEC);
    if (pages < 0) return CUDA_ERROR_OUT_OF_MEMORY;
    void* views[2] = {MAP_FAILED, MAP_FAILED};
    if (ftruncate(pages, static_cast<off_t>(bytes)) == 0) {
        for (void*& view : views) view = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, pages, 0);
    }
    close(pages);
    if (views[0] == MAP_FAILED || views[1] == MAP_FAILED) {
        for (void* view : views) view == MAP_FAILED ? 0 : munmap(view, bytes);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *at = views[0];
    uint64_t begin = reinterpret_cast<uint64_t>(*at);
    pinned[begin] = {begin, bytes, static_cast<char*>(views[1]), {}};
    return CUDA_SUCCESS;
}

CARD_API CUresult cuMemFreeHost(void* at) {
    ENTER("cuMemFreeHost");
    return forget("cuMemFreeHost", at, true);
}

CARD_API CUresult cuMemHostRegister_v2(void* at, size_t bytes, unsigned) {
    ENTER("cuMemHostRegister");
    if (bytes == 0) return CUDA_ERROR_INVALID_VALUE;
    uint64_t begin = reinterpret_cast<uint64_t>(at);
    if (bytes > ~begin) return CUDA_ERROR_INVALID_VALUE;
    auto next = pinned.lower_bound(begin);
    bool over_next = next != pinned.end() && next->first < begin + bytes;
    bool over_last = next != pinned.begin() && std::prev(next)->second.end() > begin;
    if (over_next || over_last) return CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED;
    pinned[begin] = {begin, bytes, nullptr, {}};
    return CUDA_SUCCESS;
}

CARD_API CUresult cuMemHostUnregister(void* at) {
    ENTER("cuMemHostUnregister");
    return forget("cuMemHostUnregister", at, false);
}

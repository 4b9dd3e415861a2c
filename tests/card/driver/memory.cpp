/* The card's addresses: one range that the host cannot touch, cut into slots with a gap after each, and for each byte whether
 * it was ever written.
 *
 * An address is not handed out again before settings().quarantine_bytes of others were freed, so that most uses after a free
 * find nothing; the memory model that decides what fits is pool.cpp's, not this one. */
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <unordered_map>

#include "engine.hpp"
#include "races.hpp"
#include "state.hpp"

uint64_t card_begin, card_end;

namespace card {
/* Addresses, not memory: they are taken when they are touched. */
static const uint64_t ARENA_BYTES = 1ull << 40, ARENA_AT = 0x300000000000ull;
static const uint64_t GRANULE = 512, GAP = 512, HUGE_PAGE = 2 << 20;
/* Freed slots from this size on give their pages back once IDLE_BYTES of them wait. */
static const uint64_t LARGE = 64 << 10, IDLE_BYTES = 1ull << 30;

struct Idle {
    uint64_t begin, slot_bytes, freed_at;
};

std::map<uint64_t, std::shared_ptr<Allocation>>& live = *new std::map<uint64_t, std::shared_ptr<Allocation>>;
std::map<uint64_t, Allocation*>& leaving = *new std::map<uint64_t, Allocation*>;
static std::map<uint64_t, std::string>& graves = *new std::map<uint64_t, std::string>;
static Allocation** granules;
static unsigned char* shadow;
static uint64_t top;
static std::unordered_map<uint64_t, std::deque<Idle>>& idle = *new std::unordered_map<uint64_t, std::deque<Idle>>;
static std::deque<Idle>& idle_large = *new std::deque<Idle>;
static uint64_t freed_bytes, idle_large_bytes;
static uint64_t allocations;
static int opened;

static void* reserve(void* at, uint64_t bytes, int protection) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | (at ? MAP_FIXED_NOREPLACE : 0);
    void* made = mmap(at, bytes, protection, flags, -1, 0);
    if (made == MAP_FAILED && at) return reserve(nullptr, bytes, protection);
    if (made == MAP_FAILED) {
        fprintf(stderr, "card: %llu bytes of addresses cannot be reserved: %s\n", (unsigned long long)bytes, strerror(errno));
        exit(2);
    }
    madvise(made, bytes, MADV_HUGEPAGE);
    madvise(made, bytes, MADV_DONTDUMP);
    return made;
}

void reserve_addresses() {
    if (card_begin) return;
    uint64_t begin = reinterpret_cast<uint64_t>(reserve(reinterpret_cast<void*>(ARENA_AT), ARENA_BYTES, PROT_NONE));
    top = begin;
    int both = PROT_READ | PROT_WRITE;
    granules = static_cast<Allocation**>(reserve(nullptr, ARENA_BYTES / GRANULE * sizeof *granules, both));
    if (settings().shadow) shadow = static_cast<unsigned char*>(reserve(nullptr, ARENA_BYTES, both));
    card_begin = begin;
    card_end = begin + ARENA_BYTES;
}

/* The end of what is opened: whole huge pages, for with small ones opening and closing takes longer than most kernels. */
static uint64_t end_of_pages() { return (top + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE; }

static void protect(uint64_t begin, int protection) {
    if (end_of_pages() > begin) mprotect(reinterpret_cast<void*>(begin), end_of_pages() - begin, protection);
}

Opened::Opened() {
    if (opened++ == 0 && !settings().dry) protect(card_begin, PROT_READ | PROT_WRITE);
}
Opened::~Opened() {
    if (--opened == 0 && !settings().dry) protect(card_begin, PROT_NONE);
}

/* Sizes in steps of an eighth, so that slots fit other allocations again. */
static uint64_t slot_for(uint64_t bytes) {
    uint64_t step = GRANULE;
    while (bytes > step * 16) step *= 2;
    return (std::max<uint64_t>(bytes, 1) + step - 1) / step * step + GAP;
}

static uint64_t take_slot(uint64_t slot_bytes) {
    std::deque<Idle>& waiting = idle[slot_bytes];
    if (!waiting.empty() && freed_bytes - waiting.front().freed_at >= settings().quarantine_bytes) {
        uint64_t begin = waiting.front().begin;
        waiting.pop_front();
        if (slot_bytes >= LARGE) {
            idle_large_bytes -= slot_bytes;
            auto same = [&](const Idle& slot) { return slot.begin == begin; };
            idle_large.erase(std::find_if(idle_large.begin(), idle_large.end(), same));
        }
        graves.erase(begin);
        return begin;
    }
    uint64_t begin = top;
    if (begin + slot_bytes > card_end) refuse("the process used up all addresses of the software card");
    uint64_t opened_to = end_of_pages();
    top += slot_bytes;
    if (opened && !settings().dry) protect(opened_to, PROT_READ | PROT_WRITE);
    return begin;
}

static void drop_pages(uint64_t begin, uint64_t end) {
    begin = (begin + 4095) & ~4095ull;
    end &= ~4095ull;
    if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

static void give_slot(uint64_t begin, uint64_t slot_bytes) {
    freed_bytes += slot_bytes;
    Idle slot{begin, slot_bytes, freed_bytes};
    idle[slot_bytes].push_back(slot);
    if (slot_bytes < LARGE) return;
    idle_large.push_back(slot);
    idle_large_bytes += slot_bytes;
    while (idle_large_bytes > IDLE_BYTES) {
        Idle oldest = idle_large.front();
        idle_large.pop_front();
        idle[oldest.slot_bytes].pop_front();
        idle_large_bytes -= oldest.slot_bytes;
        if (settings().dry) continue;
        drop_pages(oldest.begin, oldest.begin + oldest.slot_bytes);
        if (shadow) {
            uint64_t at = reinterpret_cast<uint64_t>(shadow) + (oldest.begin - card_begin);
            drop_pages(at, at + oldest.slot_bytes);
        }
    }
}

Allocation* place_allocation(uint64_t bytes, unsigned stream) {
    uint64_t slot_bytes = slot_for(bytes), begin = take_slot(slot_bytes);
    auto made = std::make_shared<Allocation>();
    Allocation* allocation = made.get();
    allocation->begin = begin;
    allocation->size = bytes;
    allocation->slot_bytes = slot_bytes;
    allocation->stream = stream;
    allocation->number = ++allocations;
    live[begin] = std::move(made);
    if (settings().dry) return allocation;
    uint64_t first = (begin - card_begin) / GRANULE, count = (bytes + GRANULE - 1) / GRANULE;
    std::fill_n(granules + first, count, allocation);
    if (shadow) {
        memset(shadow + (begin - card_begin), 0, bytes);
    } else {
        Opened pages;
        memset(reinterpret_cast<void*>(begin), 0xff, bytes);
    }
    return allocation;
}

void bury(Allocation* allocation, const char* by) {
    uint64_t begin = allocation->begin;
    if (!settings().dry) {
        uint64_t count = (allocation->size + GRANULE - 1) / GRANULE;
        std::fill_n(granules + (begin - card_begin) / GRANULE, count, nullptr);
    }
    if (allocation->marks) drop_marks(allocation->marks);
    allocation->marks = nullptr;
    allocation->buried = true;
    leaving.erase(begin);
    graves[begin] = words("allocation %llu (%llu bytes), which %s", (unsigned long long)allocation->number,
                          (unsigned long long)allocation->size, by);
    give_slot(begin, allocation->slot_bytes);
}

Allocation* live_at(uint64_t address) {
    auto after = live.upper_bound(address);
    if (after == live.begin()) return nullptr;
    Allocation* found = std::prev(after)->second.get();
    /* One past the end still names it, as in C. */
    return address <= found->end() ? found : nullptr;
}

Allocation* seen_at(uint64_t address) {
    if (address < card_begin || address >= card_end) return nullptr;
    if (settings().dry) return live_at(address);
    Allocation* found = granules[(address - card_begin) / GRANULE];
    return found && address < found->end() ? found : nullptr;
}

/* The entry that begins last at or before the address. */
template <class Map> static auto before(Map& map, uint64_t address) {
    auto after = map.upper_bound(address);
    return after == map.begin() ? map.end() : std::prev(after);
}

const char* describe(uint64_t address) {
    typedef unsigned long long Long;
    if (address < card_begin || address >= card_end) return words("0x%llx is no address of the card", (Long)address);
    auto alive = before(live, address);
    auto freed = before(leaving, address);
    auto grave = before(graves, address);
    const Allocation* nearest = alive == live.end() ? nullptr : alive->second.get();
    bool was_freed = freed != leaving.end() && (!nearest || freed->first > nearest->begin);
    if (was_freed) nearest = freed->second;
    if (grave != graves.end() && (!nearest || grave->first > nearest->begin)) {
        return words("0x%llx is byte %llu of what was %s", (Long)address, (Long)(address - grave->first), grave->second.c_str());
    }
    if (!nearest) return words("0x%llx was never allocated", (Long)address);
    Long offset = address - nearest->begin, number = nearest->number, size = nearest->size;
    const char* state = was_freed ? ", which was freed" : "";
    if (address < nearest->end()) return words("byte %llu of allocation %llu (%llu bytes)%s", offset, number, size, state);
    return words("0x%llx is %llu bytes past the end of allocation %llu (%llu bytes)%s", (Long)address, offset - size, number, size, state);
}

const char* outside(uint64_t address, uint64_t bytes) {
    typedef unsigned long long Long;
    Allocation* allocation = live_at(address);
    if (!allocation) return describe(address);
    if (bytes <= allocation->end() - address) return nullptr;
    return words("%llu bytes from byte %llu of allocation %llu, which has %llu", (Long)bytes, (Long)(address - allocation->begin),
                 (Long)allocation->number, (Long)allocation->size);
}

Range whole_range(uint64_t address, uint64_t bytes) {
    auto after = live.upper_bound(address);
    bool found = settings().dry && after != live.begin();
    return {address, bytes, found ? std::prev(after)->second : nullptr};
}

void mark_whole(uint64_t address, uint64_t bytes) {
    Allocation* allocation = seen_at(address);
    if (allocation && address == allocation->begin && bytes == allocation->size) allocation->whole = true;
}

const char* say_race(const Race& race) {
    return __builtin_expect(race.words != nullptr, 0) ? words("%s: %s", race.words, describe(reinterpret_cast<uint64_t>(race.at))) : nullptr;
}

/* Whether all these bytes of the shadow are 1. */
static bool all_written(const unsigned char* at, size_t bytes) {
    if (bytes == 4) {
        uint32_t four;
        memcpy(&four, at, 4);
        return four == 0x01010101u;
    }
    return !memchr(at, 0, bytes);
}
}  // namespace card

using namespace card;

/* `write` of an atomic operation. */
static const int ATOMIC_WRITE = 1 | 4;

/* Hot: every access of every kernel comes here. */
const char* card_touch(const void* pointer, size_t bytes, int write) {
    uint64_t at = reinterpret_cast<uint64_t>(pointer);
    Allocation* allocation = granules[(at - card_begin) / GRANULE];
    if (__builtin_expect(!allocation || at + bytes > allocation->end(), 0)) {
        const char* verb = write & 1 ? "writes" : "reads";
        if (!allocation || at >= allocation->end()) return words("%s %zu bytes at an address it may not use: %s", verb, bytes, describe(at));
        return words("%s %zu bytes over the end: %s", verb, bytes, describe(at));
    }
    bool writes = write & 1;
    note_touch(allocation, at, at + bytes, writes);
    if (shadow && !allocation->whole) {
        unsigned char* said = shadow + (at - card_begin);
        if (writes) memset(said, 1, bytes);
        else if (__builtin_expect(!all_written(said, bytes), 0))
            return words("reads %zu bytes that nothing has written: %s%s", bytes, describe(at), describe_waiting_write(at, bytes));
    }
    const char* race = allocation->marked_by == touching ? say_race(check_race(*allocation->marks, at - allocation->begin, pointer, bytes, write)) : nullptr;
    if (__builtin_expect(write == ATOMIC_WRITE, 0)) note_acquire();
    return race;
}

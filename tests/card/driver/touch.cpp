/* Which operations touched an allocation, and whether something orders those that conflict. */
#include <algorithm>

#include "state.hpp"

namespace card {
/* So that an allocation that everything reads does not gather reads without end; the oldest are forgotten. A model's worth of slices. */
static const size_t ACCESSES_MAX = 4096;

uint64_t touching = 1;
std::vector<Allocation*>& touched = *new std::vector<Allocation*>;

void begin_touching() {
    touching++;
    touched.clear();
}

static const char* verb(bool writes) { return writes ? "writes" : "reads"; }

static const char* check(const Allocation& allocation, const Access& access, const Clock& after) {
    typedef unsigned long long Long;
    for (const Access& earlier : allocation.accesses) {
        bool conflicts = (earlier.writes || access.writes) && earlier.begin < access.end && access.begin < earlier.end;
        if (!conflicts || earlier.by.stream == access.by.stream || after.holds(earlier.by)) continue;
        return words("%s on stream %u %s bytes %llu to %llu of allocation %llu, which %s on stream %u %s, and nothing orders the two: "
                     "an event or a synchronisation is missing",
                     access.name, access.by.stream, verb(access.writes), (Long)(access.begin - allocation.begin),
                     (Long)(access.end - allocation.begin), (Long)allocation.number, earlier.name, earlier.by.stream,
                     verb(earlier.writes));
    }
    return nullptr;
}

static void keep(Allocation& allocation, const Access& access) {
    std::vector<Access>& all = allocation.accesses;
    auto over = [&](const Access& earlier) {
        bool within = access.begin <= earlier.begin && earlier.end <= access.end;
        bool same = earlier.by.stream == access.by.stream && within && (access.writes || !earlier.writes);
        /* Whatever comes from now on comes after what the host has seen end. */
        return same || seen_by_host().holds(earlier.by);
    };
    all.erase(std::remove_if(all.begin(), all.end(), over), all.end());
    if (all.size() >= ACCESSES_MAX) all.erase(all.begin());
    all.push_back(access);
}

/* From the first to the last byte that these ranges have of an allocation. */
struct Span {
    uint64_t begin = ~0ull, end = 0;

    void join(const std::vector<Range>& ranges, const Allocation& allocation) {
        for (const Range& range : ranges) {
            if (range.at < allocation.begin || range.at >= allocation.end()) continue;
            begin = std::min(begin, range.at);
            end = std::max(end, range.at + range.bytes);
        }
    }
    bool holds(const Access& access) const { return begin <= access.begin && access.end <= end; }
};

/* A kernel writes through the parameters that it is known to write, and no others; so what is said of those is true. */
static const char* check_declared_write(const Allocation& allocation, const Access& write, const Operation& operation) {
    typedef unsigned long long Long;
    Span declared;
    declared.join(operation.writes, allocation);
    if (operation.books || declared.holds(write)) return nullptr;
    return words("%s on stream %u writes bytes %llu to %llu of allocation %llu, which no parameter that it is known to write has: they are in its row of "
                 "tests/card/driver/dry_table.cpp, or without a row those that are no pointers to const",
                 operation.name, write.by.stream, (Long)(write.begin - allocation.begin), (Long)(write.end - allocation.begin), (Long)allocation.number);
}

/* A kernel reads what its parameters have, and not what happens to lie beside it. */
static const char* check_declared_read(const Allocation& allocation, const Access& read, const Operation& operation) {
    typedef unsigned long long Long;
    Span declared;
    declared.join(operation.reads, allocation);
    declared.join(operation.writes, allocation);
    if (!operation.declares_reads || declared.holds(read)) return nullptr;
    const char* has = "none of its bytes";
    if (declared.end) has = words("bytes %llu to %llu of it", (Long)(declared.begin - allocation.begin), (Long)(declared.end - allocation.begin));
    return words("%s on stream %u reads bytes %llu to %llu of allocation %llu, and its parameters have %s", operation.name, read.by.stream,
                 (Long)(read.begin - allocation.begin), (Long)(read.end - allocation.begin), (Long)allocation.number, has);
}

const char* end_touching(const Stream& stream, const Operation& operation) {
    const char* wrong = nullptr;
    Point by{stream.id, operation.place};
    for (Allocation* allocation : touched) {
        bool reads = allocation->read_end != 0, writes = allocation->written_end != 0;
        Access read{by, operation.name, allocation->read_begin, allocation->read_end, false};
        Access write{by, operation.name, allocation->written_begin, allocation->written_end, true};
        if (!wrong && writes) wrong = check(*allocation, write, *operation.after);
        if (!wrong && writes) wrong = check_declared_write(*allocation, write, operation);
        if (!wrong && reads) wrong = check(*allocation, read, *operation.after);
        if (!wrong && reads) wrong = check_declared_read(*allocation, read, operation);
        if (writes) keep(*allocation, write);
        if (reads) keep(*allocation, read);
    }
    return wrong;
}
}  // namespace card

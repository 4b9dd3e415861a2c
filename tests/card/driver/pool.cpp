/* A model of the driver's allocators, which decides what fits and what the card has left; addresses are memory.cpp's.
 *
 * Stream-ordered: 32 MiB or more at once from the card, cut at 512 bytes; best fit; a freed block serves another allocation whose
 * stream comes after the free, and its neighbours join it. Plain: multiples of 2 MiB from 1 MiB on, and shared slabs of 2 MiB
 * below. NVIDIA does not say how its allocators work; the sizes are what has been seen of them. */
#include "pool.hpp"

#include <algorithm>

#include "account.hpp"
#include "count.hpp"

namespace card {
static const uint64_t UNIT = 512, SLAB = 2 << 20, GROWTH = 32 << 20, PLAIN_LARGE = 1 << 20;
/* More than any card has, and so little that sums of it are numbers. */
static const uint64_t ALLOCATION_MAX = 1ull << 50;

static uint64_t round_up(uint64_t bytes, uint64_t unit) { return (bytes + unit - 1) / unit * unit; }

Pool& stream_pool() {
    static Pool& pool = *new Pool(true);
    return pool;
}

Pool& plain_pool() {
    static Pool& pool = *new Pool(false);
    return pool;
}

void release_pools() {
    stream_pool().trim(stream_pool().release_threshold);
    plain_pool().trim(0);
}

void empty_pools() {
    stream_pool().trim(0);
    plain_pool().trim(0);
}

void Pool::set_idle(Block* block) { idle.emplace(block->bytes, block); }

void Pool::unset_idle(Block* block) {
    auto range = idle.equal_range(block->bytes);
    for (auto at = range.first; at != range.second; ++at) {
        if (at->second != block) continue;
        idle.erase(at);
        return;
    }
}

static bool held(const std::vector<Point>& points, const Clock& clock) {
    return std::all_of(points.begin(), points.end(), [&](Point point) { return clock.holds(point); });
}

Block* Pool::find(uint64_t bytes, const Clock* clock) {
    for (auto at = idle.lower_bound(bytes); at != idle.end(); ++at) {
        if (!clock || held(at->second->freed, *clock)) return at->second;
    }
    return nullptr;
}

Block* Pool::grow(uint64_t bytes) {
    uint64_t wanted = ordered ? std::max(GROWTH, round_up(bytes, SLAB)) : round_up(bytes, SLAB);
    if (!take_from_card(wanted)) {
        empty_pools();
        if (!take_from_card(wanted)) return nullptr;
    }
    reserved += wanted;
    reserved_high = std::max(reserved_high, reserved);
    auto chunk = std::make_unique<Chunk>();
    chunk->bytes = wanted;
    chunk->first = new Block{chunk.get(), 0, wanted, false, nullptr, nullptr, {}};
    Block* block = chunk->first;
    chunks.push_back(std::move(chunk));
    set_idle(block);
    return block;
}

void Pool::cut(Block* block, uint64_t bytes) {
    if (block->bytes - bytes < UNIT) return;
    Block* rest = new Block{block->chunk, block->offset + bytes, block->bytes - bytes, false, block, block->after, block->freed};
    if (rest->after) rest->after->before = rest;
    block->after = rest;
    block->bytes = bytes;
    set_idle(rest);
}

Block* Pool::take(uint64_t bytes, Stream* stream) {
    if (bytes > ALLOCATION_MAX) return nullptr;
    bytes = round_up(std::max<uint64_t>(bytes, 1), !ordered && bytes >= PLAIN_LARGE ? SLAB : UNIT);
    Clock clock = stream ? clock_of(stream) : seen_by_host();
    clock.join(seen_by_host());
    Block* block = find(bytes, &clock);
    if (!block) block = grow(bytes);
    if (!block && (block = find(bytes, nullptr))) {
        /* As a driver does before it gives up: the stream waits for the free. */
        if (!stream) synchronize_all();
        for (Point point : block->freed) {
            Clock freed;
            freed.raise(point);
            if (stream) wait_for(stream, freed);
        }
    }
    if (!block) return nullptr;
    unset_idle(block);
    cut(block, bytes);
    block->used = true;
    block->freed.clear();
    used += block->bytes;
    used_high = std::max(used_high, used);
    return block;
}

/* A block that is in no list and its free right neighbour become one. */
void Pool::absorb_next(Block* block) {
    Block* next = block->after;
    if (!next || next->used) return;
    unset_idle(next);
    block->bytes += next->bytes;
    block->after = next->after;
    if (next->after) next->after->before = block;
    for (Point point : next->freed) {
        bool known = seen_by_host().holds(point);
        for (Point& other : block->freed) {
            if (other.stream != point.stream) continue;
            other.place = std::max(other.place, point.place);
            known = true;
        }
        if (!known) block->freed.push_back(point);
    }
    delete next;
}

void Pool::give(Block* block, Point freed) {
    used -= block->bytes;
    block->used = false;
    if (freed.place) block->freed.push_back(freed);
    absorb_next(block);
    Block* before = block->before;
    if (before && !before->used) {
        unset_idle(before);
        absorb_next(before);
        block = before;
    }
    set_idle(block);
}

void Pool::trim(uint64_t keep) {
    for (size_t i = 0; i < chunks.size();) {
        Block* first = chunks[i]->first;
        bool whole = !first->used && first->bytes == chunks[i]->bytes && held(first->freed, seen_by_host());
        if (!whole || reserved - chunks[i]->bytes < keep) {
            i++;
            continue;
        }
        unset_idle(first);
        reserved -= chunks[i]->bytes;
        give_to_card(chunks[i]->bytes);
        delete first;
        chunks.erase(chunks.begin() + i);
    }
}
}  // namespace card

/* Memory as a driver hands it out: chunks taken from the card, cut into blocks. */
#pragma once
#include <map>
#include <memory>
#include <vector>

#include "clock.hpp"
#include "state.hpp"

namespace card {
struct Chunk;

struct Block {
    Chunk* chunk;
    uint64_t offset, bytes;
    bool used;
    Block *before, *after;
    /* A free block may be used again after these. */
    std::vector<Point> freed;
};

struct Chunk {
    uint64_t bytes;
    Block* first;
};

struct Pool {
    explicit Pool(bool ordered) : ordered(ordered) {}
    /* nullptr when the card has no room. */
    Block* take(uint64_t bytes, Stream* stream);
    void give(Block* block, Point freed);
    /* Gives whole chunks that nothing needs back to the card, as long as `keep` bytes stay. */
    void trim(uint64_t keep);

    /* cuMemAllocAsync's; else cuMemAlloc's. */
    const bool ordered;
    uint64_t release_threshold = 0;
    uint64_t reserved = 0, reserved_high = 0, used = 0, used_high = 0;

  private:
    Block* find(uint64_t bytes, const Clock* clock);
    Block* grow(uint64_t bytes);
    void cut(Block* block, uint64_t bytes);
    void set_idle(Block* block);
    void unset_idle(Block* block);
    void absorb_next(Block* block);

    std::multimap<uint64_t, Block*> idle;
    std::vector<std::unique_ptr<Chunk>> chunks;
};

/* The device's default pool, and where cuMemAlloc takes from. */
Pool& stream_pool();
Pool& plain_pool();
/* At a synchronisation: what lies above the threshold goes back. */
void release_pools();
void empty_pools();
}  // namespace card

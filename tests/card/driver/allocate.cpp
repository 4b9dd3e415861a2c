/* cuMemAlloc, cuMemAllocAsync, their frees, and the device's pool. */
#include "account.hpp"
#include "context.hpp"
#include "count.hpp"
#include "fail.hpp"
#include "pool.hpp"

using namespace card;

namespace {
CUresult allocate(Pool& pool, const char* call, CUdeviceptr* at, uint64_t bytes, Stream* stream) {
    unsigned of_stream = stream ? stream->id : 0;
    Block* block = allocation_must_fail() ? nullptr : pool.take(bytes, stream);
    if (!block) {
        counts.failed_allocations++;
        trace("failed allocation", call, bytes, of_stream);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    Allocation* allocation = place_allocation(bytes, of_stream);
    allocation->pool = &pool;
    allocation->block = block;
    count_allocation(bytes);
    trace("allocate", call, bytes, of_stream, words(", \"at\": %llu", (unsigned long long)allocation->begin));
    *at = allocation->begin;
    if (!stream) return CUDA_SUCCESS;
    std::shared_ptr<Allocation> shared = live[allocation->begin];
    Operation& operation = enqueue(stream, call, [shared]() -> const char* {
        note_touch(shared.get(), shared->begin, shared->end(), true);
        return nullptr;
    });
    operation.books = true;
    relieve();
    return CUDA_SUCCESS;
}

/* The allocation that begins there, taken out of those that calls may use. */
std::shared_ptr<Allocation> end_life(const char* call, CUdeviceptr at, CUresult* result) {
    auto found = live.find(at);
    if (found == live.end()) {
        const char* what = live_at(at) ? "which is not where an allocation begins" : "which is not allocated";
        *result = refuse(words("%s of 0x%llx, %s: %s", call, at, what, describe(at)), CUDA_ERROR_INVALID_VALUE);
        return nullptr;
    }
    std::shared_ptr<Allocation> allocation = found->second;
    live.erase(found);
    leaving[at] = allocation.get();
    count_free(allocation->size);
    trace("free", call, allocation->size, allocation->stream, words(", \"at\": %llu", at));
    return allocation;
}
}  // namespace

CARD_API CUresult cuMemAllocAsync(CUdeviceptr* at, size_t bytes, CUstream handle) {
    Locked locked(lock);
    if (CUresult early = enter_by_stream("cuMemAllocAsync", handle)) return early;
    Stream* stream = find_stream(handle);
    if (!stream) return refuse("cuMemAllocAsync: the stream does not exist", CUDA_ERROR_INVALID_HANDLE);
    return allocate(stream_pool(), "cuMemAllocAsync", at, bytes, stream);
}

CARD_API CUresult cuMemFreeAsync(CUdeviceptr at, CUstream handle) {
    Locked locked(lock);
    if (CUresult early = enter_by_stream("cuMemFreeAsync", handle)) return early;
    Stream* stream = find_stream(handle);
    if (!stream) return refuse("cuMemFreeAsync: the stream does not exist", CUDA_ERROR_INVALID_HANDLE);
    if (!at) return CUDA_SUCCESS;
    CUresult result = CUDA_SUCCESS;
    std::shared_ptr<Allocation> allocation = end_life("cuMemFreeAsync", at, &result);
    if (!allocation) return result;
    const char* by = "cuMemFreeAsync freed";
    Operation& operation = enqueue(stream, "cuMemFreeAsync", [allocation, by]() -> const char* {
        note_touch(allocation.get(), allocation->begin, allocation->end(), true);
        bury(allocation.get(), by);
        return nullptr;
    });
    operation.books = true;
    allocation->pool->give(allocation->block, {stream->id, operation.place});
    relieve();
    return CUDA_SUCCESS;
}

CARD_API CUresult cuMemAlloc_v2(CUdeviceptr* at, size_t bytes) {
    ENTER("cuMemAlloc");
    if (bytes == 0) return CUDA_ERROR_INVALID_VALUE;
    return allocate(plain_pool(), "cuMemAlloc", at, bytes, nullptr);
}

/* Waits for the device, as a driver does. */
static CUresult free_plain(CUdeviceptr at) {
    if (!at) return CUDA_SUCCESS;
    CUresult result = CUDA_SUCCESS;
    std::shared_ptr<Allocation> allocation = end_life("cuMemFree", at, &result);
    if (!allocation) return result;
    counts.synchronizations["free"]++;
    trace("synchronize", "free", 0, 0);
    result = synchronize_all();
    bury(allocation.get(), "cuMemFree freed");
    allocation->pool->give(allocation->block, {0, 0});
    release_pools();
    return result;
}

CARD_API CUresult cuMemFree_v2(CUdeviceptr at) {
    ENTER("cuMemFree");
    return free_plain(at);
}

/* A library finds the context of its handle by itself. */
CARD_API int card_library_take(uint64_t* at, size_t bytes) {
    Locked locked(lock);
    if (CUresult early = enter_without_context()) return early;
    CUdeviceptr made = 0;
    CUresult result = allocate(plain_pool(), "cuMemAlloc", &made, bytes, nullptr);
    *at = made;
    return result;
}

CARD_API void card_library_give(uint64_t at) {
    Locked locked(lock);
    if (enter_without_context() == CUDA_SUCCESS) free_plain(at);
}

CARD_API CUresult cuMemGetInfo_v2(size_t* free, size_t* total) {
    ENTER("cuMemGetInfo");
    CardMemory memory = memory_of_card();
    *free = memory.free_bytes;
    *total = memory.total_bytes;
    return CUDA_SUCCESS;
}

/* There is one pool, the device's own. */
static CUmemoryPool const POOL = reinterpret_cast<CUmemoryPool>(&stream_pool());

CARD_API CUresult cuDeviceGetDefaultMemPool(CUmemoryPool* pool, CUdevice device) {
    if (device != 0) return CUDA_ERROR_INVALID_DEVICE;
    *pool = POOL;
    return CUDA_SUCCESS;
}

CARD_API CUresult cuDeviceGetMemPool(CUmemoryPool* pool, CUdevice device) { return cuDeviceGetDefaultMemPool(pool, device); }

CARD_API CUresult cuMemPoolTrimTo(CUmemoryPool pool, size_t keep) {
    Locked locked(lock);
    if (CUresult early = enter_without_context()) return early;
    if (pool != POOL) return CUDA_ERROR_INVALID_VALUE;
    stream_pool().trim(keep);
    count_reserved();
    trace("trim", "cuMemPoolTrimTo", keep, 0);
    return CUDA_SUCCESS;
}

CARD_API CUresult cuMemPoolSetAttribute(CUmemoryPool pool, int attribute, void* value) {
    Locked locked(lock);
    if (CUresult early = enter_without_context()) return early;
    if (pool != POOL) return CUDA_ERROR_INVALID_VALUE;
    uint64_t wide = attribute >= POOL_RELEASE_THRESHOLD ? *static_cast<uint64_t*>(value) : 0;
    switch (attribute) {
        case POOL_FOLLOW_EVENTS:
        case POOL_OPPORTUNISTIC:
        case POOL_INTERNAL_DEPENDENCIES: return CUDA_SUCCESS;
        case POOL_RELEASE_THRESHOLD: stream_pool().release_threshold = wide; return CUDA_SUCCESS;
        case POOL_RESERVED_HIGH:
        case POOL_USED_HIGH:
            if (wide != 0) return CUDA_ERROR_INVALID_VALUE;
            if (attribute == POOL_USED_HIGH) stream_pool().used_high = stream_pool().used;
            else stream_pool().reserved_high = stream_pool().reserved;
            return CUDA_SUCCESS;
        default: return CUDA_ERROR_INVALID_VALUE;
    }
}

CARD_API CUresult cuMemPoolGetAttribute(CUmemoryPool pool, int attribute, void* value) {
    Locked locked(lock);
    if (CUresult early = enter_without_context()) return early;
    if (pool != POOL) return CUDA_ERROR_INVALID_VALUE;
    uint64_t* wide = static_cast<uint64_t*>(value);
    switch (attribute) {
        case POOL_FOLLOW_EVENTS:
        case POOL_OPPORTUNISTIC:
        case POOL_INTERNAL_DEPENDENCIES: *static_cast<int*>(value) = 1; return CUDA_SUCCESS;
        case POOL_RELEASE_THRESHOLD: *wide = stream_pool().release_threshold; return CUDA_SUCCESS;
        case POOL_RESERVED_CURRENT: *wide = stream_pool().reserved; return CUDA_SUCCESS;
        case POOL_RESERVED_HIGH: *wide = stream_pool().reserved_high; return CUDA_SUCCESS;
        case POOL_USED_CURRENT: *wide = stream_pool().used; return CUDA_SUCCESS;
        case POOL_USED_HIGH: *wide = stream_pool().used_high; return CUDA_SUCCESS;
        default: return CUDA_ERROR_INVALID_VALUE;
    }
}

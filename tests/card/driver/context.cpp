/* cuInit, devices and contexts. */
#include "context.hpp"

#include <cstring>

#include "account.hpp"
#include "count.hpp"
#include "pool.hpp"

namespace card {
struct Context {
    unsigned holders = 0;
};

static bool ready;
static Context primary;
static thread_local CUcontext current;

bool initialized() { return ready; }
CUcontext current_context() { return current; }

CUresult enter_without_context() { return ready ? broken() : CUDA_ERROR_NOT_INITIALIZED; }

CUresult enter(const char* call) {
    if (CUresult early = enter_without_context()) return early;
    if (!current) return refuse(words("%s: no context is current on this thread", call), CUDA_ERROR_INVALID_CONTEXT);
    if (primary.holders == 0) return refuse(words("%s: the context was released", call), CUDA_ERROR_CONTEXT_IS_DESTROYED);
    return CUDA_SUCCESS;
}

CUresult enter_by_stream(const char* call, CUstream stream) {
    bool of_the_thread = !stream || stream == STREAM_LEGACY || stream == STREAM_PER_THREAD;
    return of_the_thread ? enter(call) : enter_without_context();
}

/* As the last holder lets go: everything of the context ends. */
static void end_context() {
    synchronize_all();
    while (!live.empty()) {
        Allocation* allocation = live.begin()->second.get();
        allocation->pool->give(allocation->block, {0, 0});
        count_free(allocation->size);
        bury(allocation, "ended with the context");
        live.erase(live.begin());
    }
    empty_pools();
    give_to_card(counts.context_bytes);
    counts.context_bytes = 0;
}
}  // namespace card

using namespace card;

CARD_API CUresult cuInit(unsigned flags) {
    Locked locked(lock);
    if (flags) return CUDA_ERROR_INVALID_VALUE;
    if (ready) return CUDA_SUCCESS;
    reserve_addresses();
    watch_host_accesses();
    ready = true;
    return CUDA_SUCCESS;
}

CARD_API CUresult cuDriverGetVersion(int* version) {
    *version = 13000;
    return CUDA_SUCCESS;
}

CARD_API CUresult cuDeviceGetCount(int* count) {
    if (!ready) return CUDA_ERROR_NOT_INITIALIZED;
    *count = 1;
    return CUDA_SUCCESS;
}

CARD_API CUresult cuDeviceGet(CUdevice* device, int ordinal) {
    if (!ready) return CUDA_ERROR_NOT_INITIALIZED;
    if (ordinal != 0) return CUDA_ERROR_INVALID_DEVICE;
    *device = 0;
    return CUDA_SUCCESS;
}

CARD_API CUresult cuDeviceGetName(char* name, int length, CUdevice device) {
    if (device != 0) return CUDA_ERROR_INVALID_DEVICE;
    if (length < 1) return CUDA_ERROR_INVALID_VALUE;
    strncpy(name, "Software card (sm_89)", length - 1);
    name[length - 1] = 0;
    return CUDA_SUCCESS;
}

CARD_API CUresult cuDeviceGetUuid(unsigned char* uuid, CUdevice device) {
    if (device != 0) return CUDA_ERROR_INVALID_DEVICE;
    memcpy(uuid, "software card 1", 16);
    return CUDA_SUCCESS;
}

CARD_API CUresult cuDeviceGetUuid_v2(unsigned char* uuid, CUdevice device) { return cuDeviceGetUuid(uuid, device); }

CARD_API CUresult cuDeviceTotalMem_v2(size_t* bytes, CUdevice device) {
    Locked locked(lock);
    if (CUresult early = enter_without_context()) return early;
    if (device != 0) return CUDA_ERROR_INVALID_DEVICE;
    *bytes = memory_of_card().total_bytes;
    return CUDA_SUCCESS;
}

CARD_API CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) {
    Locked locked(lock);
    if (CUresult early = enter_without_context()) return early;
    if (device != 0) return CUDA_ERROR_INVALID_DEVICE;
    if (primary.holders == 0) {
        if (!take_from_card(settings().context_bytes)) return CUDA_ERROR_OUT_OF_MEMORY;
        counts.context_bytes = settings().context_bytes;
        static bool first = true;
        if (first) count_until_exit();
        first = false;
        count_reserved();
    }
    primary.holders++;
    *context = reinterpret_cast<CUcontext>(&primary);
    return CUDA_SUCCESS;
}

CARD_API CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device) {
    Locked locked(lock);
    if (!ready) return CUDA_ERROR_NOT_INITIALIZED;
    if (device != 0) return CUDA_ERROR_INVALID_DEVICE;
    if (primary.holders == 0) return CUDA_ERROR_INVALID_CONTEXT;
    if (--primary.holders == 0) end_context();
    return broken();
}

CARD_API CUresult cuCtxGetCurrent(CUcontext* context) {
    if (!ready) return CUDA_ERROR_NOT_INITIALIZED;
    *context = current;
    return CUDA_SUCCESS;
}

CARD_API CUresult cuCtxSetCurrent(CUcontext context) {
    if (!ready) return CUDA_ERROR_NOT_INITIALIZED;
    if (context && context != reinterpret_cast<CUcontext>(&primary)) return CUDA_ERROR_INVALID_CONTEXT;
    current = context;
    return CUDA_SUCCESS;
}

CARD_API CUresult cuCtxGetDevice(CUdevice* device) {
    ENTER("cuCtxGetDevice");
    *device = 0;
    return CUDA_SUCCESS;
}

CARD_API CUresult cuCtxSetFlags(unsigned) {
    ENTER("cuCtxSetFlags");
    return CUDA_SUCCESS;
}

/* There are only primary contexts, and those are released. */
CARD_API CUresult cuCtxDestroy_v2(CUcontext) { return CUDA_ERROR_INVALID_CONTEXT; }

CARD_API CUresult cuCtxSynchronize() {
    ENTER("cuCtxSynchronize");
    counts.synchronizations["context"]++;
    trace("synchronize", "context", 0, 0);
    CUresult result = synchronize_all();
    release_pools();
    write_counts();
    return result;
}

CARD_API CUresult cuCtxGetStreamPriorityRange(int* least, int* greatest) {
    ENTER("cuCtxGetStreamPriorityRange");
    if (least) *least = 0;
    if (greatest) *greatest = 0;
    return CUDA_SUCCESS;
}

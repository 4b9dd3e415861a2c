/* Page-locked host memory: the card reads and writes it when an operation runs, not when it is called. */
#include <sys/mman.h>

#include <map>

#include "context.hpp"
#include "transfer.hpp"

namespace card {
struct Pinned {
    uint64_t bytes;
    bool ours;
};
static std::map<uint64_t, Pinned>& pinned = *new std::map<uint64_t, Pinned>;

bool is_pinned(const void* at, uint64_t bytes) {
    uint64_t address = reinterpret_cast<uint64_t>(at);
    auto after = pinned.upper_bound(address);
    if (after == pinned.begin()) return false;
    --after;
    return address + bytes <= after->first + after->second.bytes;
}

static CUresult forget(const char* call, void* at, bool ours) {
    auto found = pinned.find(reinterpret_cast<uint64_t>(at));
    if (found == pinned.end() || found->second.ours != ours) {
        CUresult error = ours ? CUDA_ERROR_INVALID_VALUE : CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED;
        return refuse(words("%s: %p is not such memory", call, at), error);
    }
    /* A copy that still waits may use it. */
    CUresult result = synchronize_all();
    if (ours) munmap(at, found->second.bytes);
    pinned.erase(found);
    return result;
}
}  // namespace card

using namespace card;

CARD_API CUresult cuMemHostAlloc(void** at, size_t bytes, unsigned) {
    ENTER("cuMemHostAlloc");
    if (bytes == 0) return CUDA_ERROR_INVALID_VALUE;
    *at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (*at == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
    pinned[reinterpret_cast<uint64_t>(*at)] = {bytes, true};
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
    auto next = pinned.lower_bound(begin);
    bool over_next = next != pinned.end() && next->first < begin + bytes;
    bool over_last = next != pinned.begin() && std::prev(next)->first + std::prev(next)->second.bytes > begin;
    if (over_next || over_last) return CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED;
    pinned[begin] = {bytes, false};
    return CUDA_SUCCESS;
}

CARD_API CUresult cuMemHostUnregister(void* at) {
    ENTER("cuMemHostUnregister");
    return forget("cuMemHostUnregister", at, false);
}

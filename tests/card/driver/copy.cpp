/* Copies and fills: checked when they are called, done when their stream comes to them. */
#include <cstring>

#include "context.hpp"
#include "count.hpp"
#include "engine.hpp"
#include "pool.hpp"
#include "transfer.hpp"

using namespace card;

namespace {
void* pointer(CUdeviceptr at) { return reinterpret_cast<void*>(at); }

CUresult refuse_range(const char* call, const char* verb, CUdeviceptr at, size_t bytes, const char* why) {
    return refuse(words("%s %s %zu bytes at 0x%llx: %s", call, verb, bytes, at, why), CUDA_ERROR_INVALID_VALUE);
}

/* nullptr, or why the host's side of a copy is none. */
const char* check_host_side(const void* at, size_t bytes) {
    uint64_t address = reinterpret_cast<uint64_t>(at);
    if (address >= card_begin && address < card_end) return words("it is the card's memory: %s", describe(address));
    if (is_pinned(at, 1) && !is_pinned(at, bytes)) return "the pinned memory there ends before";
    return nullptr;
}

CUresult refuse_host_side(const char* call, const char* verb, const void* at, size_t bytes, const char* why) {
    return refuse(words("%s %s %zu bytes of the host at %p: %s", call, verb, bytes, at, why), CUDA_ERROR_INVALID_VALUE);
}

CUresult fill(const char* call, CUdeviceptr at, uint32_t value, size_t count, size_t width, CUstream handle) {
    Stream* stream = find_stream(handle);
    if (!stream) return refuse(words("%s: the stream does not exist", call), CUDA_ERROR_INVALID_HANDLE);
    if (count > ~size_t{0} / width) return refuse(words("%s writes %zu times %zu bytes, more than there are addresses", call, count, width), CUDA_ERROR_INVALID_VALUE);
    size_t bytes = count * width;
    if (bytes == 0) return CUDA_SUCCESS;
    if (at % width) return refuse_range(call, "writes", at, bytes, "it is not aligned to the value");
    if (const char* why = outside(at, bytes)) return refuse_range(call, "writes", at, bytes, why);
    counts.fills.count++;
    counts.fills.bytes += bytes;
    if (settings().dry) note_origin(at, {call, -1, "zero", nullptr, nullptr, {}});
    Operation& operation = enqueue(stream, call, [=]() -> const char* {
        mark_whole(at, bytes);
        if (const char* wrong = card_touch(pointer(at), bytes, 1)) return wrong;
        if (width == 1) memset(pointer(at), static_cast<int>(value), bytes);
        else std::fill_n(static_cast<uint32_t*>(pointer(at)), count, value);
        return nullptr;
    });
    operation.writes.push_back(whole_range(at, bytes));
    trace("fill", call, bytes, stream->id, list_writes(operation));
    relieve();
    return CUDA_SUCCESS;
}

CUresult to_device(const char* call, CUdeviceptr at, const void* from, size_t bytes, Stream* stream) {
    if (const char* why = outside(at, bytes)) return refuse_range(call, "writes", at, bytes, why);
    if (const char* why = check_host_side(from, bytes)) return refuse_host_side(call, "reads", from, bytes, why);
    bool pinned = is_pinned(from, bytes);
    std::shared_ptr<unsigned char> staged;
    if (!settings().dry && !pinned) {
        staged.reset(new unsigned char[bytes], std::default_delete<unsigned char[]>());
        if (!copy_readable(staged.get(), from, bytes)) return refuse_host_side(call, "reads", from, bytes, "it cannot be read there");
    }
    counts.host_to_device.count++;
    counts.host_to_device.bytes += bytes;
    const void* source = pinned ? seen_by_card(from) : from;
    if (settings().dry) remember_copy(at, source, bytes);
    Operation& operation = enqueue(stream, call, [=]() -> const char* {
        mark_whole(at, bytes);
        if (const char* wrong = card_touch(pointer(at), bytes, 1)) return wrong;
        memcpy(pointer(at), staged ? staged.get() : source, bytes);
        return nullptr;
    });
    if (staged) note_staged(operation, bytes);
    operation.writes.push_back(whole_range(at, bytes));
    trace("host to device", call, bytes, stream->id, (pinned ? ", \"pinned\": true" : ", \"pinned\": false") + list_writes(operation));
    if (const char* wrong = pinned ? begin_flight(from, bytes, false, *stream, operation) : nullptr) return refuse(wrong, CUDA_ERROR_INVALID_VALUE);
    relieve();
    return CUDA_SUCCESS;
}

CUresult to_host(const char* call, void* to, CUdeviceptr at, size_t bytes, Stream* stream, bool wait) {
    if (const char* why = outside(at, bytes)) return refuse_range(call, "reads", at, bytes, why);
    if (const char* why = check_host_side(to, bytes)) return refuse_host_side(call, "writes", to, bytes, why);
    counts.device_to_host.count++;
    counts.device_to_host.bytes += bytes;
    wait = wait || !is_pinned(to, bytes);
    trace("device to host", call, bytes, stream->id, wait ? ", \"pinned\": false" : ", \"pinned\": true");
    void* target = seen_by_card(to);
    Operation& operation = enqueue(stream, call, [=]() -> const char* {
        if (const char* wrong = card_touch(pointer(at), bytes, 0)) return wrong;
        memcpy(target, pointer(at), bytes);
        return nullptr;
    });
    if (settings().dry) {
        operation.reads.push_back(whole_range(at, bytes));
        Allocation* from = live_at(at);
        invent(from, at - from->begin, target, bytes);
    }
    if (const char* wrong = begin_flight(to, bytes, true, *stream, operation)) return refuse(wrong, CUDA_ERROR_INVALID_VALUE);
    /* Into pageable memory a driver copies before it returns. */
    if (wait) {
        counts.synchronizations["copy"]++;
        return synchronize(clock_of(stream));
    }
    relieve();
    return CUDA_SUCCESS;
}

CUresult within_device(const char* call, CUdeviceptr to, CUdeviceptr from, size_t bytes, Stream* stream) {
    if (const char* why = outside(from, bytes)) return refuse_range(call, "reads", from, bytes, why);
    if (const char* why = outside(to, bytes)) return refuse_range(call, "writes", to, bytes, why);
    if (to < from + bytes && from < to + bytes) return refuse_range(call, "reads", from, bytes, "it writes some of the bytes that it reads");
    counts.device_to_device.count++;
    counts.device_to_device.bytes += bytes;
    if (settings().dry) note_origin(to, live_at(from)->origin);
    Operation& operation = enqueue(stream, call, [=]() -> const char* {
        if (const char* wrong = card_touch(pointer(from), bytes, 0)) return wrong;
        mark_whole(to, bytes);
        if (const char* wrong = card_touch(pointer(to), bytes, 1)) return wrong;
        memcpy(pointer(to), pointer(from), bytes);
        return nullptr;
    });
    if (settings().dry) operation.reads.push_back(whole_range(from, bytes));
    operation.writes.push_back(whole_range(to, bytes));
    trace("device to device", call, bytes, stream->id, list_writes(operation));
    relieve();
    return CUDA_SUCCESS;
}
}  // namespace

/* The beginning of a copy on a stream. */
#define ENTER_COPY(call, handle, bytes)                                                                     \
    ENTER(call);                                                                                            \
    Stream* stream = find_stream(handle);                                                                   \
    if (!stream) return refuse(call ": the stream does not exist", CUDA_ERROR_INVALID_HANDLE);              \
    if ((bytes) == 0) return CUDA_SUCCESS;

CARD_API CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void* from, size_t bytes, CUstream handle) {
    ENTER_COPY("cuMemcpyHtoDAsync", handle, bytes);
    return to_device("cuMemcpyHtoDAsync", to, from, bytes, stream);
}

CARD_API CUresult cuMemcpyDtoHAsync_v2(void* to, CUdeviceptr from, size_t bytes, CUstream handle) {
    ENTER_COPY("cuMemcpyDtoHAsync", handle, bytes);
    return to_host("cuMemcpyDtoHAsync", to, from, bytes, stream, false);
}

CARD_API CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream handle) {
    ENTER_COPY("cuMemcpyDtoDAsync", handle, bytes);
    return within_device("cuMemcpyDtoDAsync", to, from, bytes, stream);
}

CARD_API CUresult cuMemcpyPeerAsync(CUdeviceptr to, CUcontext, CUdeviceptr from, CUcontext, size_t bytes, CUstream handle) {
    ENTER_COPY("cuMemcpyPeerAsync", handle, bytes);
    return within_device("cuMemcpyPeerAsync", to, from, bytes, stream);
}

CARD_API CUresult cuMemcpyHtoD_v2(CUdeviceptr to, const void* from, size_t bytes) {
    ENTER_COPY("cuMemcpyHtoD", nullptr, bytes);
    if (CUresult result = to_device("cuMemcpyHtoD", to, from, bytes, stream)) return result;
    counts.synchronizations["copy"]++;
    trace("synchronize", "copy", 0, stream->id);
    return synchronize(clock_of(stream));
}

CARD_API CUresult cuMemcpyDtoH_v2(void* to, CUdeviceptr from, size_t bytes) {
    ENTER_COPY("cuMemcpyDtoH", nullptr, bytes);
    return to_host("cuMemcpyDtoH", to, from, bytes, stream, true);
}

CARD_API CUresult cuMemcpyDtoD_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes) {
    ENTER_COPY("cuMemcpyDtoD", nullptr, bytes);
    return within_device("cuMemcpyDtoD", to, from, bytes, stream);
}

CARD_API CUresult cuMemsetD8Async(CUdeviceptr at, unsigned char value, size_t count, CUstream handle) {
    ENTER("cuMemsetD8Async");
    return fill("cuMemsetD8Async", at, value, count, 1, handle);
}

CARD_API CUresult cuMemsetD8_v2(CUdeviceptr at, unsigned char value, size_t count) {
    ENTER("cuMemsetD8");
    return fill("cuMemsetD8", at, value, count, 1, nullptr);
}

CARD_API CUresult cuMemsetD32Async(CUdeviceptr at, unsigned value, size_t count, CUstream handle) {
    ENTER("cuMemsetD32Async");
    return fill("cuMemsetD32Async", at, value, count, 4, handle);
}

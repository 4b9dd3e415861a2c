/* What a card takes, in any order that it may choose. */
#include <sys/stat.h>

#include <cmath>
#include <cstring>
#include <thread>

#include "card.hpp"

static bool all(const std::vector<float>& values, float value) {
    for (float one : values) {
        if (one != value) return false;
    }
    return true;
}

LEGAL(one_stream_computes) {
    open_card();
    CUstream stream = new_stream();
    CUdeviceptr to = floats(300, 1, stream), from = floats(300, 2, stream);
    long long count = 300;
    void* arguments[] = {&to, &from, &count};
    for (int i = 0; i < 3; i++) OK(cuLaunchKernel(kernel("add"), 2, 1, 1, 256, 1, 1, 0, stream, arguments, nullptr));
    EXPECT(all(read_floats(to, 300, stream), 7));
}

LEGAL(an_event_orders_two_streams) {
    open_card();
    CUstream one = new_stream(), two = new_stream();
    CUevent event = new_event();
    CUdeviceptr from = floats(4, 3, one), to = floats(4, 1, two);
    OK(cuEventRecord(event, one));
    OK(cuStreamWaitEvent(two, event, 0));
    OK(add(to, from, 4, two));
    OK(cuEventRecord(event, two));
    OK(cuStreamWaitEvent(one, event, 0));
    OK(cuMemFreeAsync(from, one));
    EXPECT(all(read_floats(to, 4, two), 4));
}

LEGAL(a_synchronization_orders_two_streams) {
    open_card();
    CUstream one = new_stream(), two = new_stream();
    CUdeviceptr from = floats(4, 3, one);
    OK(cuStreamSynchronize(one));
    CUdeviceptr to = floats(4, 1, two);
    OK(add(to, from, 4, two));
    EXPECT(all(read_floats(to, 4, two), 4));
    OK(cuMemFreeAsync(from, one));
    OK(cuCtxSynchronize());
}

LEGAL(a_stream_of_its_own_allocates_and_frees_on_a_thread_without_a_context) {
    open_card();
    CUstream stream = new_stream();
    CUdeviceptr at = floats(4, 3, stream);
    std::thread([=] {
        CUdeviceptr other;
        OK(cuMemAllocAsync(&other, 16, stream));
        OK(cuMemFreeAsync(other, stream));
        OK(cuMemFreeAsync(at, stream));
    }).join();
    OK(cuStreamSynchronize(stream));
}

LEGAL(two_streams_read_the_same) {
    open_card();
    CUstream one = new_stream(), two = new_stream();
    CUdeviceptr from = floats(4, 3, one);
    OK(cuStreamSynchronize(one));
    CUdeviceptr first = floats(4, 1, one), second = floats(4, 2, two);
    OK(add(first, from, 4, one));
    OK(add(second, from, 4, two));
    EXPECT(all(read_floats(first, 4, one), 4));
    EXPECT(all(read_floats(second, 4, two), 5));
}

LEGAL(two_streams_write_parts_of_one_allocation) {
    open_card();
    CUstream one = new_stream(), two = new_stream();
    CUdeviceptr at = unwritten(32, one);
    OK(cuStreamSynchronize(one));
    OK(cuMemsetD8Async(at, 0, 16, one));
    OK(cuMemsetD8Async(at + 16, 0, 16, two));
    OK(cuCtxSynchronize());
    EXPECT(all(read_floats(at, 8, one), 0));
}

LEGAL(the_default_stream_waits_and_is_waited_for) {
    open_card();
    CUstream one = new_stream(0), two = new_stream(0);
    CUdeviceptr from = floats(4, 3, one), to = floats(4, 1, nullptr);
    OK(add(to, from, 4, nullptr));
    OK(add(from, to, 4, two));
    EXPECT(all(read_floats(from, 4, two), 7));
    CUdeviceptr mine = floats(4, 1, STREAM_PER_THREAD);
    OK(add(mine, from, 4, nullptr));
    EXPECT(all(read_floats(mine, 4, STREAM_PER_THREAD), 8));
}

/* What the default stream waits for is waited for by those that wait for it, and the other way round; neither of the two did anything itself. */
LEGAL(a_wait_is_handed_on_by_the_default_stream) {
    open_card();
    CUstream free = new_stream(), blocking = new_stream(0);
    CUdeviceptr at = unwritten(128, free), to = unwritten(128, blocking), other = unwritten(128, nullptr);
    OK(cuCtxSynchronize());
    CUevent event = new_event();
    OK(cuMemsetD8Async(at, 0, 128, free));
    OK(cuEventRecord(event, free));
    OK(cuStreamWaitEvent(nullptr, event, 0));
    OK(cuMemcpyDtoDAsync_v2(to, at, 128, blocking));
    OK(cuCtxSynchronize());
    OK(cuMemsetD8Async(at, 1, 128, free));
    OK(cuEventRecord(event, free));
    OK(cuStreamWaitEvent(blocking, event, 0));
    OK(cuMemcpyDtoDAsync_v2(other, at, 128, nullptr));
    OK(cuCtxSynchronize());
}

LEGAL(more_memory_than_any_card_has_is_out_of_memory) {
    open_card();
    CUdeviceptr at;
    void* registered = &at;
    for (size_t bytes : {~size_t{0}, ~size_t{0} - 100, size_t{1} << 51, size_t{1} << 42}) {
        EXPECT(cuMemAllocAsync(&at, bytes, nullptr) == CUDA_ERROR_OUT_OF_MEMORY);
        EXPECT(cuMemAlloc_v2(&at, bytes) == CUDA_ERROR_OUT_OF_MEMORY);
    }
    EXPECT(cuMemHostRegister_v2(registered, ~size_t{0}, 0) == CUDA_ERROR_INVALID_VALUE);
    floats(4, 1, nullptr);
    OK(cuCtxSynchronize());
}

LEGAL(what_begins_like_a_module_is_none) {
    open_card();
    CUmodule module;
    EXPECT(cuModuleLoadData(&module, "\177ELF") == CUDA_ERROR_INVALID_IMAGE);
    EXPECT(cuModuleLoadData(&module, "// card module 1\n") == CUDA_ERROR_INVALID_IMAGE);
    EXPECT(cuModuleLoadData(&module, "// card module 1\nAAAA") == CUDA_ERROR_INVALID_IMAGE);
}

LEGAL(an_empty_buffer_is_nowhere) {
    open_card();
    struct {
        CUdeviceptr at;
        long long length;
        int dtype;
    } none{0, 0, 0};
    OK(launch("buffers", nullptr, 32, {&none, &none}));
    OK(cuCtxSynchronize());
}

LEGAL(structs_are_aligned_to_their_parts) {
    open_card();
    CUdeviceptr from = floats(64, 1, nullptr) + 8, to = unwritten(256, nullptr) + 16;
    OK(launch("copy_three", nullptr, 4, {&to, &from}));
    OK(cuCtxSynchronize());
}

LEGAL(the_pool_hands_a_freed_block_out_again_in_the_order_of_the_stream) {
    open_card();
    CUmemoryPool pool;
    OK(cuDeviceGetDefaultMemPool(&pool, 0));
    CUdeviceptr sum = floats(1 << 20, 0, nullptr);
    for (int i = 0; i < 100; i++) {
        CUdeviceptr one = floats(1 << 20, 1, nullptr);
        long long count = 10;
        OK(launch("add", nullptr, 32, {&sum, &one, &count}));
        OK(cuMemFreeAsync(one, nullptr));
    }
    uint64_t reserved = 0, used = 0;
    OK(cuMemPoolGetAttribute(pool, POOL_RESERVED_HIGH, &reserved));
    OK(cuMemPoolGetAttribute(pool, POOL_USED_HIGH, &used));
    EXPECT(reserved == 32 << 20);
    EXPECT(used == 8 << 20);
    EXPECT(all(read_floats(sum, 10, nullptr), 100));
}

LEGAL(a_freed_block_of_another_stream_is_not_handed_out_before_it_is_free) {
    open_card();
    CUstream one = new_stream(), two = new_stream();
    CUmemoryPool pool;
    OK(cuDeviceGetDefaultMemPool(&pool, 0));
    OK(cuMemFreeAsync(unwritten(20 << 20, one), one));
    unwritten(20 << 20, two);
    uint64_t reserved = 0;
    OK(cuMemPoolGetAttribute(pool, POOL_RESERVED_CURRENT, &reserved));
    EXPECT(reserved == 64 << 20);
    CUevent event = new_event();
    OK(cuEventRecord(event, one));
    OK(cuStreamWaitEvent(two, event, 0));
    unwritten(20 << 20, two);
    OK(cuMemPoolGetAttribute(pool, POOL_RESERVED_CURRENT, &reserved));
    EXPECT(reserved == 64 << 20);
}

LEGAL(the_pool_keeps_what_its_threshold_says) {
    open_card();
    CUmemoryPool pool;
    OK(cuDeviceGetDefaultMemPool(&pool, 0));
    size_t before = free_bytes();
    OK(cuMemFreeAsync(unwritten(100 << 20, nullptr), nullptr));
    EXPECT(free_bytes() == before - (100 << 20));
    OK(cuStreamSynchronize(nullptr));
    EXPECT(free_bytes() == before);
    uint64_t threshold = ~0ull;
    OK(cuMemPoolSetAttribute(pool, POOL_RELEASE_THRESHOLD, &threshold));
    OK(cuMemFreeAsync(unwritten(100 << 20, nullptr), nullptr));
    OK(cuStreamSynchronize(nullptr));
    EXPECT(free_bytes() == before - (100 << 20));
    OK(cuMemPoolTrimTo(pool, 0));
    EXPECT(free_bytes() == before);
}

LEGAL(plain_allocations_take_whole_pages) {
    open_card();
    size_t before = free_bytes();
    CUdeviceptr small, other, large;
    OK(cuMemAlloc_v2(&small, 100));
    OK(cuMemAlloc_v2(&other, 100));
    EXPECT(free_bytes() == before - (2 << 20));
    OK(cuMemAlloc_v2(&large, 3 << 20));
    EXPECT(free_bytes() == before - (6 << 20));
    OK(cuMemFree_v2(small));
    OK(cuMemFree_v2(other));
    OK(cuMemFree_v2(large));
    EXPECT(free_bytes() == before);
}

LEGAL(who_asks_whether_it_is_done_sees_it_done) {
    open_card();
    CUstream stream = new_stream();
    CUevent event = new_event(), end = new_event();
    OK(cuEventQuery(event));
    OK(cuEventRecord(event, stream));
    for (int i = 0; i < 100; i++) floats(4, 1, stream);
    OK(cuEventRecord(end, stream));
    int asked = 0;
    while (cuEventQuery(end) == CUDA_ERROR_NOT_READY) EXPECT(++asked < 1000);
    OK(cuStreamQuery(stream));
    float milliseconds = -1;
    OK(cuEventElapsedTime(&milliseconds, event, end));
    EXPECT(milliseconds >= 0);
}

LEGAL(a_host_function_runs_in_its_stream) {
    open_card();
    static int ran;
    OK(cuLaunchHostFunc(nullptr, [](void* data) { ran = *static_cast<int*>(data); }, new int(3)));
    EXPECT(ran == 0);
    OK(cuStreamSynchronize(nullptr));
    EXPECT(ran == 3);
}

LEGAL(a_null_pointer_is_an_optional_argument) {
    open_card();
    CUdeviceptr to = unwritten(128, nullptr), none = 0;
    OK(launch("optional", nullptr, 32, {&to, &none}));
    EXPECT(all(read_floats(to, 32, nullptr), 1));
}

struct Buffer {
    CUdeviceptr at;
    long long length;
    int dtype;
};

LEGAL(buffers_and_floats_are_arguments) {
    open_card();
    CUdeviceptr at = floats(16, 0, nullptr);
    Buffer to{at + 32, 8, 0}, from{floats(8, 2, nullptr), 8, 0};
    OK(launch("buffers", nullptr, 32, {&to, &from}));
    EXPECT(all(read_floats(at + 32, 8, nullptr), 2));
    EXPECT(all(read_floats(at, 8, nullptr), 0));
}

LEGAL(packed_arguments_are_taken) {
    open_card();
    CUdeviceptr to = floats(4, 1, nullptr), from = floats(4, 1, nullptr);
    size_t offset, size, end = 0;
    for (size_t i = 0; cuFuncGetParamInfo(kernel("add"), i, &offset, &size) == CUDA_SUCCESS; i++) end = offset + size;
    EXPECT(end == 24);
    struct {
        CUdeviceptr to, from;
        long long count;
    } packed = {to, from, 4};
    void* extra[] = {LAUNCH_PARAM_BUFFER, &packed, LAUNCH_PARAM_BUFFER_SIZE, &end, LAUNCH_PARAM_END};
    OK(cuLaunchKernel(kernel("add"), 1, 1, 1, 32, 1, 1, 0, nullptr, nullptr, extra));
    EXPECT(all(read_floats(to, 4, nullptr), 2));
}

LEGAL(shared_memory_beyond_48_kib_by_request) {
    open_card();
    CUdeviceptr to = unwritten(1024, nullptr);
    std::vector<void*> arguments = {&to};
    OK(cuFuncSetAttribute(kernel("shared_reverse"), FUNCTION_MAX_DYNAMIC_SHARED, 99 << 10));
    OK(cuLaunchKernel(kernel("shared_reverse"), 1, 1, 1, 256, 1, 1, 99 << 10, nullptr, arguments.data(), nullptr));
    std::vector<float> got = read_floats(to, 256, nullptr);
    for (int i = 0; i < 256; i++) EXPECT(got[i] == 255 - i);
}

LEGAL(fills_and_copies) {
    open_card();
    CUdeviceptr at = unwritten(64, nullptr), to = unwritten(64, nullptr);
    float two = 2;
    unsigned bits;
    memcpy(&bits, &two, 4);
    OK(cuMemsetD32Async(at, bits, 16, nullptr));
    OK(cuMemcpyDtoDAsync_v2(to, at, 64, nullptr));
    OK(cuMemsetD8Async(at, 0, 0, nullptr));
    EXPECT(all(read_floats(to, 16, nullptr), 2));
    CUdeviceptr empty = unwritten(0, nullptr);
    EXPECT(empty != 0);
    OK(cuMemFreeAsync(empty, nullptr));
}

LEGAL(many_operations_wait_and_are_relieved) {
    open_card();
    CUdeviceptr to = floats(4, 0, nullptr), from = floats(4, 1, nullptr);
    for (int i = 0; i < 25000; i++) OK(add(to, from, 4, nullptr));
    EXPECT(all(read_floats(to, 4, nullptr), 25000));
    std::vector<float> large(40 << 18, 1);
    CUdeviceptr at = unwritten(40 << 20, nullptr);
    for (int i = 0; i < 4; i++) OK(cuMemcpyHtoDAsync_v2(at, large.data(), 40 << 20, nullptr));
    OK(cuCtxSynchronize());
}

LEGAL(results_have_their_names) {
    const char* text;
    OK(cuGetErrorName(CUDA_ERROR_OUT_OF_MEMORY, &text));
    EXPECT(!strcmp(text, "CUDA_ERROR_OUT_OF_MEMORY"));
    OK(cuGetErrorString(CUDA_ERROR_OUT_OF_MEMORY, &text));
    EXPECT(!strcmp(text, "out of memory"));
    OK(cuGetErrorString(CUDA_ERROR_LAUNCH_FAILED, &text));
    EXPECT(!strcmp(text, "unspecified launch failure"));
    EXPECT(cuGetErrorName(static_cast<CUresult>(12345), &text) == CUDA_ERROR_INVALID_VALUE);
}

/* What a card would not take, each found by name. */
#include <thread>

#include "card.hpp"

REFUSED(a_host_pointer_is_no_argument, "add: argument 0: 0x") {
    open_card();
    std::vector<float> host(4);
    CUdeviceptr to = reinterpret_cast<CUdeviceptr>(host.data());
    add(to, floats(4, 1, nullptr), 4, nullptr);
}

REFUSED(a_read_past_the_end, "past the end of allocation") {
    open_card();
    add(floats(9, 1, nullptr), floats(8, 1, nullptr), 9, nullptr);
    cuCtxSynchronize();
}

REFUSED(a_read_past_the_end_of_whole_granules, "past the end of allocation") {
    open_card();
    CUdeviceptr to = floats(256, 1, nullptr), from = floats(128, 1, nullptr);
    add(to, from, 129, nullptr);
    cuCtxSynchronize();
}

REFUSED(a_write_past_the_end, "writes 4 bytes") {
    open_card();
    CUdeviceptr to = unwritten(16, nullptr);
    long long count = 5;
    float value = 1;
    launch("set", nullptr, 32, {&to, &value, &count});
    cuCtxSynchronize();
}

static void read_far(CUdeviceptr from, long long by) {
    CUdeviceptr to = unwritten(128, nullptr);
    OK(launch("far_read", nullptr, 32, {&to, &from, &by}));
    cuCtxSynchronize();
}

REFUSED(a_read_of_another_allocation_than_the_parameter_s, "far_read on stream 0 reads bytes 0 to 128 of allocation 2, and its parameters have none of its bytes") {
    open_card();
    CUdeviceptr from = floats(32, 1, nullptr), other = floats(32, 2, nullptr);
    read_far(from, (static_cast<long long>(other) - static_cast<long long>(from)) / 4);
}

REFUSED(a_read_before_its_pointer, "far_read on stream 0 reads bytes 64 to 192 of allocation 1, and its parameters have bytes 128 to 256 of it") {
    open_card();
    read_far(floats(64, 1, nullptr) + 128, -16);
}

REFUSED(a_read_beyond_a_buffer_within_its_allocation, "buffers on stream 0 reads bytes 0 to 128 of allocation 2, and its parameters have bytes 0 to 64 of it") {
    open_card();
    struct {
        CUdeviceptr at;
        long long length;
        int dtype;
    } to{unwritten(128, nullptr), 32, 0}, from{floats(32, 1, nullptr), 16, 0};
    OK(launch("buffers", nullptr, 32, {&to, &from}));
    cuCtxSynchronize();
}

REFUSED(a_copy_of_constant_size_of_what_nothing_wrote, "copy_100 on stream 0: block (0, 0, 0), thread 0: reads 100 bytes that nothing has written") {
    open_card();
    CUdeviceptr to = unwritten(100, nullptr), from = unwritten(100, nullptr);
    OK(launch("copy_100", nullptr, 1, {&to, &from}));
    cuCtxSynchronize();
}

REFUSED(a_read_of_what_nothing_wrote, "that nothing has written") {
    open_card();
    add(unwritten(16, nullptr), floats(4, 1, nullptr), 4, nullptr);
    cuCtxSynchronize();
}

REFUSED(a_copy_of_what_nothing_wrote, "that nothing has written") {
    open_card();
    read_floats(unwritten(16, nullptr), 4, nullptr);
}

REFUSED(a_read_of_freed_and_handed_out_bytes_that_nothing_wrote, "that nothing has written") {
    open_card();
    OK(cuMemFreeAsync(floats(4, 1, nullptr), nullptr));
    read_floats(unwritten(16, nullptr), 4, nullptr);
}

REFUSED(a_use_after_free, "was freed") {
    open_card();
    CUdeviceptr to = floats(4, 1, nullptr), from = floats(4, 1, nullptr);
    OK(cuMemFreeAsync(from, nullptr));
    add(to, from, 4, nullptr);
}

REFUSED(a_use_after_the_memory_was_handed_out_again, "freed") {
    open_card();
    CUdeviceptr to = floats(4, 1, nullptr), from = floats(4, 1, nullptr);
    OK(cuMemFreeAsync(from, nullptr));
    floats(4, 2, nullptr);
    OK(cuCtxSynchronize());
    add(to, from, 4, nullptr);
}

REFUSED(two_streams_without_an_event, "nothing orders the two") {
    open_card();
    CUstream one = new_stream(), two = new_stream();
    CUdeviceptr at = floats(4, 1, one), to = floats(4, 0, two);
    OK(cuCtxSynchronize());
    OK(cuMemsetD8Async(at, 0, 16, one));
    add(to, at, 4, two);
    cuCtxSynchronize();
}

/* The first of many writes is remembered. */
REFUSED(two_streams_and_a_hundred_slices, "and nothing orders the two") {
    open_card();
    CUstream one = new_stream(), two = new_stream(), idle = new_stream();
    CUdeviceptr at = unwritten(100 * 512, one), to = unwritten(512, two);
    OK(cuCtxSynchronize());
    for (int i = 0; i < 100; i++) OK(cuMemsetD8Async(at + i * 512, 0, 256, one));
    /* Each look makes progress, and the writes are done. */
    for (int i = 0; i < 200; i++) OK(cuStreamQuery(idle));
    OK(cuMemcpyDtoDAsync_v2(to, at, 256, two));
    cuCtxSynchronize();
}

/* Whichever of the two a card runs first, and whichever runs first here. */
REFUSED(two_streams_of_which_one_has_yet_to_write, "and nothing orders the two: an event or a synchronisation is missing") {
    open_card();
    CUstream one = new_stream(), two = new_stream();
    CUdeviceptr at = unwritten(16, one), to = floats(4, 0, two);
    OK(cuStreamSynchronize(one));
    OK(cuMemsetD8Async(at, 0, 16, one));
    add(to, at, 4, two);
    cuCtxSynchronize();
}

REFUSED(a_read_before_another_stream_s_copy, "of allocation 1 (16 bytes); cuMemcpyHtoDAsync on stream 1 is to write there and has not run yet") {
    open_card();
    CUstream one = new_stream(), two = new_stream();
    CUdeviceptr at = floats(4, 1, one), to = floats(4, 0, two);
    add(to, at, 4, two);
    cuStreamSynchronize(two);
}

REFUSED(a_read_before_another_stream_s_kernel, "cuMemcpyDtoHAsync on stream 2: reads 16 bytes that nothing has written: byte 0 of allocation 1 (16 bytes); set on stream 1 is to write") {
    open_card();
    CUstream one = new_stream(), two = new_stream();
    CUdeviceptr at = unwritten(16, one);
    long long count = 4;
    float value = 1;
    OK(launch("set", one, 32, {&at, &value, &count}));
    read_floats(at, 4, two);
}

/* The write comes after the read, and says so: nothing is missing but the write before. */
REFUSED(a_read_before_a_write_that_waits_for_it, "of allocation 1 (16 bytes)\n") {
    open_card();
    CUstream one = new_stream(), two = new_stream();
    CUevent event = new_event();
    CUdeviceptr at = unwritten(16, one), to = floats(4, 0, two);
    OK(cuStreamSynchronize(one));
    OK(add(to, at, 4, two));
    OK(cuEventRecord(event, two));
    OK(cuStreamWaitEvent(one, event, 0));
    OK(cuMemsetD8Async(at, 0, 16, one));
    cuCtxSynchronize();
}

REFUSED(two_streams_that_write_the_same, "nothing orders the two") {
    open_card();
    CUstream one = new_stream(), two = new_stream();
    CUdeviceptr at = floats(4, 1, one);
    OK(cuStreamSynchronize(one));
    OK(cuMemsetD8Async(at, 0, 16, one));
    OK(cuMemsetD8Async(at, 1, 16, two));
    cuCtxSynchronize();
}

REFUSED(a_free_on_another_stream_than_the_use, "nothing orders the two") {
    open_card();
    CUstream one = new_stream(), two = new_stream();
    CUdeviceptr at = floats(4, 1, one);
    OK(cuStreamSynchronize(one));
    OK(cuMemsetD8Async(at, 0, 16, one));
    OK(cuStreamSynchronize(one));
    /* The read is not waited for. */
    void* pinned;
    OK(cuMemHostAlloc(&pinned, 16, 0));
    OK(cuMemcpyDtoHAsync_v2(pinned, at, 16, one));
    CUevent event = new_event();
    OK(cuEventRecord(event, one));
    OK(cuMemFreeAsync(at, two));
    cuEventSynchronize(event);
    cuCtxSynchronize();
}

REFUSED(a_host_that_reads_the_card, "the host read device memory") {
    open_card();
    CUdeviceptr at = floats(4, 1, nullptr);
    OK(cuCtxSynchronize());
    printf("%f\n", *reinterpret_cast<float*>(at));
}

REFUSED(a_host_that_writes_the_card, "the host wrote device memory") {
    open_card();
    *reinterpret_cast<volatile float*>(floats(4, 1, nullptr)) = 1;
}

REFUSED(a_copy_whose_host_side_is_the_card, "it is the card's memory: byte 0 of allocation 1") {
    open_card();
    CUdeviceptr at = floats(4, 1, nullptr), to = floats(4, 1, nullptr);
    cuMemcpyHtoDAsync_v2(to, reinterpret_cast<void*>(at), 16, nullptr);
}

REFUSED(a_copy_to_a_host_that_is_the_card, "cuMemcpyDtoHAsync writes 16 bytes of the host at 0x") {
    open_card();
    CUdeviceptr at = floats(4, 1, nullptr), to = floats(4, 1, nullptr);
    cuMemcpyDtoHAsync_v2(reinterpret_cast<void*>(to), at, 16, nullptr);
}

REFUSED(a_copy_to_a_host_that_was_the_card, "it is the card's memory") {
    open_card();
    CUdeviceptr at = floats(4, 1, nullptr), to = floats(4, 1, nullptr);
    OK(cuMemFreeAsync(to, nullptr));
    OK(cuCtxSynchronize());
    cuMemcpyDtoHAsync_v2(reinterpret_cast<void*>(to), at, 16, nullptr);
}

REFUSED(a_thread_without_a_context, "no context is current on this thread") {
    open_card();
    std::thread([] {
        CUdeviceptr at;
        cuMemAllocAsync(&at, 16, nullptr);
    }).join();
}

REFUSED(a_default_stream_on_a_thread_without_a_context, "cuMemFreeAsync: no context is current on this thread") {
    open_card();
    CUdeviceptr at = floats(4, 1, nullptr);
    std::thread([at] { cuMemFreeAsync(at, nullptr); }).join();
}

REFUSED(a_context_that_was_released, "the context was released") {
    open_card();
    OK(cuDevicePrimaryCtxRelease_v2(0));
    cuCtxSynchronize();
}

static void launch_bound(unsigned grid_y, unsigned block_x, unsigned block_z, unsigned shared) {
    open_card();
    CUdeviceptr to = unwritten(4096, nullptr);
    std::vector<void*> arguments = {&to};
    cuLaunchKernel(kernel("bound"), 1, grid_y, 1, block_x, 1, block_z, shared, nullptr, arguments.data(), nullptr);
}
REFUSED(a_grid_that_is_too_large, "a grid of 1 x 65536 x 1 blocks") { launch_bound(65536, 32, 1, 0); }
REFUSED(a_grid_of_nothing, "a grid of 1 x 0 x 1 blocks") { launch_bound(0, 32, 1, 0); }
REFUSED(a_block_that_is_too_large, "blocks of 2048 x 1 x 1 threads") { launch_bound(1, 2048, 1, 0); }
REFUSED(a_block_that_is_too_deep, "blocks of 1 x 1 x 65 threads") { launch_bound(1, 1, 65, 0); }
REFUSED(a_block_beyond_the_kernel_s_bound, "the kernel is bound to 64") { launch_bound(1, 128, 1, 0); }
REFUSED(shared_memory_that_was_not_asked_for, "shared memory, and the kernel may have 49152") { launch_bound(1, 32, 1, 49153); }

REFUSED(shared_memory_beyond_the_card_s, "a block has at most 101376") {
    open_card();
    cuFuncSetAttribute(kernel("bound"), FUNCTION_MAX_DYNAMIC_SHARED, (99 << 10) + 1);
}

REFUSED(a_race_in_shared_memory, "race in shared memory") {
    open_card();
    CUdeviceptr to = unwritten(1024, nullptr);
    std::vector<void*> arguments = {&to};
    OK(cuLaunchKernel(kernel("shared_race"), 1, 1, 1, 256, 1, 1, 1024, nullptr, arguments.data(), nullptr));
    cuCtxSynchronize();
}

REFUSED(arguments_of_another_size, "bytes of arguments, and its parameters have 24") {
    open_card();
    unsigned char packed[20] = {};
    size_t size = sizeof packed;
    void* extra[] = {LAUNCH_PARAM_BUFFER, packed, LAUNCH_PARAM_BUFFER_SIZE, &size, LAUNCH_PARAM_END};
    cuLaunchKernel(kernel("add"), 1, 1, 1, 32, 1, 1, 0, nullptr, nullptr, extra);
}

REFUSED(too_few_arguments, "argument 2 of 3 cannot be read") {
    open_card();
    CUdeviceptr to = floats(4, 1, nullptr);
    launch("add", nullptr, 32, {&to, &to, nullptr});
}

REFUSED(no_arguments, "no arguments, and it has 3 parameters") {
    open_card();
    cuLaunchKernel(kernel("add"), 1, 1, 1, 32, 1, 1, 0, nullptr, nullptr, nullptr);
}

REFUSED(a_pointer_that_is_not_aligned, "is not aligned to 4 bytes") {
    open_card();
    add(floats(4, 1, nullptr) + 2, floats(4, 1, nullptr), 1, nullptr);
}

struct Buffer {
    CUdeviceptr at;
    long long length;
    int dtype;
};

static void launch_buffers(long long to_length, long long from_length, int dtype, CUdeviceptr to_at = 0) {
    Buffer to{to_at ? to_at : floats(8, 0, nullptr), to_length, 0}, from{floats(8, 1, nullptr), from_length, dtype};
    launch("buffers", nullptr, 32, {&to, &from});
}
REFUSED(a_buffer_longer_than_its_allocation, "9 elements of 4 bytes") {
    open_card();
    launch_buffers(9, 8, 0);
}
REFUSED(floats_longer_than_their_allocation, "17 elements of 2 bytes") {
    open_card();
    launch_buffers(8, 17, 1);
}
REFUSED(floats_of_no_type, "type 3 is no float type") {
    open_card();
    launch_buffers(8, 8, 3);
}
REFUSED(a_buffer_of_nowhere, "no address of the card") {
    open_card();
    launch_buffers(8, 8, 0, 8);
}
REFUSED(a_negative_length, "-1 elements") {
    open_card();
    launch_buffers(8, -1, 0);
}

REFUSED(a_double_free, "which is not allocated") {
    open_card();
    CUdeviceptr at = floats(4, 1, nullptr);
    OK(cuMemFreeAsync(at, nullptr));
    cuMemFreeAsync(at, nullptr);
}

REFUSED(a_free_from_the_middle, "not where an allocation begins") {
    open_card();
    cuMemFreeAsync(floats(4, 1, nullptr) + 4, nullptr);
}

REFUSED(a_copy_over_the_end, "which has 16") {
    open_card();
    float host[5] = {};
    cuMemcpyHtoDAsync_v2(floats(4, 1, nullptr), host, 20, nullptr);
}

REFUSED(a_copy_from_over_the_end, "which has 16") {
    open_card();
    read_floats(floats(4, 1, nullptr), 5, nullptr);
}

REFUSED(a_copy_onto_itself, "it writes some of the bytes that it reads") {
    open_card();
    CUdeviceptr at = floats(4, 1, nullptr);
    cuMemcpyDtoDAsync_v2(at + 4, at, 8, nullptr);
}

REFUSED(a_fill_over_the_end, "which has 16") {
    open_card();
    cuMemsetD8Async(floats(4, 1, nullptr), 0, 17, nullptr);
}

REFUSED(a_fill_of_more_bytes_than_there_are, "cuMemsetD32Async writes 4611686018427387908 times 4 bytes, more than there are addresses") {
    open_card();
    cuMemsetD32Async(floats(4, 1, nullptr), 0, (1ull << 62) + 4, nullptr);
}

REFUSED(a_function_of_an_unloaded_module, "its module was unloaded") {
    open_card();
    CUmodule module;
    CUfunction function;
    OK(cuModuleLoad(&module, getenv("CARD_TEST_KERNELS")));
    OK(cuModuleGetFunction(&function, module, "bound"));
    OK(cuModuleUnload(module));
    cuLaunchKernel(function, 1, 1, 1, 32, 1, 1, 0, nullptr, nullptr, nullptr);
}

REFUSED(a_stream_that_was_destroyed, "the stream does not exist") {
    open_card();
    CUstream stream = new_stream();
    OK(cuStreamDestroy_v2(stream));
    cuStreamSynchronize(stream);
}

REFUSED(an_event_that_was_destroyed, "the event does not exist") {
    open_card();
    CUevent event = new_event();
    OK(cuEventDestroy_v2(event));
    cuEventRecord(event, nullptr);
}

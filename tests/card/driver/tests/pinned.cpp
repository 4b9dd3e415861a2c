/* The host's side of copies: when it is read and written, and what the host must wait for before it touches pinned memory. */
#include "card.hpp"

static bool all(const std::vector<float>& values, float value) { return values == std::vector<float>(values.size(), value); }

LEGAL(a_pageable_source_is_read_at_the_call) {
    open_card();
    std::vector<float> host(1000, 5);
    CUdeviceptr at = unwritten(4000, nullptr);
    OK(cuMemcpyHtoDAsync_v2(at, host.data(), 4000, nullptr));
    host.assign(1000, 6);
    EXPECT(all(read_floats(at, 1000, nullptr), 5));
}

LEGAL(a_pinned_source_is_read_when_the_copy_runs) {
    open_card();
    std::vector<float> host(4, 5);
    OK(cuMemHostRegister_v2(host.data(), 16, 0));
    CUdeviceptr at = unwritten(16, nullptr);
    OK(cuMemcpyHtoDAsync_v2(at, host.data(), 16, nullptr));
    host.assign(4, 6);
    EXPECT(all(read_floats(at, 4, nullptr), 6));
    OK(cuMemHostUnregister(host.data()));
}

LEGAL(a_pinned_target_is_written_by_the_synchronization) {
    open_card();
    std::vector<float> host(4, -1);
    OK(cuMemHostRegister_v2(host.data(), 16, 0));
    CUdeviceptr at = floats(4, 7, nullptr);
    OK(cuMemcpyDtoHAsync_v2(host.data(), at, 16, nullptr));
    EXPECT(host[0] == -1);
    OK(cuStreamSynchronize(nullptr));
    EXPECT(all(host, 7));
    OK(cuMemHostUnregister(host.data()));
}

static float* pinned(size_t bytes) {
    void* at;
    OK(cuMemHostAlloc(&at, bytes, 0));
    return static_cast<float*>(at);
}

LEGAL(pinned_memory_is_the_host_s_again_after_a_wait) {
    open_card();
    CUstream stream = new_stream();
    CUevent event = new_event();
    float* host = pinned(16);
    CUdeviceptr at = floats(4, 7, stream);
    OK(cuMemcpyDtoHAsync_v2(host, at, 16, stream));
    OK(cuEventRecord(event, stream));
    OK(cuEventSynchronize(event));
    EXPECT(host[0] == 7 && host[3] == 7);
    host[0] = 8;
    OK(cuMemcpyHtoDAsync_v2(at, host, 16, stream));
    /* The copy only reads it. */
    EXPECT(host[0] == 8);
    while (cuStreamQuery(stream) == CUDA_ERROR_NOT_READY) {
    }
    host[0] = 9;
    EXPECT(read_floats(at, 4, stream)[0] == 8);
    OK(cuMemcpyDtoHAsync_v2(host, at, 16, stream));
    OK(cuMemFreeHost(host));
}

LEGAL(the_rest_of_pinned_memory_stays_the_host_s) {
    open_card();
    float* host = pinned(12288);
    CUdeviceptr at = floats(1500, 7, nullptr);
    OK(cuMemcpyDtoHAsync_v2(host + 500, at, 6000, nullptr));
    host[499] = 1, host[2000] = 2;
    EXPECT(host[499] == 1 && host[2000] == 2);
    OK(cuCtxSynchronize());
    EXPECT(host[499] == 1 && host[500] == 7 && host[1999] == 7 && host[2000] == 2);
}

LEGAL(a_host_function_uses_what_the_copy_before_it_wrote) {
    open_card();
    float* host = pinned(16);
    OK(cuMemcpyDtoHAsync_v2(host, floats(4, 7, nullptr), 16, nullptr));
    OK(cuLaunchHostFunc(nullptr, [](void* data) { EXPECT(*static_cast<float*>(data) == 7); }, host));
    OK(cuCtxSynchronize());
}

LEGAL(one_stream_copies_through_one_pinned_buffer) {
    open_card();
    float* host = pinned(16);
    CUdeviceptr from = floats(4, 7, nullptr), to = floats(4, 1, nullptr);
    OK(cuMemcpyDtoHAsync_v2(host, from, 16, nullptr));
    OK(cuMemcpyHtoDAsync_v2(to, host, 16, nullptr));
    EXPECT(all(read_floats(to, 4, nullptr), 7));
}

LEGAL(pinned_memory_is_the_host_s_once_the_device_is_lost, {"CARD_LOST_AT", "1"}) {
    open_card();
    float* host = pinned(16);
    CUdeviceptr at = floats(4, 7, nullptr);
    OK(cuMemcpyDtoHAsync_v2(host, at, 16, nullptr));
    EXPECT(add(at, at, 4, nullptr) == CUDA_ERROR_LAUNCH_FAILED);
    EXPECT(host[0] != 7);
}

static volatile float seen;

REFUSED(a_host_that_reads_what_a_copy_has_yet_to_write, "the host read pinned memory that cuMemcpyDtoHAsync on stream 1 writes, and has not waited for it: byte 8 of 16") {
    open_card();
    CUstream stream = new_stream();
    float* host = pinned(16);
    OK(cuMemcpyDtoHAsync_v2(host, floats(4, 7, stream), 16, stream));
    seen = host[2];
}

REFUSED(a_host_that_waits_for_another_stream, "the host read pinned memory that cuMemcpyDtoHAsync on stream 1 writes") {
    open_card();
    CUstream stream = new_stream(), other = new_stream();
    float* host = pinned(16);
    OK(cuMemcpyDtoHAsync_v2(host, floats(4, 7, stream), 16, stream));
    floats(4, 1, other);
    OK(cuStreamSynchronize(other));
    seen = host[0];
}

REFUSED(a_host_that_waits_for_an_event_before_the_copy, "the host read pinned memory that cuMemcpyDtoHAsync on stream 1 writes") {
    open_card();
    CUstream stream = new_stream();
    CUevent event = new_event();
    float* host = pinned(16);
    CUdeviceptr at = floats(4, 7, stream);
    OK(cuEventRecord(event, stream));
    OK(cuMemcpyDtoHAsync_v2(host, at, 16, stream));
    OK(cuEventSynchronize(event));
    seen = host[0];
}

/* It has run: on a card it may have, too. */
REFUSED(a_host_that_does_not_wait_for_a_copy_that_has_run, "the host read pinned memory that cuMemcpyDtoHAsync on stream 1 writes") {
    open_card();
    CUstream stream = new_stream(), other = new_stream();
    float* host = pinned(16);
    OK(cuMemcpyDtoHAsync_v2(host, floats(4, 7, stream), 16, stream));
    for (int i = 0; i < 25000; i++) floats(4, 1, other);
    seen = host[0];
}

REFUSED(a_host_that_writes_where_a_copy_has_yet_to_write, "the host wrote pinned memory that cuMemcpyDtoHAsync on stream 1 writes") {
    open_card();
    CUstream stream = new_stream();
    float* host = pinned(100000);
    OK(cuMemcpyDtoHAsync_v2(host, floats(25000, 7, stream), 100000, stream));
    host[20000] = 1;
}

REFUSED(a_host_that_writes_what_a_copy_has_yet_to_read, "the host wrote pinned memory that cuMemcpyHtoDAsync on stream 1 reads, and has not waited for it: byte 0 of 16") {
    open_card();
    CUstream stream = new_stream();
    float* host = pinned(16);
    CUdeviceptr at = unwritten(16, stream);
    host[0] = 1;
    OK(cuMemcpyHtoDAsync_v2(at, host, 16, stream));
    host[0] = 2;
}

REFUSED(a_copy_longer_than_its_pinned_target, "the pinned memory there ends before") {
    open_card();
    cuMemcpyDtoHAsync_v2(pinned(4096), floats(4096, 1, nullptr), 16384, nullptr);
}

REFUSED(a_copy_longer_than_its_pinned_source, "the pinned memory there ends before") {
    open_card();
    cuMemcpyHtoDAsync_v2(unwritten(16384, nullptr), pinned(4096), 16384, nullptr);
}

REFUSED(two_streams_at_one_pinned_buffer, "cuMemcpyHtoDAsync on stream 2 reads pinned memory of the host's that cuMemcpyDtoHAsync on stream 1 writes, and nothing orders the two") {
    open_card();
    CUstream one = new_stream(), two = new_stream();
    float* host = pinned(16);
    CUdeviceptr from = floats(4, 7, one), to = floats(4, 1, two);
    OK(cuMemcpyDtoHAsync_v2(host, from, 16, one));
    cuMemcpyHtoDAsync_v2(to, host, 16, two);
}

CASE_IN(a_dry_run_s_host_waits_too, "the host read pinned memory that cuMemcpyDtoHAsync on stream 1 writes", {"CARD_DRY", "1"}) {
    open_card();
    CUstream stream = new_stream();
    float* host = pinned(16);
    CUdeviceptr at = floats(4, 7, stream);
    OK(cuMemcpyDtoHAsync_v2(host, at, 16, stream));
    OK(cuStreamSynchronize(stream));
    EXPECT(host[0] == 7);
    OK(cuMemcpyDtoHAsync_v2(host, at, 16, stream));
    seen = host[0];
}

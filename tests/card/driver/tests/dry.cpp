/* Dry runs: as much is checked and counted, nothing is computed. */
#include <cmath>
#include <fstream>

#include "card.hpp"

#define DRY {"CARD_DRY", "1"}

LEGAL(a_dry_run_takes_no_memory_of_the_host, DRY) {
    open_card();
    for (int i = 0; i < 20; i++) {
        CUdeviceptr at = unwritten(1ull << 30, nullptr);
        OK(cuMemsetD8Async(at, 0, 1ull << 30, nullptr));
    }
    OK(cuCtxSynchronize());
    long pages = 0, resident = 0;
    std::ifstream("/proc/self/statm") >> pages >> resident;
    EXPECT(resident * 4096l < 200l << 20);
}

LEGAL(a_dry_run_gives_small_copies_back, DRY) {
    open_card();
    std::vector<float> got = read_floats(floats(10, 3, nullptr), 10, nullptr);
    for (float one : got) EXPECT(one == 3);
}

LEGAL(a_dry_run_invents_finite_numbers, DRY) {
    open_card();
    CUdeviceptr to = floats(1000, 0, nullptr);
    OK(add(to, floats(1000, 1, nullptr), 1000, nullptr));
    for (float one : read_floats(to, 1000, nullptr)) EXPECT(std::isfinite(one) && one > 0);
}

LEGAL(a_dry_run_counts_memory_like_any, DRY, {"CARD_MIB", "600"}, {"CARD_CONTEXT_MIB", "400"}) {
    open_card();
    CUdeviceptr at;
    EXPECT(cuMemAllocAsync(&at, 300 << 20, nullptr) == CUDA_ERROR_OUT_OF_MEMORY);
    OK(cuMemAllocAsync(&at, 150 << 20, nullptr));
    OK(cuMemFreeAsync(at, nullptr));
    OK(cuMemAllocAsync(&at, 150 << 20, nullptr));
    OK(cuCtxSynchronize());
}

CASE_IN(a_dry_run_refuses_a_pointer_to_freed_memory, "which was freed", DRY) {
    open_card();
    CUdeviceptr to = floats(4, 1, nullptr);
    OK(cuMemFreeAsync(to, nullptr));
    add(to, floats(4, 1, nullptr), 4, nullptr);
}

CASE_IN(a_dry_run_refuses_streams_without_an_event, "nothing orders the two", DRY) {
    open_card();
    CUstream one = new_stream(), two = new_stream();
    CUdeviceptr at = floats(4, 1, one), to = floats(4, 0, two);
    OK(cuCtxSynchronize());
    OK(cuMemsetD8Async(at, 0, 16, one));
    add(to, at, 4, two);
    cuCtxSynchronize();
}

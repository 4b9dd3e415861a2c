/* What the device says of itself: an sm_89 card with the numbers of an RTX 4090. */
#include <map>

#include "context.hpp"

using namespace card;

/* By CUdevice_attribute; those that are not here are 0. */
static int attribute_of_device(int attribute) {
    static const std::map<int, int> values = {
        {1, 1024},          // MAX_THREADS_PER_BLOCK
        {2, 1024},          // MAX_BLOCK_DIM_X
        {3, 1024},          // MAX_BLOCK_DIM_Y
        {4, 64},            // MAX_BLOCK_DIM_Z
        {5, 0x7fffffff},    // MAX_GRID_DIM_X
        {6, 65535},         // MAX_GRID_DIM_Y
        {7, 65535},         // MAX_GRID_DIM_Z
        {8, 48 << 10},      // MAX_SHARED_MEMORY_PER_BLOCK
        {9, 64 << 10},      // TOTAL_CONSTANT_MEMORY
        {10, 32},           // WARP_SIZE
        {11, 0x7fffffff},   // MAX_PITCH
        {12, 65536},        // MAX_REGISTERS_PER_BLOCK
        {13, 2520000},      // CLOCK_RATE
        {14, 512},          // TEXTURE_ALIGNMENT
        {15, 1},            // GPU_OVERLAP
        {16, 128},          // MULTIPROCESSOR_COUNT
        {19, 1},            // CAN_MAP_HOST_MEMORY
        {31, 1},            // CONCURRENT_KERNELS
        {36, 10501000},     // MEMORY_CLOCK_RATE
        {37, 384},          // GLOBAL_MEMORY_BUS_WIDTH
        {38, 75497472},     // L2_CACHE_SIZE
        {39, 1536},         // MAX_THREADS_PER_MULTIPROCESSOR
        {40, 2},            // ASYNC_ENGINE_COUNT
        {41, 1},            // UNIFIED_ADDRESSING
        {75, 8},            // COMPUTE_CAPABILITY_MAJOR
        {76, 9},            // COMPUTE_CAPABILITY_MINOR
        {78, 1},            // STREAM_PRIORITIES_SUPPORTED
        {81, 100 << 10},    // MAX_SHARED_MEMORY_PER_MULTIPROCESSOR
        {82, 65536},        // MAX_REGISTERS_PER_MULTIPROCESSOR
        {87, 64},           // SINGLE_TO_DOUBLE_PRECISION_PERF_RATIO
        {95, 1},            // COOPERATIVE_LAUNCH
        {97, 99 << 10},     // MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
        {99, 1},            // HOST_REGISTER_SUPPORTED
        {106, 24},          // MAX_BLOCKS_PER_MULTIPROCESSOR
        {111, 1 << 10},     // RESERVED_SHARED_MEMORY_PER_BLOCK
        {115, 1},           // MEMORY_POOLS_SUPPORTED
    };
    auto found = values.find(attribute);
    return found == values.end() ? 0 : found->second;
}

CARD_API CUresult cuDeviceGetAttribute(int* value, int attribute, CUdevice device) {
    if (!initialized()) return CUDA_ERROR_NOT_INITIALIZED;
    if (device != 0) return CUDA_ERROR_INVALID_DEVICE;
    if (attribute < 1) return CUDA_ERROR_INVALID_VALUE;
    *value = attribute_of_device(attribute);
    return CUDA_SUCCESS;
}

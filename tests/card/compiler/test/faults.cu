/* Kernels that do what kernels may not, each named after it, and some that do what they may. */
extern "C" __global__ void missing_barrier(unsigned* out) {
    extern __shared__ unsigned tile[];
    tile[threadIdx.x] = threadIdx.x;
    out[threadIdx.x] = tile[blockDim.x - 1 - threadIdx.x];
}
extern "C" __global__ void two_writers(unsigned* out) {
    __shared__ unsigned last;
    last = threadIdx.x;
    __syncthreads();
    out[threadIdx.x] = last;
}
extern "C" __global__ void written_after_read(unsigned* out) {
    extern __shared__ unsigned tile[];
    tile[threadIdx.x] = threadIdx.x;
    __syncthreads();
    out[threadIdx.x] = tile[(threadIdx.x + 1) % blockDim.x];
    tile[threadIdx.x] = 0;
}
extern "C" __global__ void neighbouring_bytes(unsigned* out) {
    extern __shared__ unsigned char bytes[];
    bytes[threadIdx.x] = (unsigned char)threadIdx.x;
    __syncthreads();
    out[threadIdx.x] = bytes[(threadIdx.x + 1) % blockDim.x];
}
extern "C" __global__ void byte_race(unsigned* out) {
    extern __shared__ unsigned char bytes[];
    bytes[threadIdx.x] = (unsigned char)threadIdx.x;
    out[threadIdx.x] = bytes[(threadIdx.x + 1) % blockDim.x];
}
extern "C" __global__ void word_over_bytes(unsigned* out) {
    extern __shared__ unsigned words[];
    ((unsigned char*)words)[threadIdx.x] = 1;
    if (threadIdx.x == 0) out[0] = words[0];
}
extern "C" __global__ void unwritten(unsigned* out) {
    extern __shared__ unsigned tile[];
    if (threadIdx.x < 5) tile[threadIdx.x] = 1;
    __syncthreads();
    if (threadIdx.x == 0) out[0] = tile[5];
}
extern "C" __global__ void unwritten_static(unsigned* out) {
    __shared__ unsigned tile[64];
    if (threadIdx.x % 2) tile[threadIdx.x] = 1;
    __syncthreads();
    out[threadIdx.x] = tile[threadIdx.x];
}
extern "C" __global__ void misaligned(unsigned* out) { *(float4*)(out + threadIdx.x) = make_float4(1, 2, 3, 4); }
extern "C" __global__ void misaligned_shared(unsigned* out) {
    extern __shared__ unsigned char bytes[];
    *(unsigned*)(bytes + 4 * threadIdx.x + 2) = 1;
}
extern "C" __global__ void outside(unsigned* out) { out[threadIdx.x + 1] = 0; }
extern "C" __global__ void outside_shared(unsigned* out) {
    extern __shared__ unsigned tile[];
    tile[threadIdx.x + 1] = 0;
}
extern "C" __global__ void copied_outside(unsigned* out) { memcpy(out + 60, out, threadIdx.x + 1); }
extern "C" __global__ void null_pointer(unsigned* out) { out[(threadIdx.x - (unsigned long)out / 4)] = 0; }
extern "C" __global__ void divergent(unsigned* out) {
    unsigned mask = threadIdx.x < 16 ? 0xffffffffu : 0xffffu;
    out[threadIdx.x] = __shfl_sync(mask, threadIdx.x, 0);
}
extern "C" __global__ void different_exchanges(unsigned* out) {
    out[threadIdx.x] = threadIdx.x % 2 ? __shfl_xor_sync(0xffffffffu, 1u, 1) : __ballot_sync(0xffffffffu, 1);
}
extern "C" __global__ void lane_that_left(unsigned* out) {
    if (threadIdx.x == 3) return;
    out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, threadIdx.x, 1);
}
extern "C" __global__ void parted(unsigned* out) {
    if (threadIdx.x % 32 < 7) __syncthreads();
    else __shfl_sync(0xffffffffu, 1, 0);
    out[threadIdx.x] = 0;
}
extern "C" __global__ void assertion(unsigned* out) {
    assert(blockDim.x == 7);
    out[threadIdx.x] = 0;
}
extern "C" __global__ void shuffle_as_fence(unsigned* out) {
    extern __shared__ unsigned tile[];
    tile[threadIdx.x] = threadIdx.x;
    unsigned one = __shfl_sync(0xffffffffu, 1u, 0);
    out[threadIdx.x] = tile[threadIdx.x ^ 31] * one;
}
extern "C" __global__ void ballot_as_fence(unsigned* out) {
    extern __shared__ unsigned tile[];
    tile[threadIdx.x] = threadIdx.x;
    unsigned all = __ballot_sync(0xffffffffu, 1);
    out[threadIdx.x] = tile[threadIdx.x ^ 31] & all;
}
extern "C" __global__ void barriers_of_both_arms(unsigned* out) {
    if (threadIdx.x % 2) {
        __syncthreads();
        out[threadIdx.x] = 1;
    } else {
        __syncthreads();
        out[threadIdx.x] = 2;
    }
}
extern "C" __global__ void products_of_both_arms(unsigned* out) {
    float sum[4] = {};
    unsigned a[4] = {threadIdx.x, 1, 2, 3};
    if (threadIdx.x % 2) {
        card::multiply(card::PRODUCT_BF16, sum, a, 1, 2);
        out[threadIdx.x] = (unsigned)sum[0];
    } else {
        card::multiply(card::PRODUCT_BF16, sum, a, 3, 4);
        out[threadIdx.x] = (unsigned)sum[1] * 2;
    }
}
extern "C" __global__ void row_of_the_card(unsigned* out) {
    unsigned part[4];
    card::load_matrices(card::MATRICES, out, part);
    out[threadIdx.x] = part[0];
}
extern "C" __global__ void row_of_a_stack(unsigned* out) {
    alignas(16) unsigned row[4] = {threadIdx.x, 1, 2, 3}, part[4];
    card::load_matrices(card::MATRICES, row, part);
    out[threadIdx.x] = part[0];
}
extern "C" __global__ void row_that_nobody_wrote(unsigned* out) {
    extern __shared__ uint4 rows[];
    unsigned part[4];
    if (threadIdx.x < 7) rows[threadIdx.x] = make_uint4(1, 2, 3, 4);
    __syncthreads();
    if (threadIdx.x < 32) card::load_matrices(card::MATRICES, rows + threadIdx.x % 8, part);
    out[threadIdx.x] = 0;
}
extern "C" __global__ void constant_copy_outside(unsigned* out) { memcpy(out + 60, out, 100); }

/* What follows is right. */
extern "C" __global__ void one_product_of_two_ways(unsigned* out) {
    float sum[4] = {};
    unsigned a[4] = {0, 0, 0, 0};
    if (threadIdx.x % 2) a[0] = 0x3f803f80u;
    card::multiply(card::PRODUCT_BF16, sum, a, 0x3f803f80u, 0);
    if (threadIdx.x % 2) out[threadIdx.x] = (unsigned)sum[0];
    else out[threadIdx.x] = (unsigned)sum[1] + 1;
}
extern "C" __global__ void leader_of_a_warp(unsigned* out) {
    __shared__ unsigned held[2];
    unsigned warp = threadIdx.x / 32;
    if (threadIdx.x % 32 == 0) held[warp] = 1;
    __syncwarp();
    out[threadIdx.x] = held[warp];
    __syncwarp();
    if (threadIdx.x % 32 == 1) held[warp] += 1;
}
extern "C" __global__ void set_at_once(unsigned* out) {
    extern __shared__ unsigned tile[];
    if (threadIdx.x == 0) memset(tile, 1, 256);
    __syncthreads();
    out[threadIdx.x] = tile[threadIdx.x];
}
extern "C" __global__ void left_early(unsigned* out, int count) {
    extern __shared__ unsigned tile[];
    if ((int)threadIdx.x >= count) return;
    tile[threadIdx.x] = threadIdx.x;
    __syncthreads();
    out[threadIdx.x] = tile[count - 1 - threadIdx.x];
}
extern "C" __global__ void lanes_in_order(unsigned* out) {
    extern __shared__ unsigned tile[];
    tile[threadIdx.x] = threadIdx.x;
    __syncwarp();
    out[threadIdx.x] = tile[threadIdx.x ^ 31];
}
extern "C" __global__ void warps_out_of_order(unsigned* out) {
    extern __shared__ unsigned tile[];
    tile[threadIdx.x] = threadIdx.x;
    __syncwarp();
    out[threadIdx.x] = tile[threadIdx.x ^ 32];
}
extern "C" __global__ void counted(unsigned* out) {
    __shared__ unsigned count;
    __shared__ float sum;
    if (threadIdx.x == 0) count = 0, sum = 0.0f;
    __syncthreads();
    atomicAdd(&count, 1u);
    atomicAdd(&sum, 0.5f);
    __syncthreads();
    out[threadIdx.x] = count + (unsigned)sum;
}
extern "C" __global__ void half_a_warp(unsigned* out) {
    if (threadIdx.x % 32 < 16) out[threadIdx.x] = __shfl_xor_sync(0xffffu, threadIdx.x, 8, 16);
    else out[threadIdx.x] = __shfl_down_sync(0xffff0000u, threadIdx.x, 4, 8);
}
extern "C" __global__ void __launch_bounds__(64, 2) solid(unsigned* out, uint3 given) {
    unsigned index = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    unsigned sum = index;
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
    unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    out[block * blockDim.x * blockDim.y * blockDim.z + index] = sum + given.z;
}

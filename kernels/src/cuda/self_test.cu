/* What every kernel rests on, each as a kernel of its own. */

/* out[i] = x[i], in out's type. */
extern "C" __global__ void convert(Floats x, Floats out, i64 len) {
    i64 i = global_index();
    if (i < len) out.store(i, x.load(i));
}

/* Sum and maximum of each row of x [blocks, size]: out [blocks, 2]. */
extern "C" __global__ void block_totals(Floats x, Floats out, i64 size) {
    Shared<float> scratch = shared<float>(0, WARP);
    float sum = 0.0f, largest = -infinity();
    for (i64 i = threadIdx.x; i < size; i += blockDim.x) {
        float value = x.load(blockIdx.x * size + i);
        sum += value;
        largest = fmaxf(largest, value);
    }
    sum = block_sum(sum, scratch);
    largest = block_max(largest, scratch);
    if (threadIdx.x == 0) {
        out.store(2 * (i64)blockIdx.x, sum);
        out.store(2 * (i64)blockIdx.x + 1, largest);
    }
}

/* Turns each block's numbers round, through shared memory. */
extern "C" __global__ void reverse(Buffer<u32> x, Buffer<u32> out) {
    Shared<u32> tile = shared<u32>(0, blockDim.x);
    tile[threadIdx.x] = x[global_index()];
    __syncthreads();
    out[global_index()] = tile[blockDim.x - 1 - threadIdx.x];
}

/* One row of 32 for every exchange within a warp, of the lanes' own numbers. */
extern "C" __global__ void exchange(Buffer<i64> out) {
    int me = lane();
    out[me] = __shfl_sync(FULL, me, 5);
    out[WARP + me] = __shfl_xor_sync(FULL, me, 3);
    out[2 * WARP + me] = __shfl_down_sync(FULL, me, 4);
    out[3 * WARP + me] = __shfl_up_sync(FULL, me, 4);
    out[4 * WARP + me] = __ballot_sync(FULL, me % 3 == 0);
}

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

/* out [16, 8] += a [16, 16] b [16, 8] of this type on tensor cores, each operand taken from its place element by element: a warp. */
template <int DTYPE> __device__ inline void multiply_in(Floats a, Floats b, Buffer<float> out) {
    int group = lane() / 4, pair = lane() % 4 * 2;
    u32 left[4], right[2];
    float sum[4];
    for (int i = 0; i < 4; i++) {
        int at = (group + i % 2 * 8) * 16 + pair + i / 2 * 8;
        left[i] = pack<DTYPE>(a.load(at), a.load(at + 1));
        sum[i] = out[(group + i / 2 * 8) * 8 + pair + i % 2];
    }
    for (int i = 0; i < 2; i++) {
        int at = (pair + i * 8) * 8 + group;
        right[i] = pack<DTYPE>(b.load(at), b.load(at + 8));
    }
    mma<DTYPE>(sum, left, right[0], right[1]);
    for (int i = 0; i < 4; i++) out[(group + i / 2 * 8) * 8 + pair + i % 2] = sum[i];
}
/* out = c + a b. */
extern "C" __global__ void multiply_16(Floats a, Floats b, Buffer<float> c, Buffer<float> out) {
    for (int i = lane(); i < 128; i += WARP) out[i] = c[i];
    __syncthreads();
    if (a.dtype == BF16) multiply_in<BF16>(a, b, out);
    else multiply_in<F16>(a, b, out);
}

/* Four matrices [4, 8, 8] of 16-bit numbers, two to an element of x, through shared memory: what each lane gets of each, [2, 4, 32], as
 * they are and transposed. A warp. */
extern "C" __global__ void four_matrices(Buffer<u32> x, Buffer<u32> out) {
    Shared<Eight> rows = shared<Eight>(0, WARP);
    rows[lane()] = Eight{x[4 * lane()], x[4 * lane() + 1], x[4 * lane() + 2], x[4 * lane() + 3]};
    __syncthreads();
    u32 part[4];
    load_matrices<false>(rows[lane()], part);
    for (int i = 0; i < 4; i++) out[i * WARP + lane()] = part[i];
    load_matrices<true>(rows[lane()], part);
    for (int i = 0; i < 4; i++) out[(4 + i) * WARP + lane()] = part[i];
}

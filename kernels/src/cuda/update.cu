/* Updates by AdamW, and the sums of squares that clipping asks for: of many tensors in one launch, blockIdx.y of them. */

enum { MOMENTS_A_SCALE = 256, CODES = 256 };

/* The numbers of one update. Every operation is rounded by itself, so that a card's parameters are the host's to the bit. */
struct AdamW {
    float scale, beta1, new1, beta2, new2, correction, eps, rate, kept;
    /* The parameter after the update; the moments change in place. */
    __device__ float step(float p, float g, float& m, float& v) const {
        g = __fmul_rn(g, scale);
        m = __fadd_rn(__fmul_rn(m, beta1), __fmul_rn(g, new1));
        v = __fadd_rn(__fmul_rn(v, beta2), __fmul_rn(__fmul_rn(g, g), new2));
        float root = __fadd_rn(__fmul_rn(sqrtf(v), correction), eps);
        return __fadd_rn(__fmul_rn(p, kept), -__fmul_rn(m / root, rate));
    }
};

/* parameters, gradients and moments, [len] each, of which the gradients stay as they are. */
extern "C" __global__ void adamw(Table<Buffer<float>> parameters, Table<Buffer<float>> gradients, Table<Buffer<float>> firsts,
                                 Table<Buffer<float>> seconds, float scale, float beta1, float new1, float beta2, float new2, float correction,
                                 float eps, float rate, float kept) {
    AdamW with{scale, beta1, new1, beta2, new2, correction, eps, rate, kept};
    Buffer<float> parameter = parameters[blockIdx.y], gradient = gradients[blockIdx.y], first = firsts[blockIdx.y], second = seconds[blockIdx.y];
    for (i64 i = global_index(); i < parameter.len; i += (i64)gridDim.x * blockDim.x) {
        float m = first[i], v = second[i];
        parameter[i] = with.step(parameter[i], gradient[i], m, v);
        first[i] = m;
        second[i] = v;
    }
}

/* What codes stand for, ascending, and the middles between neighbours. */
struct DynamicMap {
    Shared<float> values, middles;
    /* How many middles lie below the value, which is in -1..=1. */
    __device__ int code(float value) const {
        int code = 0;
        for (int step = CODES / 2; step > 0; step /= 2)
            if (middles[code + step - 1] < value) code += step;
        return code;
    }
};

/* The moments of one scale in 8 bits: `value` is this thread's, of element i. All threads take part. */
__device__ inline void store_codes(float value, bool inside, i64 i, DynamicMap map, Shared<float> joined, Buffer<u8> codes, Buffer<float> scales) {
    /* A scale's values that are all NaN have no largest. */
    float largest = block_max(fmaxf(inside ? fabsf(value) : 0.0f, 0.0f), joined);
    float scaled = __fmul_rn(value, 1.0f / fmaxf(largest, 1e-38f));
    scaled = scaled < -1.0f ? -1.0f : scaled > 1.0f ? 1.0f : scaled;
    if (inside) codes[i] = (u8)map.code(scaled);
    if (threadIdx.x == 0) scales[i / MOMENTS_A_SCALE] = largest;
}

/* As adamw with moments in 8 bits; a block has a thread for each of MOMENTS_A_SCALE elements. Codes [len] and scales [len / MOMENTS_A_SCALE]
 * of the first and the second moment; maps [2, 2, CODES]: values and middles of the first moment's codes, and of the second's. */
extern "C" __global__ void adamw_8bit(Table<Buffer<float>> parameters, Table<Buffer<float>> gradients, Table<Buffer<u8>> firsts,
                                      Table<Buffer<float>> first_scales, Table<Buffer<u8>> seconds, Table<Buffer<float>> second_scales,
                                      Buffer<float> maps, float scale, float beta1, float new1, float beta2, float new2, float correction,
                                      float eps, float rate, float kept) {
    AdamW with{scale, beta1, new1, beta2, new2, correction, eps, rate, kept};
    Buffer<float> parameter = parameters[blockIdx.y], gradient = gradients[blockIdx.y];
    Buffer<u8> first = firsts[blockIdx.y], second = seconds[blockIdx.y];
    Buffer<float> first_scale = first_scales[blockIdx.y], second_scale = second_scales[blockIdx.y];
    i64 start = (i64)blockIdx.x * blockDim.x;
    if (start >= parameter.len) return;
    Shared<float> joined = shared<float>(0, WARP), held = shared<float>(4 * WARP, 4 * CODES);
    for (int i = threadIdx.x; i < 4 * CODES; i += blockDim.x) held[i] = maps[i];
    __syncthreads();
    DynamicMap maps_of[2];
    for (int i = 0; i < 2; i++)
        maps_of[i] = DynamicMap{shared<float>(4 * WARP + 8 * i * CODES, CODES), shared<float>(4 * WARP + 4 * (2 * i + 1) * CODES, CODES)};
    for (; start < parameter.len; start += (i64)gridDim.x * blockDim.x) {
        i64 i = start + threadIdx.x;
        bool inside = i < parameter.len;
        float m = 0.0f, v = 0.0f;
        if (inside) {
            m = __fmul_rn(maps_of[0].values[first[i]], first_scale[i / MOMENTS_A_SCALE]);
            v = __fmul_rn(maps_of[1].values[second[i]], second_scale[i / MOMENTS_A_SCALE]);
            parameter[i] = with.step(parameter[i], gradient[i], m, v);
        }
        store_codes(m, inside, i, maps_of[0], joined, first, first_scale);
        store_codes(v, inside, i, maps_of[1], joined, second, second_scale);
    }
}

/* parts [at + tensor, blocks of one] = sums of x^2 over what each block takes of a tensor. */
extern "C" __global__ void squares(Table<Floats> tensors, Buffer<double> parts, i64 at) {
    Floats x = tensors[blockIdx.y];
    double sum = 0.0;
    for (i64 i = global_index(); i < x.len; i += (i64)gridDim.x * blockDim.x) {
        double value = x.load(i);
        sum += value * value;
    }
    sum = block_sum(sum, shared<double>(0, WARP));
    if (threadIdx.x == 0) parts[(at + blockIdx.y) * gridDim.x + blockIdx.x] = sum;
}

/* sums [blocks] of as many parts each as a block has threads. */
extern "C" __global__ void sums_of_parts(Buffer<double> parts, Buffer<double> sums) {
    double sum = block_sum(parts[global_index()], shared<double>(0, WARP));
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

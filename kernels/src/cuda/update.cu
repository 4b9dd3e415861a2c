/* Updates by AdamW, and the sums of squares that clipping asks for. */

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

/* parameter, gradient and moments [len], and what they become. */
extern "C" __global__ void adamw(Buffer<float> parameter, Buffer<float> gradient, Buffer<float> first, Buffer<float> second,
                                 Buffer<float> to_parameter, Buffer<float> to_first, Buffer<float> to_second, i64 len, float scale,
                                 float beta1, float new1, float beta2, float new2, float correction, float eps, float rate, float kept) {
    i64 i = global_index();
    if (i >= len) return;
    AdamW with{scale, beta1, new1, beta2, new2, correction, eps, rate, kept};
    float m = first[i], v = second[i];
    to_parameter[i] = with.step(parameter[i], gradient[i], m, v);
    to_first[i] = m;
    to_second[i] = v;
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

/* One block's moments in 8 bits: `value` is this thread's. All threads take part. */
__device__ inline void store_codes(float value, bool inside, i64 i, DynamicMap map, Shared<float> joined, Buffer<u8> codes, Buffer<float> absmax) {
    /* A block of nothing but NaN has no largest. */
    float largest = block_max(fmaxf(inside ? fabsf(value) : 0.0f, 0.0f), joined);
    float scaled = __fmul_rn(value, 1.0f / fmaxf(largest, 1e-38f));
    scaled = scaled < -1.0f ? -1.0f : scaled > 1.0f ? 1.0f : scaled;
    if (inside) codes[i] = (u8)map.code(scaled);
    if (threadIdx.x == 0) absmax[blockIdx.x] = largest;
}

/* As adamw with moments in 8 bits, a block of threads for MOMENTS_A_SCALE elements. codes [len] and absmax [blocks] of the first and the
 * second moment; maps [2, 2, CODES]: values and middles of the first moment's codes, and of the second's. */
extern "C" __global__ void adamw_8bit(Buffer<float> parameter, Buffer<float> gradient, Buffer<u8> first, Buffer<float> first_absmax,
                                      Buffer<u8> second, Buffer<float> second_absmax, Buffer<float> maps, Buffer<float> to_parameter,
                                      Buffer<u8> to_first, Buffer<float> to_first_absmax, Buffer<u8> to_second,
                                      Buffer<float> to_second_absmax, i64 len, float scale, float beta1, float new1, float beta2,
                                      float new2, float correction, float eps, float rate, float kept) {
    Shared<float> joined = shared<float>(0, WARP), held = shared<float>(4 * WARP, 4 * CODES);
    for (int i = threadIdx.x; i < 4 * CODES; i += blockDim.x) held[i] = maps[i];
    __syncthreads();
    DynamicMap maps_of[2];
    for (int i = 0; i < 2; i++)
        maps_of[i] = DynamicMap{shared<float>(4 * WARP + 8 * i * CODES, CODES), shared<float>(4 * WARP + 4 * (2 * i + 1) * CODES, CODES)};
    i64 i = global_index();
    bool inside = i < len;
    float m = 0.0f, v = 0.0f;
    if (inside) {
        AdamW with{scale, beta1, new1, beta2, new2, correction, eps, rate, kept};
        m = __fmul_rn(maps_of[0].values[first[i]], first_absmax[blockIdx.x]);
        v = __fmul_rn(maps_of[1].values[second[i]], second_absmax[blockIdx.x]);
        to_parameter[i] = with.step(parameter[i], gradient[i], m, v);
    }
    store_codes(m, inside, i, maps_of[0], joined, to_first, to_first_absmax);
    store_codes(v, inside, i, maps_of[1], joined, to_second, to_second_absmax);
}

/* parts [at, at + blocks) = sums of x^2 over what each block takes of x [len]. */
extern "C" __global__ void squares(Floats x, Buffer<double> parts, i64 at, i64 len) {
    double sum = 0.0;
    for (i64 i = global_index(); i < len; i += (i64)gridDim.x * blockDim.x) {
        double value = x.load(i);
        sum += value * value;
    }
    sum = block_sum(sum, shared<double>(0, WARP));
    if (threadIdx.x == 0) parts[at + blockIdx.x] = sum;
}

/* sums [blocks] of as many parts each as a block has threads. */
extern "C" __global__ void sums_of_parts(Buffer<double> parts, Buffer<double> sums) {
    double sum = block_sum(parts[global_index()], shared<double>(0, WARP));
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

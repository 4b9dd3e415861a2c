/* What stands between the products of a decoder layer: RMSNorm, rotary positions and SwiGLU, each with its gradient. Roundings
 * to the activations' type are where the CPU has them. */

/* 1 / sqrt(mean(x^2) + eps) of the row from `first` on. */
__device__ inline float inverse_rms(Floats x, i64 first, i64 size, float eps, Shared<float> scratch) {
    float squares = 0.0f;
    for (i64 i = threadIdx.x; i < size; i += blockDim.x) {
        float value = x.load(first + i);
        squares += value * value;
    }
    return 1.0f / sqrtf(block_sum(squares, scratch) / (float)size + eps);
}

/* y = w * x / rms, a block for each row of x [blocks, size]. */
extern "C" __global__ void rms_norm(Floats x, Floats weight, Floats out, i64 size, float eps) {
    i64 first = blockIdx.x * size;
    float scale = inverse_rms(x, first, size, eps, shared<float>(0, WARP));
    for (i64 i = threadIdx.x; i < size; i += blockDim.x)
        out.store(first + i, weight.load(i) * out.round(x.load(first + i) * scale));
}

/* With n = x / rms and g = w * dL/dy: dL/dx = (g - n * mean(g * n)) / rms. */
extern "C" __global__ void rms_norm_gradient(Floats x, Floats weight, Floats grad, Floats out, i64 size, float eps) {
    Shared<float> scratch = shared<float>(0, WARP);
    i64 first = blockIdx.x * size;
    float scale = inverse_rms(x, first, size, eps, scratch), along = 0.0f;
    for (i64 i = threadIdx.x; i < size; i += blockDim.x)
        along += weight.load(i) * grad.load(first + i) * (x.load(first + i) * scale);
    along = block_sum(along, scratch) / (float)size;
    for (i64 i = threadIdx.x; i < size; i += blockDim.x)
        out.store(first + i, scale * (weight.load(i) * grad.load(first + i) - x.load(first + i) * scale * along));
}

/* [x1 cos - x2 sin, x2 cos + x1 sin] of every head, back where `sign` is -1: a block for each row of x [blocks, heads, 2 half];
 * the tables are [positions, half], and rows begin at the first position again after the last. */
extern "C" __global__ void rope(Floats x, Floats cosines, Floats sines, Floats out, i64 positions, int heads, int half, float sign) {
    i64 position = blockIdx.x % positions, first = (i64)blockIdx.x * heads * 2 * half;
    for (int i = threadIdx.x; i < heads * half; i += blockDim.x) {
        i64 angle = position * half + i % half, low = first + i / half * 2 * half + i % half, high = low + half;
        float a = x.load(low), b = x.load(high), c = cosines.load(angle), s = sign * sines.load(angle);
        /* Each product is rounded before the sum. */
        out.store(low, out.round(__fmul_rn(a, c)) - out.round(__fmul_rn(b, s)));
        out.store(high, out.round(__fmul_rn(b, c)) + out.round(__fmul_rn(a, s)));
    }
}

__device__ inline float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

/* silu(gate) * up. */
extern "C" __global__ void swiglu(Floats gate, Floats up, Floats out, i64 len) {
    i64 i = global_index();
    if (i >= len) return;
    float g = gate.load(i);
    out.store(i, out.round(g * sigmoid(g)) * up.load(i));
}

/* With s = sigmoid(gate): dL/dgate = dL/dy up s (1 + gate (1 - s)) and dL/dup = dL/dy gate s; out [2, len]. */
extern "C" __global__ void swiglu_gradient(Floats gate, Floats up, Floats grad, Floats out, i64 len) {
    i64 i = global_index();
    if (i >= len) return;
    float g = gate.load(i), d = grad.load(i), s = sigmoid(g);
    out.store(i, d * up.load(i) * s * (1.0f + g * (1.0f - s)));
    out.store(len + i, d * g * s);
}

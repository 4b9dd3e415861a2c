/* What stands between the products of a decoder layer: RMSNorm, heads and their rotary positions, and SwiGLU, each with its
 * gradient. Everything is computed in f32 and rounded once, where it is stored. */

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
    for (i64 i = threadIdx.x; i < size; i += blockDim.x) out.store(first + i, weight.load(i) * (x.load(first + i) * scale));
}

/* The same, with a copy of x for what is added to it next. */
extern "C" __global__ void rms_norm_and_copy(Floats x, Floats weight, Floats out, Floats copy, i64 size, float eps) {
    i64 first = blockIdx.x * size;
    float scale = inverse_rms(x, first, size, eps, shared<float>(0, WARP));
    for (i64 i = threadIdx.x; i < size; i += blockDim.x) {
        float value = x.load(first + i);
        out.store(first + i, weight.load(i) * (value * scale));
        copy.store(first + i, value);
    }
}

/* With n = x / rms and g = w * dL/dy: dL/dx = (g - n * mean(g * n)) / rms, added to `before` where `adds` says so. */
extern "C" __global__ void rms_norm_gradient(Floats x, Floats weight, Floats grad, Floats before, int adds, Floats out, i64 size, float eps) {
    Shared<float> scratch = shared<float>(0, WARP);
    i64 first = blockIdx.x * size;
    float scale = inverse_rms(x, first, size, eps, scratch), along = 0.0f;
    for (i64 i = threadIdx.x; i < size; i += blockDim.x)
        along += weight.load(i) * grad.load(first + i) * (x.load(first + i) * scale);
    along = block_sum(along, scratch) / (float)size;
    for (i64 i = threadIdx.x; i < size; i += blockDim.x) {
        float gradient = scale * (weight.load(i) * grad.load(first + i) - x.load(first + i) * scale * along);
        out.store(first + i, adds ? before.load(first + i) + gradient : gradient);
    }
}

/* What each row adds to dL/dw: dL/dy * x / rms. */
extern "C" __global__ void rms_norm_terms(Floats x, Floats grad, Floats out, i64 size, float eps) {
    i64 first = blockIdx.x * size;
    float scale = inverse_rms(x, first, size, eps, shared<float>(0, WARP));
    for (i64 i = threadIdx.x; i < size; i += blockDim.x) out.store(first + i, grad.load(first + i) * (x.load(first + i) * scale));
}

/* A head's elements, and the cosines and sines [positions, half] of the rows: they begin at the first position again after the last. */
struct Turn {
    Floats cosines, sines;
    i64 first;
    int half;
    float sign;
    /* [x1 cos - x2 sin, x2 cos + x1 sin] of element i below half, back where `sign` is -1. */
    __device__ void apply(int i, float& a, float& b) const {
        float c = cosines.load(first + i), s = sign * sines.load(first + i), low = a;
        a = __fadd_rn(__fmul_rn(low, c), -__fmul_rn(b, s));
        b = __fadd_rn(__fmul_rn(b, c), __fmul_rn(low, s));
    }
};

__device__ inline Turn turn_of(Floats cosines, Floats sines, i64 positions, int half, float sign) {
    return Turn{cosines, sines, blockIdx.x % positions * half, half, sign};
}

/* Every head of x, turned: a block for each row of x [blocks, heads, 2 half]. */
extern "C" __global__ void rope(Floats x, Floats cosines, Floats sines, Floats out, i64 positions, int heads, int half, float sign) {
    Turn turn = turn_of(cosines, sines, positions, half, sign);
    i64 row = (i64)blockIdx.x * heads * 2 * half;
    for (int i = threadIdx.x; i < heads * half; i += blockDim.x) {
        i64 low = row + i / half * 2 * half + i % half;
        float a = x.load(low), b = x.load(low + half);
        turn.apply(i % half, a, b);
        out.store(low, a);
        out.store(low + half, b);
    }
}

/* Rows of y [blocks, (heads + 2 key_heads) 2 half] with their biases become those of q [blocks, heads, 2 half], k and v [blocks,
 * key_heads, 2 half]; q and k are turned where `turned` says so. Without a bias, `biased` is 0. */
extern "C" __global__ void split_heads(Floats y, Floats q_bias, Floats k_bias, Floats v_bias, int biased, Floats cosines, Floats sines,
                                       Floats q, Floats k, Floats v, i64 positions, int heads, int key_heads, int half, int turned) {
    Turn turn = turn_of(cosines, sines, positions, half, 1.0f);
    int all = heads + 2 * key_heads;
    i64 row = (i64)blockIdx.x * all * 2 * half;
    for (int i = threadIdx.x; i < all * half; i += blockDim.x) {
        int head = i / half, at = i % half, part = head < heads ? 0 : head < heads + key_heads ? 1 : 2;
        int own = part == 0 ? head : head - heads - (part - 1) * key_heads;
        Floats to = part == 0 ? q : part == 1 ? k : v, bias = part == 0 ? q_bias : part == 1 ? k_bias : v_bias;
        i64 from = row + (i64)head * 2 * half + at, of_head = (i64)own * 2 * half + at;
        float a = y.load(from), b = y.load(from + half);
        if (biased) {
            a += bias.load(of_head);
            b += bias.load(of_head + half);
        }
        if (turned && part < 2) turn.apply(at, a, b);
        i64 into = (i64)blockIdx.x * (part == 0 ? heads : key_heads) * 2 * half + of_head;
        to.store(into, a);
        to.store(into + half, b);
    }
}

/* The way back of split_heads: gradients in q, k and v side by side, q and k turned back where `turned` says so. */
extern "C" __global__ void join_heads(Floats q, Floats k, Floats v, Floats cosines, Floats sines, Floats y, i64 positions, int heads,
                                      int key_heads, int half, int turned) {
    Turn turn = turn_of(cosines, sines, positions, half, -1.0f);
    int all = heads + 2 * key_heads;
    i64 row = (i64)blockIdx.x * all * 2 * half;
    for (int i = threadIdx.x; i < all * half; i += blockDim.x) {
        int head = i / half, at = i % half, part = head < heads ? 0 : head < heads + key_heads ? 1 : 2;
        int own = part == 0 ? head : head - heads - (part - 1) * key_heads;
        Floats of = part == 0 ? q : part == 1 ? k : v;
        i64 from = ((i64)blockIdx.x * (part == 0 ? heads : key_heads) + own) * 2 * half + at;
        float a = of.load(from), b = of.load(from + half);
        if (turned && part < 2) turn.apply(at, a, b);
        i64 into = row + (i64)head * 2 * half + at;
        y.store(into, a);
        y.store(into + half, b);
    }
}

__device__ inline float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

/* silu(gate) * up of rows [gate, up], each `width` elements: out [len / width, width]. */
extern "C" __global__ void swiglu(Floats gate_up, Floats out, i64 width, i64 len) {
    i64 i = global_index();
    if (i >= len) return;
    i64 at = i / width * 2 * width + i % width;
    float g = gate_up.load(at);
    out.store(i, g * sigmoid(g) * gate_up.load(at + width));
}

/* With s = sigmoid(gate): dL/dgate = dL/dy up s (1 + gate (1 - s)) and dL/dup = dL/dy gate s, side by side as gate and up are. */
extern "C" __global__ void swiglu_gradient(Floats gate_up, Floats grad, Floats out, i64 width, i64 len) {
    i64 i = global_index();
    if (i >= len) return;
    i64 at = i / width * 2 * width + i % width;
    float g = gate_up.load(at), d = grad.load(i), s = sigmoid(g);
    out.store(at, d * gate_up.load(at + width) * s * (1.0f + g * (1.0f - s)));
    out.store(at + width, d * g * s);
}

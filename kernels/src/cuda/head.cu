/* The rows of a student's head: what a loss needs of each row of logits, and from what the loss makes of it the gradient.
 *
 * A few entries of a row, the places, stand by themselves: `width` kept ids, which may repeat, and a label. All others are the
 * row's tail. */

/* A sum that carries what rounding took from it (Kahan), and can be scaled. */
struct Running {
    float sum, lost;
    __device__ Running() : sum(0.0f), lost(0.0f) {}
    __device__ void add(float value) {
        float more = value - lost, next = sum + more;
        lost = (next - sum) - more;
        sum = next;
    }
    __device__ void scale(float factor) {
        sum *= factor;
        lost *= factor;
    }
};

/* One block a row of z [rows, stride], whose first `vocab` columns count. places [rows, width + 1], the label last. out [rows, width + 4]: z at the places; the
 * largest logit of the tail, or the lowest finite number where there is none; the sums of exp(z - largest) and of
 * exp((z - largest) * rate) over the tail. Shared memory: a bit for every logit, and WARP floats before them. */
extern "C" __global__ void head_parts(Floats z, Buffer<u32> places, Buffer<float> out, i64 vocab, i64 stride, i64 width, float rate) {
    i64 row = blockIdx.x * stride, words = (vocab + WARP - 1) / WARP;
    i64 at = blockIdx.x * (width + 1), to = blockIdx.x * (width + 4);
    Shared<float> joined = shared<float>(0, WARP);
    Shared<u32> kept = shared<u32>(4 * WARP, words);
    for (i64 i = threadIdx.x; i < words; i += blockDim.x) kept[i] = 0;
    __syncthreads();
    for (i64 i = threadIdx.x; i <= width; i += blockDim.x) {
        u32 id = places[at + i];
        /* Added and not set: threads share words. Repeated ids are found by the first that adds its bit. */
        if (i < width) {
            bool first = true;
            for (i64 j = 0; j < i; j++) first = first && places[at + j] != id;
            if (first) atomicAdd(&kept[id / WARP], 1u << id % WARP);
        }
        out[to + i] = z.load(row + id);
    }
    __syncthreads();
    float largest = -infinity();
    Running sum, tempered;
    for (i64 i = threadIdx.x; i < vocab; i += blockDim.x) {
        if (kept[i / WARP] >> i % WARP & 1u) continue;
        float value = z.load(row + i);
        if (value > largest) {
            if (largest > -infinity()) {
                sum.scale(expf(largest - value));
                tempered.scale(expf((largest - value) * rate));
            }
            largest = value;
        }
        /* -inf beside nothing larger adds nothing; NaN adds itself. */
        if (value != -infinity()) {
            sum.add(expf(value - largest));
            tempered.add(expf((value - largest) * rate));
        }
    }
    float of_row = block_max(largest, joined);
    float part = largest > -infinity() ? expf(largest - of_row) : 1.0f;
    float part_tempered = largest > -infinity() ? expf((largest - of_row) * rate) : 1.0f;
    float total = block_sum(sum.sum * part, joined);
    float total_tempered = block_sum(tempered.sum * part_tempered, joined);
    if (threadIdx.x == 0) {
        out[to + width + 1] = of_row > -infinity() ? of_row : -3.402823466e38f;
        out[to + width + 2] = total;
        out[to + width + 3] = total_tempered;
    }
}

/* Blocks along x cover blockDim.x * 4 logits each of the row along y. gradient [rows, stride], 0 past `vocab`:
 * own exp(z - largest) + tail exp((z - largest) * rate), or what `factors` says of a kept id, with more at the label.
 * places and parts are those of head_parts; factors [rows, width + 3]: of the kept ids, of the label, own, tail. */
extern "C" __global__ void head_gradient(Floats z, Buffer<u32> places, Buffer<float> parts, Buffer<float> factors, Floats gradient,
                                         i64 vocab, i64 stride, i64 width, float rate) {
    i64 row = blockIdx.y * stride, at = blockIdx.y * (width + 1), from = blockIdx.y * (width + 3);
    float largest = parts[blockIdx.y * (width + 4) + width + 1];
    float own = factors[from + width + 1], tail = factors[from + width + 2];
    i64 start = (i64)blockIdx.x * blockDim.x * 4, end = min(start + blockDim.x * 4, stride);
    for (i64 i = start + threadIdx.x; i < end; i += blockDim.x) {
        if (i >= vocab) {
            gradient.store(row + i, 0.0f);
            continue;
        }
        float above = z.load(row + i) - largest;
        float value = own * expf(above);
        if (rate != 1.0f) value += tail * expf(above * rate);
        gradient.store(row + i, value);
    }
    __syncthreads();
    for (i64 i = threadIdx.x; i < width; i += blockDim.x) {
        i64 id = places[at + i];
        if (start <= id && id < end) gradient.store(row + id, factors[from + i]);
    }
    __syncthreads();
    i64 label = places[at + width];
    if (threadIdx.x == 0 && start <= label && label < end) {
        /* Formed again in f32: the gradient may be in 16 bits. */
        float above = z.load(row + label) - largest, value = own * expf(above);
        if (rate != 1.0f) value += tail * expf(above * rate);
        for (i64 i = 0; i < width; i++) value = places[at + i] == label ? factors[from + i] : value;
        gradient.store(row + label, value + factors[from + width]);
    }
}

/* The rows of a student's head: what a loss needs of each row of logits, the loss, and its gradient.
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

/* Divergences between teacher p and student q: KL(p || q), KL(q || p), and beta KL(p || m) + (1 - beta) KL(q || m) with
 * m = beta p + (1 - beta) q. */
enum { FORWARD, REVERSE, JSD, FORMS };
/* Numbers that the loss says of a row: how many of its places are ids that a teacher kept, 0 where it has no teacher; weights of
 * cross-entropy, of every divergence (below 0 where it is not asked for) and of logsumexp(z); whether what the teacher's p leaves
 * of 1 is one bucket's; tau and beta. */
enum { KEPT, CE, DIVERGENCES, SOFTMAX = DIVERGENCES + FORMS, BUCKET, TAU, BETA, TERMS };
/* Numbers that come of a row: logsumexp(z), cross-entropy, and every divergence. */
enum { LOGSUMEXP, CROSS_ENTROPY, DIVERGED, VALUES = DIVERGED + FORMS };

/* logsumexp of z / tau over a row's tail, -inf where that is empty, and over all; the same in every lane of a warp. */
struct Split {
    double tail, all;
    __device__ Split(Buffer<float> kept, double largest, double sum, double tau) {
        /* Not `sum > 0`, which would take NaN for an empty tail. */
        tail = sum == 0.0 ? -(double)infinity() : largest / tau + log(sum);
        double top = tail, above = 0.0;
        for (i64 i = lane(); i < kept.len; i += WARP) top = fmax(top, kept[i] / tau);
        top = warp_join<Max>(top);
        /* A NaN among the kept must come out: fmax passes over it, the sum does not. */
        for (i64 i = lane(); i < kept.len; i += WARP) above += exp(kept[i] / tau - top);
        all = top + log(warp_sum(above) + exp(tail - top));
    }
};

/* What one id, or the bucket, adds to a divergence D, and its q dD/dq. */
struct Share {
    double value, pull;
    __device__ Share(int form, double beta, double p, double log_p, double log_q) {
        double q = exp(log_q);
        if (form == JSD) {
            double log_m = log(beta * p + (1.0 - beta) * q);
            pull = q > 0.0 ? (1.0 - beta) * q * (log_q - log_m) : 0.0;
            value = (p > 0.0 ? beta * p * (log_p - log_m) : 0.0) + pull;
        } else if (form == REVERSE) {
            value = pull = q * (log_q - log_p);
        } else {
            value = p > 0.0 ? p * (log_p - log_q) : 0.0;
            pull = -p;
        }
    }
};

/* What ids add to the divergences of a row that are asked for, and their pulls, weighted, together. */
struct Shares {
    double values[FORMS], pull;
    __device__ Shares() : pull(0.0) {
        for (int form = 0; form < FORMS; form++) values[form] = 0.0;
    }
    __device__ void add(const Buffer<double> &given, int form, double p, double log_p, double log_q) {
        double weight = given[DIVERGENCES + form];
        if (weight < 0.0) return;
        Share share(form, given[BETA], p, log_p, log_q);
        values[form] += share.value;
        pull += weight * share.pull;
    }
};

/* The loss of each row and what its gradient is made from, by one warp, in f64 as the host computes it
 * (student-trainer/src/loss/rows.rs and divergence.rs): with q = softmax(z / tau), dD/dz_u = (pull_u - q_u sum_v pull_v) / tau, of
 * which an id in the bucket has its part by q.
 *
 * parts is what head_parts wrote and becomes the factors of head_gradient: the kept ids' own gradient, what the label gets more, the
 * largest as it was, own and tail; where rate is 1, own is all. terms [rows, TERMS + 2 width]: numbers of the row, p, ln p; places
 * that repeat the first id repeat its p. values [rows, VALUES], divergences times tau^2. */
extern "C" __global__ void head_factors(Buffer<float> parts, Buffer<double> terms, Buffer<double> values, i64 width, float rate) {
    i64 row = blockIdx.x;
    Buffer<float> seen = parts.part(row * (width + 4), width + 4);
    Buffer<double> given = terms.part(row * (TERMS + 2 * width), TERMS + 2 * width);
    Buffer<double> p = given.part(TERMS, width), log_p = given.part(TERMS + width, width);
    i64 ids = (i64)given[KEPT];
    double tau = given[TAU], largest = seen[width + 1], label = seen[width];
    /* Without a teacher the label alone is no part of the tail. */
    Buffer<float> kept = seen.part(0, max(ids, (i64)1));
    Split plain(kept, largest, seen[width + 2], 1.0), tempered(kept, largest, seen[width + 3], tau);
    auto log_q = [&](i64 i) { return seen[i] / tau - tempered.all; };

    Shares row_shares;
    double mass = 0.0;
    for (i64 i = lane(); i < ids; i += WARP) {
        for (int form = 0; form < FORMS; form++) row_shares.add(given, form, p[i], log_p[i], log_q(i));
        mass += p[i];
    }
    for (int form = 0; form < FORMS; form++) row_shares.values[form] = warp_sum(row_shares.values[form]);
    row_shares.pull = warp_sum(row_shares.pull);
    mass = warp_sum(mass);
    /* Mass that the bucket has at least under REVERSE and JSD: what f32 leaves of one minus a sum. */
    const double bucket_min = 1e-7;
    double of_bucket = 0.0;
    /* Rounding may leave a mass of 1 + 1e-7. With every id kept there is nothing to hold the rest. */
    if (ids > 0 && tempered.tail > -infinity()) {
        double before = row_shares.pull;
        for (int form = 0; form < FORMS; form++) {
            double rest = form != FORWARD ? fmax(1.0 - mass, bucket_min) : given[BUCKET] != 0.0 ? fmax(1.0 - mass, 0.0) : 0.0;
            row_shares.add(given, form, rest, log(rest), tempered.tail - tempered.all);
        }
        of_bucket = (row_shares.pull - before) * exp(largest / tau - tempered.tail);
    }

    double softmax = given[CE] + given[SOFTMAX];
    __syncwarp();
    for (i64 i = lane(); i < width; i += WARP) {
        double gradient = softmax * exp(seen[i] - plain.all);
        if (ids > 0) {
            Shares own;
            for (int form = 0; form < FORMS; form++) own.add(given, form, p[i], log_p[i], log_q(i));
            gradient += tau * (own.pull - exp(log_q(i)) * row_shares.pull);
        }
        seen[i] = (float)gradient;
    }
    if (lane() == 0) {
        double own = softmax * exp(largest - plain.all);
        double tail = ids > 0 ? tau * (of_bucket - row_shares.pull * exp(largest / tau - tempered.all)) : 0.0;
        seen[width] = (float)-given[CE];
        seen[width + 2] = (float)(rate == 1.0f ? own + tail : own);
        seen[width + 3] = (float)tail;
        Buffer<double> found = values.part(row * VALUES, VALUES);
        found[LOGSUMEXP] = plain.all;
        found[CROSS_ENTROPY] = plain.all - label;
        for (int form = 0; form < FORMS; form++) found[DIVERGED + form] = ids > 0 ? tau * tau * row_shares.values[form] : 0.0;
    }
}

/* Blocks along x cover blockDim.x * 4 logits each of the row along y. gradient [rows, stride], 0 past `vocab`:
 * own exp(z - largest) + tail exp((z - largest) * rate), or what `factors` says of a kept id, with more at the label.
 * places are those of head_parts, factors those of head_factors. */
extern "C" __global__ void head_gradient(Floats z, Buffer<u32> places, Buffer<float> factors, Floats gradient, i64 vocab, i64 stride,
                                         i64 width, float rate) {
    i64 row = blockIdx.y * stride, at = blockIdx.y * (width + 1), from = blockIdx.y * (width + 4);
    float largest = factors[from + width + 1], own = factors[from + width + 2], tail = factors[from + width + 3];
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

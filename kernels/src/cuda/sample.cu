/* The next token after rows of logits: drawn from what temperature, top-k, top-p and min-p leave, in that order.
 *
 * All of it is one question, asked up to four times: at which entry does a running sum over the row, in the order of scores or of
 * ids, pass a bound? The k-th likeliest, the border of top-p, the last of those that are as likely as that, and the token that is
 * drawn are its answers. An answer is found four bits at a time, from sums that every thread keeps for itself. Weights are whole
 * numbers, so that sums are exact and the same in any order.
 *
 * One block reads its row from the L2 cache, 8 KB of it on their way at a time, and that bounds it: at a latency of 300 clocks 27 bytes
 * a clock, 9 microseconds for 151,936 logits in f32 at 2.5 GHz. It reads 3.1 times where all is drawn from or the likeliest is taken,
 * 8 times more for top-k and 9 or 10 more for top-p: 28 to 190 microseconds, computed and not measured. Rows are on multiprocessors of
 * their own. */

enum { DIGIT_BITS = 4, DIGITS = 1 << DIGIT_BITS, AT_ONCE = 8 };

/* The number that `sort_key` made this of. */
__device__ inline float of_sort_key(u32 key) { return bits_float(key >> 31 ? key & 0x7fffffffu : ~key); }

/* `share`, a multiple of 2^-53, of a mass that is not 0: less than all of it. */
__device__ inline u64 share_of(i64 share, u64 mass) {
    return min((u64)((double)share / 9007199254740992.0 * (double)mass), mass - 1);
}

/* A row of logits, and what of it is kept. */
struct Scores {
    Floats z;
    i64 start, vocab;
    float temperature, largest, unit;
    /* The least score that is kept, and the last id that is kept of those with this one. */
    u32 least, last;

    __device__ bool keeps(u32 id, float score) const {
        u32 key = sort_key(score);
        return key > least || (key == least && id <= last);
    }
    /* e to the power of how far a score is below the largest, in parts of `unit`. */
    __device__ u64 mass(float score) const { return (u64)rintf(expf(score - largest) * unit); }

    /* Ids [from, to) with their scores, several of which are on their way at a time. */
    template <class Take> __device__ void each(i64 from, i64 to, const Take& take) const {
        for (i64 i = from + threadIdx.x; i < to; i += AT_ONCE * blockDim.x) {
            float score[AT_ONCE];
#pragma unroll
            for (int j = 0; j < AT_ONCE; j++) {
                i64 id = i + j * blockDim.x;
                score[j] = id < to ? z.load(start + id) / temperature : 0.0f;
            }
#pragma unroll
            for (int j = 0; j < AT_ONCE; j++) {
                i64 id = i + j * blockDim.x;
                if (id < to) take((u32)id, score[j]);
            }
        }
    }
};

/* Shared memory of a search. */
struct Sums {
    Shared<u64> own;    /* [DIGITS, threads] */
    Shared<u64> all;    /* [DIGITS] */
    Shared<u64> joined; /* [WARP] */
};

template <class Weight> __device__ inline u64 total_of(const Scores& row, Sums sums, const Weight& weight) {
    u64 total = 0;
    row.each(0, row.vocab, [&](u32 id, float score) { total += weight(id, score); });
    return block_sum(total, sums.joined);
}

/* A key with the weight of all lesser ones, and its own. */
struct Found {
    u32 key;
    u64 below, at;
};

/* The first key, ids or scores as they sort, up to which the weights are more than `bound`, which is less than all of them. */
template <bool BY_ID, class Weight> __device__ inline Found find(const Scores& row, u64 bound, Sums sums, const Weight& weight) {
    Found found = {0, 0, 0};
    int shift = BY_ID ? 0 : 32 - DIGIT_BITS;
    while (BY_ID && (i64)DIGITS << shift < row.vocab) shift += DIGIT_BITS;
    for (; shift >= 0; shift -= DIGIT_BITS) {
        for (int digit = 0; digit < DIGITS; digit++) sums.own[digit * blockDim.x + threadIdx.x] = 0;
        /* Keys that begin as what was found: of ids, these alone are read. */
        i64 span = (i64)DIGITS << shift;
        i64 from = BY_ID ? (i64)found.key : 0, to = BY_ID ? min(from + span, row.vocab) : row.vocab;
        row.each(from, to, [&](u32 id, float score) {
            u32 key = BY_ID ? id : sort_key(score);
            if (key >= found.key && key - found.key < span)
                sums.own[(key >> shift & (DIGITS - 1)) * blockDim.x + threadIdx.x] += weight(id, score);
        });
        __syncthreads();
        for (int digit = warp(); digit < DIGITS; digit += warps()) {
            u64 sum = 0;
            for (int i = lane(); i < blockDim.x; i += WARP) sum += sums.own[digit * blockDim.x + i];
            sum = warp_sum(sum);
            if (lane() == 0) sums.all[digit] = sum;
        }
        __syncthreads();
        int digit = 0;
        while (digit < DIGITS - 1 && found.below + sums.all[digit] <= bound) found.below += sums.all[digit++];
        found.key |= (u32)digit << shift;
        found.at = sums.all[digit];
    }
    return found;
}

/* Takes the least likely entries away whose mass together is at most a share of all; of equally likely ones those with larger ids. */
__device__ inline void remove_least(Scores& row, i64 share, Sums sums) {
    auto mass = [&](u32 id, float score) { return row.keeps(id, score) ? row.mass(score) : (u64)0; };
    u64 allowed = share_of(share, total_of(row, sums, mass));
    Found border = find<false>(row, allowed, sums, mass);
    u64 each = row.mass(of_sort_key(border.key));
    u64 gone = (allowed - border.below) / each, kept = border.at / each - gone;
    row.least = border.key;
    if (gone > 0) row.last = find<true>(row, kept - 1, sums, [&](u32, float score) { return (u64)(sort_key(score) == border.key); }).key;
}

/* One block a row of z [rows, stride], of which the first `vocab` entries are looked at: ids [rows] gets the token that a uniform of
 * uniforms [rows], a multiple of 2^-53 in [0, 1), draws, or 2^32 - 1 where an entry is no number or the largest score, a logit over the temperature, is not finite.
 * Drawn from are the top_k largest entries and those as large as the last of them (0: all); of these what is left when the
 * least likely are taken away that have `removed`, a multiple of 2^-53, of the mass; and of these such as are at most `-reach` below the
 * largest score. `unit` parts are the mass of the likeliest: all entries together have less than 2^63. Shared memory: Sample::shared of sample.rs. */
extern "C" __global__ void sample_rows(Floats z, Buffer<i64> uniforms, Buffer<u32> ids, i64 vocab, i64 stride, i64 top_k, i64 removed,
                                       float temperature, float reach, float unit) {
    Sums sums;
    sums.joined = shared<u64>(0, WARP);
    sums.all = shared<u64>(8 * WARP, DIGITS);
    sums.own = shared<u64>(8 * (WARP + DIGITS), (i64)DIGITS * blockDim.x);
    Shared<float> joined = shared<float>(8 * (WARP + DIGITS) + 8 * (i64)DIGITS * blockDim.x, WARP);
    Scores row = {z, blockIdx.x * stride, vocab, temperature, 0.0f, unit, 0, FULL};

    float largest = -infinity(), bad = 0.0f;
    row.each(0, vocab, [&](u32, float score) {
        largest = fmaxf(largest, score);
        if (score != score) bad = 1.0f;
    });
    largest = block_max(largest, joined);
    bad = block_max(bad, joined);
    u32 chosen = 0xffffffffu;
    if (bad == 0.0f && fabsf(largest) < infinity()) {
        row.largest = largest;
        if (0 < top_k && top_k < vocab)
            row.least = find<false>(row, vocab - top_k, sums, [](u32, float) { return (u64)1; }).key;
        if (removed > 0) remove_least(row, removed, sums);
        auto mass = [&](u32 id, float score) {
            return row.keeps(id, score) && score - largest >= reach ? row.mass(score) : (u64)0;
        };
        u64 target = share_of(uniforms[blockIdx.x], total_of(row, sums, mass));
        chosen = find<true>(row, target, sums, mass).key;
    }
    if (threadIdx.x == 0) ids[blockIdx.x] = chosen;
}

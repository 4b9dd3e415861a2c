/* What is kept of rows of logits: the largest entries and statistics, and draws.
 *
 * A row is cut into parts of 1024 logits, which a warp holds in its registers: 32 stripes of 32 lanes. What is known of a part
 * goes to shared memory, so that global memory is read once; the few logits that may be among the K largest, and the parts that
 * a draw falls into, are read a second time, most often from the cache. */

enum { STRIPES = 32, PART = STRIPES * WARP, GROUP_STRIPES = 4, GROUP = GROUP_STRIPES * WARP, GROUPS = PART / GROUP };
/* Entries that are chosen from in shared memory; where more reach the bound, the choice is made in global memory. */
enum { FEW = 1024, BINS = 256 };

/* Bits that sort as the numbers do; -0 and 0 are one. */
__device__ inline u32 sort_key(float value) {
    u32 bits = float_bits(value + 0.0f);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

/* A part's place in a row: entry j * WARP + lane() is this lane's j-th. */
struct Place {
    i64 row, start, size;
    __device__ Place(i64 row_start, i64 part, i64 vocab)
        : row(row_start), start(part * PART), size(min(vocab - part * PART, (i64)PART)) {}
    __device__ bool holds(int stripe) const { return stripe * WARP + lane() < size; }
    /* -inf past the end. */
    __device__ float load(Floats z, int stripe) const {
        return holds(stripe) ? z.load(row + start + stripe * WARP + lane()) : -infinity();
    }
};

/* Sums of this lane's 32 terms, eight after another and then by halves, and of the warp. */
struct Lanes {
    float sums[4];
    __device__ Lanes() : sums{0.0f, 0.0f, 0.0f, 0.0f} {}
    __device__ void add(int stripe, float value) { sums[stripe % 4] += value; }
    __device__ float total() const { return warp_sum((sums[0] + sums[1]) + (sums[2] + sums[3])); }
};

/* What is known of the parts of a row, in shared memory. */
struct Summary {
    Shared<float> largest; /* [parts] */
    Shared<float> mean;    /* [parts], above the largest */
    Shared<float> squares; /* [parts], of the distances from the mean */
    Shared<float> exps;    /* [temperatures, parts]: sums of exp((y - largest) / tau) */
    Shared<float> groups;  /* [parts * GROUPS]: largest entries of 128 */
    Shared<float> bad;     /* [parts]: 1 where an entry is not finite */
};

__device__ inline void summarise(Floats z, Place place, i64 part, i64 parts, Buffer<float> rates, Summary summary) {
    float v[STRIPES];
    bool bad = false;
    float largest = -infinity();
#pragma unroll
    for (int group = 0; group < GROUPS; group++) {
        float of_group = -infinity();
#pragma unroll
        for (int stripe = group * GROUP_STRIPES; stripe < (group + 1) * GROUP_STRIPES; stripe++) {
            v[stripe] = place.load(z, stripe);
            bad |= place.holds(stripe) && !(fabsf(v[stripe]) < infinity());
            of_group = fmaxf(of_group, v[stripe]);
        }
        of_group = warp_max(of_group);
        largest = fmaxf(largest, of_group);
        if (lane() == 0) summary.groups[part * GROUPS + group] = of_group;
    }
    Lanes sum, squares;
    for (int stripe = 0; stripe < STRIPES; stripe++) sum.add(stripe, place.holds(stripe) ? v[stripe] - largest : 0.0f);
    float mean = sum.total() / (float)place.size;
    for (int stripe = 0; stripe < STRIPES; stripe++) {
        float distance = place.holds(stripe) ? v[stripe] - largest - mean : 0.0f;
        squares.add(stripe, distance * distance);
    }
    float of_squares = squares.total();
    for (i64 t = 0; t < rates.len; t++) {
        float rate = rates[t];
        Lanes exps;
        for (int stripe = 0; stripe < STRIPES; stripe++) exps.add(stripe, expf((v[stripe] - largest) * rate));
        float total = exps.total();
        if (lane() == 0) summary.exps[t * parts + part] = total;
    }
    u32 votes = __ballot_sync(FULL, bad);
    if (lane() == 0) {
        summary.largest[part] = largest;
        summary.mean[part] = mean;
        summary.squares[part] = of_squares;
        summary.bad[part] = votes ? 1.0f : 0.0f;
    }
}

/* Shared memory of a choice among keys. */
struct Scratch {
    Shared<u32> bins;   /* [BINS] */
    Shared<u32> found;  /* [2] */
    Shared<u32> counts; /* [WARP] */
};

/* The k-th largest of the keys that `keys` has among `count`; k becomes its place among those equal to it, from 1 on. */
template <class Keys> __device__ inline u32 kth_largest(const Keys& keys, i64 count, u32& k, Scratch scratch) {
    u32 prefix = 0, mask = 0;
    for (int shift = 24; shift >= 0; shift -= 8) {
        for (int bin = threadIdx.x; bin < BINS; bin += blockDim.x) scratch.bins[bin] = 0;
        __syncthreads();
        for (i64 i = threadIdx.x; i < count; i += blockDim.x) {
            u32 key;
            if (keys.get(i, key) && (key & mask) == prefix) atomicAdd(&scratch.bins[key >> shift & (BINS - 1)], 1u);
        }
        __syncthreads();
        if (warp() == 0) {
            /* From the top: each lane has eight bins, and what is in the lanes before. */
            int top = BINS - 1 - 8 * lane();
            u32 mine = 0;
            for (int i = 0; i < 8; i++) mine += scratch.bins[top - i];
            u32 upto = mine;
            for (int step = 1; step < WARP; step *= 2) {
                u32 other = __shfl_up_sync(FULL, upto, step);
                if (lane() >= step) upto += other;
            }
            u32 before = upto - mine;
            if (before < k && k <= upto) {
                int bin = top;
                while (before + scratch.bins[bin] < k) before += scratch.bins[bin--];
                scratch.found[0] = bin;
                scratch.found[1] = k - before;
            }
        }
        __syncthreads();
        prefix |= scratch.found[0] << shift;
        mask |= (u32)(BINS - 1) << shift;
        k = scratch.found[1];
        __syncthreads();
    }
    return prefix;
}

/* How many threads before this one have the flag, and how many of all. */
__device__ inline u32 rank_of(bool flag, u32& total, Scratch scratch) {
    u32 votes = __ballot_sync(FULL, flag);
    __syncthreads();
    if (lane() == 0) scratch.counts[warp()] = __popc(votes);
    __syncthreads();
    u32 rank = __popc(votes & ((1u << lane()) - 1u));
    total = 0;
    for (int w = 0; w < warps(); w++) {
        if (w < warp()) rank += scratch.counts[w];
        total += scratch.counts[w];
    }
    return rank;
}

struct GroupKeys {
    Shared<float> groups;
    __device__ bool get(i64 i, u32& key) const {
        key = sort_key(groups[i]);
        return true;
    }
};

/* The entries of the groups that reach the bound; those of them that reach it themselves, where they are few. */
struct Candidates {
    Floats z;
    i64 row, vocab;
    Shared<u32> list, ids, keys;
    bool few;
    /* Ascending in i. */
    __device__ i64 id(i64 i) const { return few ? ids[i] : (i64)list[i / GROUP] * GROUP + i % GROUP; }
    __device__ bool get(i64 i, u32& key) const {
        if (few) {
            key = keys[i];
            return true;
        }
        i64 at = id(i);
        if (at >= vocab) return false;
        key = sort_key(z.load(row + at));
        return true;
    }
};

/* The k largest entries of a row, by ascending id; of equal ones the lower ids. */
__device__ inline void keep_largest(Candidates all, Shared<float> groups, u32 k, i64 out, Buffer<u32> out_ids, Buffer<float> out_values,
                                    Scratch scratch) {
    /* The k-th largest of the groups' largest bounds the k-th largest entry from below. */
    u32 bound = 0, listed = 0, total;
    u32 place = k;
    if (groups.len >= k) bound = kth_largest(GroupKeys{groups}, groups.len, place, scratch);
    for (i64 start = 0; start < groups.len; start += blockDim.x) {
        i64 i = start + threadIdx.x;
        bool reaches = i < groups.len && sort_key(groups[i]) >= bound;
        u32 rank = rank_of(reaches, total, scratch);
        if (reaches) all.list[listed + rank] = (u32)i;
        listed += total;
    }
    __syncthreads();
    i64 count = (i64)listed * GROUP, found = 0;
    all.few = false;
    for (i64 start = 0; start < count; start += blockDim.x) {
        i64 i = start + threadIdx.x;
        u32 key = 0;
        bool reaches = i < count && all.get(i, key) && key >= bound;
        i64 rank = found + rank_of(reaches, total, scratch);
        if (reaches && rank < FEW) {
            all.ids[rank] = (u32)all.id(i);
            all.keys[rank] = key;
        }
        found += total;
    }
    __syncthreads();
    if (found <= FEW) {
        all.few = true;
        count = found;
    }
    place = k;
    u32 last = kth_largest(all, count, place, scratch);
    u32 taken = 0, equal = 0;
    for (i64 start = 0; start < count; start += blockDim.x) {
        i64 i = start + threadIdx.x;
        u32 key = 0;
        bool there = i < count && all.get(i, key);
        bool same = there && key == last;
        u32 of_equal = equal + rank_of(same, total, scratch);
        equal += total;
        bool takes = there && (key > last || (same && of_equal < place));
        u32 rank = taken + rank_of(takes, total, scratch);
        if (takes) {
            i64 id = all.id(i);
            out_ids[out + rank] = (u32)id;
            out_values[out + rank] = all.z.load(all.row + id);
        }
        taken += total;
    }
}

/* One block a row of z [rows, stride], of which the first `vocab` entries are looked at. `rates` [T]: 1 / tau. statistics [rows, 3 + T]: the largest entry (NaN where one is not
 * finite), mean, standard deviation, sums of exp((y - largest) / tau). ids, values [rows, k]: the k largest, where k > 0.
 * masses [rows, parts]: sums of exp(y - largest) over 1024 entries, rates[plain] being 1; not written where plain < 0.
 * Shared memory: Selection::shared of select.rs. */
extern "C" __global__ void select_rows(Floats z, Buffer<float> rates, Buffer<float> statistics, Buffer<u32> ids, Buffer<float> values,
                                       Buffer<float> masses, i64 vocab, i64 stride, i64 k, i64 plain) {
    i64 row = blockIdx.x, parts = (vocab + PART - 1) / PART, temperatures = rates.len;
    i64 at = 0;
    Shared<float> joined = shared<float>(at, WARP);
    at += 4 * WARP;
    Scratch scratch;
    scratch.counts = shared<u32>(at, WARP);
    at += 4 * WARP;
    scratch.found = shared<u32>(at, 2);
    at += 4 * 2;
    scratch.bins = shared<u32>(at, BINS);
    at += 4 * BINS;
    Summary summary;
    summary.largest = shared<float>(at, parts);
    at += 4 * parts;
    summary.mean = shared<float>(at, parts);
    at += 4 * parts;
    summary.squares = shared<float>(at, parts);
    at += 4 * parts;
    summary.bad = shared<float>(at, parts);
    at += 4 * parts;
    summary.exps = shared<float>(at, temperatures * parts);
    at += 4 * temperatures * parts;
    summary.groups = shared<float>(at, parts * GROUPS);
    at += 4 * parts * GROUPS;
    Candidates all;
    all.z = z;
    all.row = row * stride;
    all.vocab = vocab;
    all.few = false;
    all.list = shared<u32>(at, parts * GROUPS);
    at += 4 * parts * GROUPS;
    all.ids = shared<u32>(at, FEW);
    at += 4 * FEW;
    all.keys = shared<u32>(at, FEW);

    for (i64 part = warp(); part < parts; part += warps())
        summarise(z, Place(row * stride, part, vocab), part, parts, rates, summary);
    __syncthreads();
    float largest = -infinity(), bad = 0.0f, mean = 0.0f, squares = 0.0f;
    for (i64 part = threadIdx.x; part < parts; part += blockDim.x) {
        largest = fmaxf(largest, summary.largest[part]);
        bad = fmaxf(bad, summary.bad[part]);
    }
    largest = block_max(largest, joined);
    bad = block_max(bad, joined);
    /* Everything is relative to the largest entry, so that rows far from zero lose nothing. */
    for (i64 part = threadIdx.x; part < parts; part += blockDim.x)
        mean += (float)min(vocab - part * PART, (i64)PART) * (summary.largest[part] - largest + summary.mean[part]);
    mean = block_sum(mean, joined) / (float)vocab;
    for (i64 part = threadIdx.x; part < parts; part += blockDim.x) {
        float distance = summary.largest[part] - largest + summary.mean[part] - mean;
        squares += summary.squares[part] + (float)min(vocab - part * PART, (i64)PART) * distance * distance;
    }
    squares = block_sum(squares, joined);
    i64 out = row * (3 + temperatures);
    if (threadIdx.x == 0) {
        statistics[out] = bad > 0.0f ? bits_float(0x7fc00000u) : largest;
        statistics[out + 1] = largest + mean;
        statistics[out + 2] = sqrtf(squares / (float)vocab);
    }
    for (i64 t = 0; t < temperatures; t++) {
        float exps = 0.0f;
        for (i64 part = threadIdx.x; part < parts; part += blockDim.x)
            exps += summary.exps[t * parts + part] * expf((summary.largest[part] - largest) * rates[t]);
        exps = block_sum(exps, joined);
        if (threadIdx.x == 0) statistics[out + 3 + t] = exps;
    }
    if (plain >= 0)
        for (i64 part = threadIdx.x; part < parts; part += blockDim.x)
            masses[row * parts + part] = summary.exps[plain * parts + part] * expf(summary.largest[part] - largest);
    if (k > 0 && bad > 0.0f) {
        for (i64 i = threadIdx.x; i < k; i += blockDim.x) {
            ids[row * k + i] = 0;
            values[row * k + i] = 0.0f;
        }
    } else if (k > 0) {
        keep_largest(all, summary.groups, (u32)k, row * k, ids, values, scratch);
    }
}

/* Exponentials of a part of a row, in a warp's registers: loops that are not unrolled would have `e` in local memory. */
struct Exps {
    float e[STRIPES];
    /* Zero past the end and at the ids of `head` [k], ascending. */
    __device__ Exps(Floats z, Place place, float largest, Buffer<u32> head, i64 head_start, i64 k) {
        i64 low = 0, high = k;
        while (low < high) {
            i64 middle = (low + high) / 2;
            if (head[head_start + middle] < place.start) low = middle + 1;
            else high = middle;
        }
        u32 without = 0;
        for (i64 i = low; i < k; i++) {
            i64 at = (i64)head[head_start + i] - place.start;
            if (at >= PART) break;
            if (at % WARP == lane()) without |= 1u << at / WARP;
        }
#pragma unroll
        for (int stripe = 0; stripe < STRIPES; stripe++)
            e[stripe] = without >> stripe & 1u ? 0.0f : expf(place.load(z, stripe) - largest);
    }
    __device__ double total() const {
        double sum = 0.0;
#pragma unroll
        for (int stripe = 0; stripe < STRIPES; stripe++) sum += e[stripe];
        for (int step = WARP / 2; step > 0; step /= 2) sum += __shfl_xor_sync(FULL, sum, step);
        return sum;
    }
    /* The first entry at which the running sum passes `target`, or the last that has any weight. */
    __device__ int entry_at(double target) const {
        double before = 0.0;
        int last = 0;
#pragma unroll
        for (int stripe = 0; stripe < STRIPES; stripe++) {
            double upto = e[stripe];
            for (int step = 1; step < WARP; step *= 2) {
                double other = __shfl_up_sync(FULL, upto, step);
                if (lane() >= step) upto += other;
            }
            u32 passed = __ballot_sync(FULL, before + upto > target), weighty = __ballot_sync(FULL, e[stripe] > 0.0f);
            if (weighty) last = stripe * WARP + WARP - 1 - __clz(weighty);
            if (passed) return stripe * WARP + __ffs(passed) - 1;
            before += __shfl_sync(FULL, upto, WARP - 1);
        }
        return last;
    }
};

/* One block a row: for each of its uniforms [rows, draws], ascending multiples of 2^-53 in [0, 1), an id from the softmax of the
 * row without the ids of `head` [rows, k], ascending, and its logit: ids, values [rows, draws]. `masses` and `statistics` are
 * those of select_rows, with `width` numbers a row. Where the head leaves too little to draw from, ids are 2^32 - 1.
 * The running sums over parts are f64, as the host's are. Shared memory: Selection::draw_shared of select.rs. */
extern "C" __global__ void draw_rows(Floats z, Buffer<float> statistics, Buffer<float> masses, Buffer<u32> head, Buffer<i64> uniforms,
                                     Buffer<u32> ids, Buffer<float> values, i64 vocab, i64 stride, i64 k, i64 draws, i64 width) {
    /* As in draws.rs of the server: what f32 logits can tell from rounding, and a part that is never drawn. */
    const double tail_mass_min = 1e-7, part_share_min = 1e-25;
    i64 row = blockIdx.x, parts = (vocab + PART - 1) / PART;
    Shared<double> before = shared<double>(0, parts + 2);
    Shared<double> mass = shared<double>(8 * (parts + 2), parts);
    Shared<u32> last = shared<u32>(8 * (2 * parts + 2), 1);
    float largest = statistics[row * width];
    bool finite = largest == largest;
    for (i64 part = threadIdx.x; part < parts; part += blockDim.x) mass[part] = masses[row * parts + part];
    __syncthreads();
    if (threadIdx.x == 0) {
        double sum = 0.0;
        for (i64 part = 0; part < parts; part++) sum += mass[part];
        before[parts + 1] = sum;
    }
    __syncthreads();
    /* Taking the head off a sum would cancel all its digits, so what is left of its parts is added up anew. */
    for (i64 i = warp(); i < k; i += warps()) {
        i64 part = head[row * k + i] / PART;
        if (i > 0 && head[row * k + i - 1] / PART == part) continue;
        double left = Exps(z, Place(row * stride, part, vocab), largest, head, row * k, k).total();
        if (lane() == 0) mass[part] = left;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        double total = 0.0, sum = 0.0;
        for (i64 part = 0; part < parts; part++) total += mass[part];
        u32 end = 0;
        for (i64 part = 0; part < parts; part++) {
            before[part] = sum;
            if (mass[part] > part_share_min * total) {
                sum += mass[part];
                end = (u32)part;
            } else {
                mass[part] = 0.0;
            }
        }
        last[0] = end;
        before[parts] = total;
    }
    __syncthreads();
    double total = before[parts];
    bool enough = finite && total > tail_mass_min * before[parts + 1];
    for (i64 i = warp(); i < draws; i += warps()) {
        if (!enough) {
            if (lane() == 0) {
                ids[row * draws + i] = 0xffffffffu;
                values[row * draws + i] = 0.0f;
            }
            continue;
        }
        double reached = (double)uniforms[row * draws + i] / 9007199254740992.0 * total;
        /* The last part takes what rounding of the running sum may leave over. */
        i64 part = 0;
        while (part < last[0] && !(mass[part] > 0.0 && reached < before[part] + mass[part])) part++;
        double fraction = (reached - before[part]) / mass[part];
        Exps exps(z, Place(row * stride, part, vocab), largest, head, row * k, k);
        double target = (fraction > 0.0 ? fraction : 0.0) * exps.total();
        i64 id = part * PART + exps.entry_at(target);
        if (lane() == 0) {
            ids[row * draws + i] = (u32)id;
            values[row * draws + i] = z.load(row * stride + id);
        }
    }
}

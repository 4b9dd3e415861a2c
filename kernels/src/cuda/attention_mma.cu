/* Causal attention on tensor cores: the same functions of the same arguments as in attention.cu, for inputs that are all bf16 or all
 * f16 and heads of whole sixteens. Products are of 16-bit floats, so P and dS are rounded to the inputs' type for the products that
 * they are part of; all sums, and the softmax, are in f32.
 *
 * A block has MMA_ROWS rows of one head: queries, or keys on their way back. Its four warps are two groups of two. The two of a group
 * have 16 rows each, and the groups share the columns between them: of every step's columns the first half is for group 0, and at the
 * end it adds what group 1 has. That makes enough warps for a card at 512 tokens. Rows of q, k, v and of the gradient lie in shared
 * memory as 16-bit floats, padded with zeros to DIM elements, and ldmatrix takes both kinds of operands from there: rows as they lie
 * for Q K^T, transposed for P V. */

enum { MMA_ROWS = 32, GROUPS = 2 };

__device__ inline int group() { return warp() / (MMA_ROWS / 16); }
/* The first row of this warp in its block. */
__device__ inline int row_of_warp() { return warp() % (MMA_ROWS / 16) * 16; }

/* Joins the values of the four lanes that have numbers of the same rows; each of them gets the same. */
template <class Op> __device__ inline float quad_join(float value) {
    value = Op::join(value, __shfl_xor_sync(FULL, value, 1));
    return Op::join(value, __shfl_xor_sync(FULL, value, 2));
}

/* Rows of one head in shared memory. They begin an odd number of Eights apart, so that the eight rows that ldmatrix reads at once lie in
 * different banks. */
template <int DIM> struct Rows {
    enum { EIGHTS = DIM / 8, STRIDE = EIGHTS + 1 };
    Shared<Eight> x;
    __device__ Rows(int before, int rows) : x(shared<Eight>(before * STRIDE * (i64)sizeof(Eight), rows * STRIDE)) {}
    /* COUNT rows from `first` on, zero from row `end` on. All loads of a thread are under way before it waits for the first. */
    template <int COUNT> __device__ void fill(Head head, i64 first, i64 end) const {
        Eight loaded[COUNT * EIGHTS / THREADS];
#pragma unroll
        for (int i = 0; i < COUNT * EIGHTS / THREADS; i++) {
            int row = (i * THREADS + threadIdx.x) / EIGHTS, eight = threadIdx.x % EIGHTS;
            bool there = first + row < end && eight < head.quads / 2;
            i64 at = there ? head.at(first + row, 2 * eight) : 0;
            check(at, head.x.len - 7);
            loaded[i] = there ? ((const Eight*)head.x.data)[at / 8] : Eight{0, 0, 0, 0};
        }
#pragma unroll
        for (int i = 0; i < COUNT * EIGHTS / THREADS; i++)
            x[(i * THREADS + threadIdx.x) / EIGHTS * STRIDE + threadIdx.x % EIGHTS] = loaded[i];
    }
    /* Operands of mma from the 16 rows and 16 elements that begin here: `a`; the rows as columns of b, of rows 0 to 7 in b[0] and b[1] and
     * of the others in b[2] and b[3]; the rows as rows of b, its first eight columns in b[0] and b[1] and the others in b[2] and b[3]. */
    __device__ void left(int row, int element, u32 (&a)[4]) const { load_matrices<false>(at(row + lane() % 16, element / 8 + lane() / 16), a); }
    __device__ void as_columns(int row, int element, u32 (&b)[4]) const {
        load_matrices<false>(at(row + lane() % 8 + lane() / 16 * 8, element / 8 + lane() / 8 % 2), b);
    }
    __device__ void as_rows(int row, int element, u32 (&b)[4]) const { load_matrices<true>(at(row + lane() % 16, element / 8 + lane() / 16), b); }

private:
    __device__ const Eight& at(int row, int eight) const { return x[row * STRIDE + eight]; }
};

/* A warp's 16 rows and 8 TILES columns of f32, as mma has them: this lane's, of tile n, are of columns 8 n + column_of_lane() and the next;
 * the first two of row lane() / 4, the others of the eighth row after it. */
template <int TILES> struct Sums {
    float x[TILES][4];
    __device__ void clear() {
#pragma unroll
        for (int n = 0; n < TILES; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) x[n][i] = 0.0f;
    }
};
__device__ inline int column_of_lane() { return lane() % 4 * 2; }

/* out = 16 rows of a . 8 TILES rows of b, over all elements of a head. */
template <int DTYPE, int DIM, int TILES> __device__ inline void dot_rows(Rows<DIM> a, int row, Rows<DIM> b, int column, Sums<TILES>& out) {
    out.clear();
#pragma unroll 2
    for (int element = 0; element < DIM; element += 16) {
        u32 left[4], right[4];
        a.left(row, element, left);
#pragma unroll
        for (int n = 0; n < TILES; n += 2) {
            b.as_columns(column + 8 * n, element, right);
            mma<DTYPE>(out.x[n], left, right[0], right[1]);
            mma<DTYPE>(out.x[n + 1], left, right[2], right[3]);
        }
    }
}

/* sum += the weights, rounded, times the 8 TILES rows of b that begin at `row`. */
template <int DTYPE, int DIM, int TILES>
__device__ inline void add_weighted(const Sums<TILES>& weight, Rows<DIM> b, int row, Sums<DIM / 8>& sum) {
#pragma unroll
    for (int n = 0; n < TILES; n += 2) {
        const float(&first)[4] = weight.x[n], (&second)[4] = weight.x[n + 1];
        u32 right[4], left[4] = {pack<DTYPE>(first[0], first[1]), pack<DTYPE>(first[2], first[3]), pack<DTYPE>(second[0], second[1]),
                                 pack<DTYPE>(second[2], second[3])};
#pragma unroll
        for (int element = 0; element < DIM; element += 16) {
            b.as_rows(row + 8 * n, element, right);
            mma<DTYPE>(sum.x[element / 8], left, right[0], right[1]);
            mma<DTYPE>(sum.x[element / 8 + 1], left, right[2], right[3]);
        }
    }
}

/* Multiplies each of this lane's two rows. */
template <int TILES> __device__ inline void scale_rows(Sums<TILES>& sum, const float (&by)[2]) {
#pragma unroll
    for (int n = 0; n < TILES; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) sum.x[n][i] *= by[i / 2];
}

/* Adds group 1's sums to group 0's, which alone has the result. What lay in shared memory is gone. */
template <int TILES> __device__ inline void join_groups(Sums<TILES>& sum) {
    Shared<float> scratch = shared<float>(0, MMA_ROWS * 8 * TILES);
    int at = row_of_warp() * 8 * TILES + lane();
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 4 * TILES; i++)
        if (group() == 1) scratch[at + i * WARP] = sum.x[i / 4][i % 4];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 4 * TILES; i++)
        if (group() == 0) sum.x[i / 4][i % 4] += scratch[at + i * WARP];
}

/* The two rows that a lane has numbers of, and the columns that each sees: none where there is no such row. */
struct Mine {
    i64 row[2], first[2], end[2];
    bool there[2];
    __device__ Mine(Buffer<u32> firsts, Buffer<u32> ends, i64 first_row, i64 rows) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            row[i] = first_row + row_of_warp() + lane() / 4 + 8 * i;
            there[i] = row[i] < rows;
            first[i] = there[i] ? firsts[row[i]] : 0;
            end[i] = there[i] ? ends[row[i]] : 0;
        }
    }
    __device__ bool sees(int i, i64 column) const { return first[i] <= column && column < end[i]; }
};

/* Writes `by` times the sums to this lane's rows of a head, which are of type TO. */
template <int TO, int TILES> __device__ inline void store_rows(Head to, const Mine& mine, i64 before, const Sums<TILES>& sum, const float (&by)[2]) {
#pragma unroll
    for (int n = 0; n < TILES; n++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            int element = 8 * n + column_of_lane();
            if (!mine.there[i] || element >= 4 * to.quads) continue;
            i64 at = to.at(before + mine.row[i], 0) + element;
            check(at + 1, to.x.len);
            float first = by[i] * sum.x[n][2 * i], second = by[i] * sum.x[n][2 * i + 1];
            if (TO == F32) ((float*)to.x.data)[at] = first, ((float*)to.x.data)[at + 1] = second;
            else ((u32*)to.x.data)[at / 2] = pack<TO>(first, second);
        }
}

template <int DTYPE, int DIM>
__device__ inline void mma_attention(Floats q, Floats k, Floats v, Buffer<u32> firsts, Buffer<u32> ends, Floats out, Buffer<float> logsumexp,
                                     i64 queries, int heads, int key_heads, int quads, float scale) {
    const int COLUMNS = 32, STEP = GROUPS * COLUMNS;
    int head = blockIdx.y, key_head = head / (heads / key_heads);
    /* The last rows see most: they begin first, so that no block begins late and works long. */
    i64 first = (i64)(gridDim.x - 1 - blockIdx.x) * MMA_ROWS;
    Rows<DIM> rows(0, MMA_ROWS), keys(MMA_ROWS, STEP), values(MMA_ROWS + STEP, STEP);
    rows.template fill<MMA_ROWS>(Head{q, heads, head, quads}, first, queries);
    Seen seen(firsts, ends, first, MMA_ROWS, queries);
    Mine mine(firsts, ends, first, queries);
    /* Of this lane's two rows: `total` over this lane's columns only. */
    float largest[2] = {-infinity(), -infinity()};
    Sums<1> total;
    total.clear();
    Sums<DIM / 8> sum;
    sum.clear();
    for (i64 start = seen.first; start < seen.end; start += STEP) {
        __syncthreads();
        keys.template fill<STEP>(Head{k, key_heads, key_head, quads}, start, seen.end);
        values.template fill<STEP>(Head{v, key_heads, key_head, quads}, start, seen.end);
        __syncthreads();
        int mine_of_step = group() * COLUMNS;
        i64 column = start + mine_of_step + column_of_lane();
        Sums<COLUMNS / 8> p;
        dot_rows<DTYPE>(rows, row_of_warp(), keys, mine_of_step, p);
        float before[2] = {largest[0], largest[1]}, shrink[2];
#pragma unroll
        for (int n = 0; n < COLUMNS / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                p.x[n][i] = mine.sees(i / 2, column + 8 * n + i % 2) ? scale * p.x[n][i] : -infinity();
                largest[i / 2] = fmaxf(largest[i / 2], p.x[n][i]);
            }
#pragma unroll
        for (int i = 0; i < 2; i++) {
            largest[i] = quad_join<Max>(largest[i]);
            /* Until something is seen, everything is zero; -inf - -inf would be NaN. */
            shrink[i] = before[i] == -infinity() ? 0.0f : expf(before[i] - largest[i]);
            total.x[0][i] *= shrink[i];
        }
#pragma unroll
        for (int n = 0; n < COLUMNS / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                p.x[n][i] = p.x[n][i] == -infinity() ? 0.0f : expf(p.x[n][i] - largest[i / 2]);
                total.x[0][i / 2] += p.x[n][i];
            }
        scale_rows(sum, shrink);
        add_weighted<DTYPE>(p, values, mine_of_step, sum);
    }
    /* Both groups' sums for the same maximum. */
    Shared<float> both = shared<float>(0, GROUPS * MMA_ROWS);
    int row = row_of_warp() + lane() / 4;
    __syncthreads();
    if (lane() % 4 == 0) both[group() * MMA_ROWS + row] = largest[0], both[group() * MMA_ROWS + row + 8] = largest[1];
    __syncthreads();
    float shrink[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        float common = fmaxf(both[row + 8 * i], both[MMA_ROWS + row + 8 * i]);
        shrink[i] = largest[i] == -infinity() ? 0.0f : expf(largest[i] - common);
        total.x[0][i] = shrink[i] * quad_join<Sum>(total.x[0][i]);
        largest[i] = common;
    }
    scale_rows(sum, shrink);
    join_groups(sum);
    join_groups(total);
    if (group() != 0) return;
    float over[2] = {1.0f / total.x[0][0], 1.0f / total.x[0][1]};
    store_rows<DTYPE>(Head{out, heads, head, quads}, mine, 0, sum, over);
#pragma unroll
    for (int i = 0; i < 2; i++)
        if (mine.there[i] && lane() % 4 == 0) logsumexp[head * queries + mine.row[i]] = largest[i] + logf(total.x[0][i]);
}

template <int DTYPE, int DIM>
__device__ inline void mma_attention_to_queries(Floats q, Floats k, Floats v, Floats grad, Buffer<u32> firsts, Buffer<u32> ends,
                                                Buffer<float> logsumexp, Buffer<float> along, Floats to_q, i64 queries, int heads, int key_heads,
                                                int quads, float scale) {
    const int COLUMNS = 16, STEP = GROUPS * COLUMNS;
    int head = blockIdx.y, key_head = head / (heads / key_heads);
    i64 first = (i64)(gridDim.x - 1 - blockIdx.x) * MMA_ROWS;
    Rows<DIM> rows(0, MMA_ROWS), grads(MMA_ROWS, MMA_ROWS), keys(2 * MMA_ROWS, STEP), values(2 * MMA_ROWS + STEP, STEP);
    rows.template fill<MMA_ROWS>(Head{q, heads, head, quads}, first, queries);
    grads.template fill<MMA_ROWS>(Head{grad, heads, head, quads}, first, queries);
    Seen seen(firsts, ends, first, MMA_ROWS, queries);
    Mine mine(firsts, ends, first, queries);
    float lse[2], offset[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        lse[i] = mine.there[i] ? logsumexp[head * queries + mine.row[i]] : 0.0f;
        offset[i] = mine.there[i] ? along[head * queries + mine.row[i]] : 0.0f;
    }
    Sums<DIM / 8> sum;
    sum.clear();
    for (i64 start = seen.first; start < seen.end; start += STEP) {
        __syncthreads();
        keys.template fill<STEP>(Head{k, key_heads, key_head, quads}, start, seen.end);
        values.template fill<STEP>(Head{v, key_heads, key_head, quads}, start, seen.end);
        __syncthreads();
        int mine_of_step = group() * COLUMNS;
        i64 column = start + mine_of_step + column_of_lane();
        Sums<COLUMNS / 8> p, ds;
        dot_rows<DTYPE>(rows, row_of_warp(), keys, mine_of_step, p);
        dot_rows<DTYPE>(grads, row_of_warp(), values, mine_of_step, ds);
#pragma unroll
        for (int n = 0; n < COLUMNS / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                bool visible = mine.sees(i / 2, column + 8 * n + i % 2);
                ds.x[n][i] = visible ? expf(scale * p.x[n][i] - lse[i / 2]) * (ds.x[n][i] - offset[i / 2]) : 0.0f;
            }
        add_weighted<DTYPE>(ds, keys, mine_of_step, sum);
    }
    join_groups(sum);
    if (group() == 0) store_rows<DTYPE>(Head{to_q, heads, head, quads}, mine, 0, sum, {scale, scale});
}

template <int DTYPE, int DIM>
__device__ inline void mma_attention_to_keys(Floats q, Floats k, Floats v, Floats grad, Buffer<u32> firsts, Buffer<u32> ends,
                                             Buffer<float> logsumexp, Buffer<float> along, Floats parts, i64 queries, i64 keys, int heads,
                                             int key_heads, int quads, float scale) {
    const int COLUMNS = 16, STEP = GROUPS * COLUMNS;
    int head = blockIdx.y, key_head = head / (heads / key_heads);
    /* The first keys are seen by most: they begin first as it is. */
    i64 first = (i64)blockIdx.x * MMA_ROWS;
    Rows<DIM> rows(0, MMA_ROWS), values(MMA_ROWS, MMA_ROWS), columns(2 * MMA_ROWS, STEP), grads(2 * MMA_ROWS + STEP, STEP);
    rows.template fill<MMA_ROWS>(Head{k, key_heads, key_head, quads}, first, keys);
    values.template fill<MMA_ROWS>(Head{v, key_heads, key_head, quads}, first, keys);
    Seen seen(firsts, ends, first, MMA_ROWS, keys);
    Mine mine(firsts, ends, first, keys);
    Sums<DIM / 8> to_key, to_value;
    to_key.clear();
    to_value.clear();
    for (i64 start = seen.first; start < seen.end; start += STEP) {
        __syncthreads();
        columns.template fill<STEP>(Head{q, heads, head, quads}, start, seen.end);
        grads.template fill<STEP>(Head{grad, heads, head, quads}, start, seen.end);
        __syncthreads();
        int mine_of_step = group() * COLUMNS;
        i64 column = start + mine_of_step + column_of_lane();
        Sums<COLUMNS / 8> p, ds;
        dot_rows<DTYPE>(rows, row_of_warp(), columns, mine_of_step, p);
        dot_rows<DTYPE>(values, row_of_warp(), grads, mine_of_step, ds);
#pragma unroll
        for (int n = 0; n < COLUMNS / 8; n++)
#pragma unroll
            for (int j = 0; j < 2; j++) {
                i64 query = column + 8 * n + j, at = query < seen.end ? head * queries + query : 0;
                float lse = logsumexp[at], offset = along[at];
#pragma unroll
                for (int i = j; i < 4; i += 2) {
                    p.x[n][i] = mine.sees(i / 2, query) ? expf(scale * p.x[n][i] - lse) : 0.0f;
                    ds.x[n][i] = p.x[n][i] * (ds.x[n][i] - offset);
                }
            }
        add_weighted<DTYPE>(p, grads, mine_of_step, to_value);
        add_weighted<DTYPE>(ds, columns, mine_of_step, to_key);
    }
    join_groups(to_key);
    join_groups(to_value);
    if (group() != 0) return;
    store_rows<F32>(Head{parts, heads, head, quads}, mine, 0, to_key, {1.0f, 1.0f});
    store_rows<F32>(Head{parts, heads, head, quads}, mine, keys, to_value, {1.0f, 1.0f});
}

/* The kernels for heads of at most DIM elements. */
#define MMA_KERNELS(DIM)                                                                                                                \
    extern "C" __global__ void attention_mma_##DIM(Floats q, Floats k, Floats v, Buffer<u32> firsts, Buffer<u32> ends, Floats out,      \
                                                   Buffer<float> logsumexp, i64 queries, int heads, int key_heads, int quads,           \
                                                   float scale) {                                                                       \
        if (q.dtype == BF16) mma_attention<BF16, DIM>(q, k, v, firsts, ends, out, logsumexp, queries, heads, key_heads, quads, scale);  \
        else mma_attention<F16, DIM>(q, k, v, firsts, ends, out, logsumexp, queries, heads, key_heads, quads, scale);                   \
    }                                                                                                                                   \
    extern "C" __global__ void attention_to_queries_mma_##DIM(                                                                          \
        Floats q, Floats k, Floats v, Floats grad, Buffer<u32> firsts, Buffer<u32> ends, Buffer<float> logsumexp, Buffer<float> along,  \
        Floats to_q, i64 queries, int heads, int key_heads, int quads, float scale) {                                                   \
        if (q.dtype == BF16)                                                                                                            \
            mma_attention_to_queries<BF16, DIM>(q, k, v, grad, firsts, ends, logsumexp, along, to_q, queries, heads, key_heads, quads,  \
                                                scale);                                                                                 \
        else                                                                                                                            \
            mma_attention_to_queries<F16, DIM>(q, k, v, grad, firsts, ends, logsumexp, along, to_q, queries, heads, key_heads, quads,   \
                                               scale);                                                                                  \
    }                                                                                                                                   \
    extern "C" __global__ void attention_to_keys_mma_##DIM(                                                                             \
        Floats q, Floats k, Floats v, Floats grad, Buffer<u32> firsts, Buffer<u32> ends, Buffer<float> logsumexp, Buffer<float> along,  \
        Floats parts, i64 queries, i64 keys, int heads, int key_heads, int quads, float scale) {                                        \
        if (q.dtype == BF16)                                                                                                            \
            mma_attention_to_keys<BF16, DIM>(q, k, v, grad, firsts, ends, logsumexp, along, parts, queries, keys, heads, key_heads,     \
                                             quads, scale);                                                                             \
        else                                                                                                                            \
            mma_attention_to_keys<F16, DIM>(q, k, v, grad, firsts, ends, logsumexp, along, parts, queries, keys, heads, key_heads,      \
                                            quads, scale);                                                                              \
    }
MMA_KERNELS(64)
MMA_KERNELS(128)

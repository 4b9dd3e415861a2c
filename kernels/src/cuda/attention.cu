/* Causal attention of grouped query heads, forward and backward, in tiles: probabilities exist for a warp's rows and 32 columns at
 * a time, and what is kept for the way back is one logsumexp for each head and query. After Dao, "FlashAttention-2" (2023).
 *
 * In every kernel a warp owns ROWS rows (queries, or keys on their way back), its lanes stand for the 32 columns of a tile, and a
 * sum over columns gives each lane four elements of a head. Rows lie in shared memory as they are, for all lanes read the same;
 * columns lie so that lanes that read their own meet no other's bank.
 *
 * What a query sees is a range of keys: [first[query], end[query]), both rising from query to query, and what sees a key is a range
 * of queries in the same way. Causality, packed documents, batches, earlier keys and sliding windows are such ranges.
 */

enum { WARPS = 4, THREADS = WARPS * WARP };

__device__ inline float dot(Four a, Four b, float sum) { return fmaf(a.x, b.x, fmaf(a.y, b.y, fmaf(a.z, b.z, fmaf(a.w, b.w, sum)))); }
__device__ inline Four add_scaled(Four sum, float by, Four v) {
    return Four{fmaf(by, v.x, sum.x), fmaf(by, v.y, sum.y), fmaf(by, v.z, sum.z), fmaf(by, v.w, sum.w)};
}

/* One head of rows in global memory: [rows, heads, head_dim]. */
struct Head {
    Floats x;
    int heads, head, quads;
    __device__ i64 at(i64 row, int quad) const { return ((row * heads + head) * quads + quad) * 4; }
    __device__ Four load(i64 row, int quad) const { return x.load_four(at(row, quad)); }
    __device__ void store(i64 row, int quad, Four v) const { x.store_four(at(row, quad), v); }
};

/* Rows of one head in shared memory. Quads of the same number in eight neighbouring rows lie in different banks where `apart`: the
 * low bits of the row are mixed into the quad's, which stays within its eight; where rows are no eights, the stride is odd. */
struct Tile {
    Shared<Four> x;
    int quads, stride, mixed;
    __device__ Tile(i64 offset, int rows, int quads, bool apart)
        : quads(quads), stride(apart && quads % 8 != 0 ? quads | 1 : quads), mixed(apart && quads % 8 == 0 ? 7 : 0) {
        x = shared<Four>(offset * (i64)sizeof(Four), rows * stride);
    }
    __device__ Four& at(int row, int quad) const { return x[row * stride + (quad ^ (row & mixed))]; }
    /* Rows `first` on, zero from row `end` on. Every thread of the block takes part, and waits before and after. */
    __device__ void fill(Head head, int rows, i64 first, i64 end) const {
        __syncthreads();
        for (int i = threadIdx.x; i < rows * quads; i += THREADS) {
            int row = i / quads, quad = i % quads;
            at(row, quad) = first + row < end ? head.load(first + row, quad) : Four{0.0f, 0.0f, 0.0f, 0.0f};
        }
        __syncthreads();
    }
};

/* out[r] = rows[r of this warp] . columns[this lane]. */
template <int ROWS> __device__ inline void products(Tile rows, Tile columns, float (&out)[ROWS]) {
#pragma unroll
    for (int r = 0; r < ROWS; r++) out[r] = 0.0f;
    for (int quad = 0; quad < rows.quads; quad++) {
        Four column = columns.at(lane(), quad);
#pragma unroll
        for (int r = 0; r < ROWS; r++) out[r] = dot(rows.at(warp() * ROWS + r, quad), column, out[r]);
    }
}

/* sum[r] += sum over columns of (the weight that the column's lane has for r) * columns[column], this lane's four elements. */
template <int ROWS> __device__ inline void add_columns(const float (&weight)[ROWS], Tile columns, Four (&sum)[ROWS]) {
    for (int column = 0; column < WARP; column++) {
        Four v = columns.at(column, min(lane(), columns.quads - 1));
#pragma unroll
        for (int r = 0; r < ROWS; r++) sum[r] = add_scaled(sum[r], __shfl_sync(FULL, weight[r], column), v);
    }
}

template <int ROWS> __device__ inline void clear(Four (&sum)[ROWS]) {
#pragma unroll
    for (int r = 0; r < ROWS; r++) sum[r] = Four{0.0f, 0.0f, 0.0f, 0.0f};
}

/* The part of `first` and `end` that rows [row, row + count) of `rows` see, whole. */
struct Seen {
    i64 first, end;
    __device__ Seen(Buffer<u32> firsts, Buffer<u32> ends, i64 row, i64 count, i64 rows)
        : first(firsts[row]), end(ends[min(row + count, rows) - 1]) {}
};

/* out = softmax(scale q k^T) v, and logsumexp [heads, queries]: a block for 32 queries of one head. */
extern "C" __global__ void attention(Floats q, Floats k, Floats v, Buffer<u32> firsts, Buffer<u32> ends, Floats out,
                                     Buffer<float> logsumexp, i64 queries, int heads, int key_heads, int quads, float scale) {
    const int ROWS = 8;
    int head = blockIdx.y, key_head = head / (heads / key_heads);
    i64 first = (i64)blockIdx.x * WARPS * ROWS, mine = first + warp() * ROWS;
    Tile rows(0, WARPS * ROWS, quads, false), columns(WARPS * ROWS * quads, WARP, quads, true);
    rows.fill(Head{q, heads, head, quads}, WARPS * ROWS, first, queries);
    Seen seen(firsts, ends, first, WARPS * ROWS, queries);
    float largest[ROWS], total[ROWS], p[ROWS];
    Four sum[ROWS];
    clear(sum);
#pragma unroll
    for (int r = 0; r < ROWS; r++) largest[r] = -infinity(), total[r] = 0.0f;
    for (i64 key = seen.first; key < seen.end; key += WARP) {
        columns.fill(Head{k, key_heads, key_head, quads}, WARP, key, seen.end);
        products(rows, columns, p);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            i64 query = mine + r, column = key + lane();
            bool visible = query < queries && firsts[query] <= column && column < ends[query];
            float score = visible ? scale * p[r] : -infinity(), before = largest[r];
            largest[r] = fmaxf(before, warp_max(score));
            /* Until something is seen, everything is zero; -inf - -inf would be NaN. */
            p[r] = visible ? expf(score - largest[r]) : 0.0f;
            float shrink = before == -infinity() ? 0.0f : expf(before - largest[r]);
            total[r] = total[r] * shrink + warp_sum(p[r]);
            sum[r] = Four{sum[r].x * shrink, sum[r].y * shrink, sum[r].z * shrink, sum[r].w * shrink};
        }
        columns.fill(Head{v, key_heads, key_head, quads}, WARP, key, seen.end);
        add_columns(p, columns, sum);
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        i64 query = mine + r;
        if (query >= queries) continue;
        float over = 1.0f / total[r];
        if (lane() < quads)
            Head{out, heads, head, quads}.store(query, lane(), Four{sum[r].x * over, sum[r].y * over, sum[r].z * over, sum[r].w * over});
        if (lane() == 0) logsumexp[head * queries + query] = largest[r] + logf(total[r]);
    }
}

/* along [heads, queries] = dL/dout . out, which the softmax's gradient subtracts: a warp for each query of one head. */
extern "C" __global__ void attention_along(Floats out, Floats grad, Buffer<float> along, i64 queries, int heads, int quads) {
    i64 query = global_index() / WARP;
    if (query >= queries) return;
    int head = blockIdx.y;
    Four zero = {0.0f, 0.0f, 0.0f, 0.0f};
    Four a = lane() < quads ? Head{out, heads, head, quads}.load(query, lane()) : zero;
    Four b = lane() < quads ? Head{grad, heads, head, quads}.load(query, lane()) : zero;
    float sum = warp_sum(dot(a, b, 0.0f));
    if (lane() == 0) along[head * queries + query] = sum;
}

/* With P = exp(scale q k^T - logsumexp) and dS = P (dout v^T - along): dQ = scale dS K, a block for 24 queries of one head. */
extern "C" __global__ void attention_to_queries(Floats q, Floats k, Floats v, Floats grad, Buffer<u32> firsts, Buffer<u32> ends,
                                                Buffer<float> logsumexp, Buffer<float> along, Floats to_q, i64 queries, int heads,
                                                int key_heads, int quads, float scale) {
    const int ROWS = 6;
    int head = blockIdx.y, key_head = head / (heads / key_heads);
    i64 first = (i64)blockIdx.x * WARPS * ROWS, mine = first + warp() * ROWS;
    Tile rows(0, WARPS * ROWS, quads, false), grads(WARPS * ROWS * quads, WARPS * ROWS, quads, false);
    Tile columns(2 * WARPS * ROWS * quads, WARP, quads, true);
    rows.fill(Head{q, heads, head, quads}, WARPS * ROWS, first, queries);
    grads.fill(Head{grad, heads, head, quads}, WARPS * ROWS, first, queries);
    Seen seen(firsts, ends, first, WARPS * ROWS, queries);
    float ds[ROWS], p[ROWS];
    Four sum[ROWS];
    clear(sum);
    for (i64 key = seen.first; key < seen.end; key += WARP) {
        columns.fill(Head{v, key_heads, key_head, quads}, WARP, key, seen.end);
        products(grads, columns, ds);
        columns.fill(Head{k, key_heads, key_head, quads}, WARP, key, seen.end);
        products(rows, columns, p);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            i64 query = mine + r, column = key + lane();
            bool visible = query < queries && firsts[query] <= column && column < ends[query];
            i64 at = visible ? head * queries + query : 0;
            ds[r] = visible ? expf(scale * p[r] - logsumexp[at]) * (ds[r] - along[at]) : 0.0f;
        }
        add_columns(ds, columns, sum);
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        Four v = add_scaled(Four{0.0f, 0.0f, 0.0f, 0.0f}, scale, sum[r]);
        if (mine + r < queries && lane() < quads) Head{to_q, heads, head, quads}.store(mine + r, lane(), v);
    }
}

/* What one query head adds to dV = P^T dout and to dK / scale = dS^T Q: a block for 24 keys, and parts f32 [2, keys, heads, head_dim], of k
 * and of v. `firsts` and `ends` are the queries that see a key. */
extern "C" __global__ void attention_to_keys(Floats q, Floats k, Floats v, Floats grad, Buffer<u32> firsts, Buffer<u32> ends,
                                             Buffer<float> logsumexp, Buffer<float> along, Floats parts, i64 queries, i64 keys, int heads,
                                             int key_heads, int quads, float scale) {
    const int ROWS = 6;
    int head = blockIdx.y, key_head = head / (heads / key_heads);
    i64 first = (i64)blockIdx.x * WARPS * ROWS, mine = first + warp() * ROWS;
    Tile rows(0, WARPS * ROWS, quads, false), values(WARPS * ROWS * quads, WARPS * ROWS, quads, false);
    Tile columns(2 * WARPS * ROWS * quads, WARP, quads, true);
    rows.fill(Head{k, key_heads, key_head, quads}, WARPS * ROWS, first, keys);
    values.fill(Head{v, key_heads, key_head, quads}, WARPS * ROWS, first, keys);
    Seen seen(firsts, ends, first, WARPS * ROWS, keys);
    float p[ROWS], ds[ROWS];
    Four to_key[ROWS], to_value[ROWS];
    clear(to_key);
    clear(to_value);
    for (i64 query = seen.first; query < seen.end; query += WARP) {
        columns.fill(Head{q, heads, head, quads}, WARP, query, seen.end);
        products(rows, columns, p);
        columns.fill(Head{grad, heads, head, quads}, WARP, query, seen.end);
        products(values, columns, ds);
        i64 column = query + lane(), at = column < seen.end ? head * queries + column : 0;
        float lse = logsumexp[at], offset = along[at];
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            i64 key = mine + r;
            bool visible = key < keys && firsts[key] <= column && column < ends[key];
            p[r] = visible ? expf(scale * p[r] - lse) : 0.0f;
            ds[r] = p[r] * (ds[r] - offset);
        }
        add_columns(p, columns, to_value);
        columns.fill(Head{q, heads, head, quads}, WARP, query, seen.end);
        add_columns(ds, columns, to_key);
    }
    Head to{parts, heads, head, quads};
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        if (mine + r >= keys || lane() >= quads) continue;
        to.store(mine + r, lane(), to_key[r]);
        to.store(keys + mine + r, lane(), to_value[r]);
    }
}

/* dK and dV [keys, key_heads, head_dim] of those parts: query heads that share a key head are added in their order. A thread for each
 * quad of both. */
extern "C" __global__ void attention_join(Floats parts, Floats to_k, Floats to_v, i64 keys, int heads, int key_heads, int quads, float scale) {
    i64 i = global_index(), count = keys * key_heads * quads;
    if (i >= 2 * count) return;
    bool of_value = i >= count;
    i64 quad = of_value ? i - count : i, row = i / quads / key_heads;
    int key_head = (int)(i / quads % key_heads), group = heads / key_heads;
    Four sum{0.0f, 0.0f, 0.0f, 0.0f};
    for (int head = key_head * group; head < (key_head + 1) * group; head++)
        sum = add_scaled(sum, of_value ? 1.0f : scale, Head{parts, heads, head, quads}.load(row, (int)(i % quads)));
    if (of_value) to_v.store_four(4 * quad, sum);
    else to_k.store_four(4 * quad, sum);
}

/* Transport problems whose matrices [n, m] are shared by the blocks of a launch. Two launches take turns: in one a block works on some
 * rows of a problem and adds up their part of its columns, in the other one block adds up those parts and decides what is next. What a
 * problem keeps from one launch to the next lies in its `work`. Nothing waits inside of a launch, so it does not matter how many blocks
 * a card runs at a time; and the parts are as many and are added up in the same order on every card. */

/* What a launch says of a problem that wants another. */
#define UNFINISHED -2.0

typedef Buffer<double> Vector;

/* Vectors one after another in a buffer. */
struct Vectors {
    Vector data;
    i64 at;
    __device__ Vector next(i64 len) {
        at += len;
        return data.part(at - len, len);
    }
};

/* Every element of an output is written, also where a problem ends before it has a use for it. */
__device__ inline void clear(Vector all) {
    for (i64 i = threadIdx.x; i < all.len; i += blockDim.x) all[i] = 0.0;
}

__device__ inline double share(double part, double whole) { return whole > 0.0 ? part / whole : 0.0; }
__device__ inline double total(double value) { return block_sum(value, shared<double>(0, WARP)); }
__device__ inline double largest(double value) { return block_max(value, shared<double>(0, WARP)); }

/* Numbers read from a problem's state, and written to it, one after the other. */
struct Restored {
    Vector state;
    int at;
    template <class T> __device__ void operator()(T& number) { number = (T)state[at++]; }
};
struct Kept {
    Vector state;
    int at;
    template <class T> __device__ void operator()(T number) { state[at++] = number; }
};

/* The rows of a problem's matrix that a block works on, a warp on each: blocks along y are the groups of rows. */
struct Group {
    Buffer<float> data;
    int m, first, end;

    __device__ Group(Buffer<float> data, int n, int m, int rows) : data(data), m(m) {
        first = (int)blockIdx.y * rows;
        end = min(first + rows, n);
    }

    __device__ float& operator()(int i, int j) const { return data[(i64)i * m + j]; }

    /* `row(i)` by one warp for each row; then every thread may read what was written of any of them. */
    template <class Row> __device__ void each_row(Row row) const {
        for (int i = first + warp(); i < end; i += warps()) row(i);
        __syncthreads();
    }

    /* A pass in R: `w_i = row(i, sum_j K_ij in(j))`, and this group's part of `sum_i w_i K_ij`. Shared memory: 8 bytes for each column and
     * each row of a group. */
    template <class R, class In, class Row> __device__ void pass(In in, Row row, Vector parts) const {
        Shared<R> x = shared<R>(0, m), w = shared<R>(8 * m, end - first);
        for (int j = threadIdx.x; j < m; j += blockDim.x) x[j] = (R)in(j);
        __syncthreads();
        each_row([&](int i) {
            R sum = 0;
            for (int j = lane(); j < m; j += WARP) sum += (R)(*this)(i, j) * x[j];
            sum = warp_sum(sum);
            if (lane() == 0) w[i - first] = (R)row(i, (double)sum);
        });
        columns<R>(parts, [&](int i, int j) { return w[i - first] * (R)(*this)(i, j); });
    }

    /* Where this group's part of a column vector lies among those of all groups. */
    __device__ Vector part(Vector parts) const { return parts.part((i64)blockIdx.y * m, m); }

    /* `parts_j = sum_i entry(i, j)` in R over these rows. */
    template <class R, class Entry> __device__ void columns(Vector parts, Entry entry) const {
        Vector own = part(parts);
        for (int j = threadIdx.x; j < m; j += blockDim.x) {
            R sum = 0;
            for (int i = first; i < end; i++) sum += (R)entry(i, j);
            own[j] = (double)sum;
        }
    }
};

/* The parts of a column over all groups, joined. */
template <class Op> __device__ inline double join_parts(Vector parts, int groups, int m, int j) {
    double joined = parts[j];
    for (int group = 1; group < groups; group++) joined = Op::join(joined, parts[(i64)group * m + j]);
    return joined;
}

/* Conjugate gradients for a matrix like diag(c) - T^T diag(1/r) T, preconditioned with 1/c, from x = 0, one product a launch. Vectors
 * are worked on by one thread for each column, always the same. */
struct ConjugateGradients {
    Vector x, residual, direction, image, c;
    int m, steps;
    double norm, stop;

    template <class F> __device__ void each_number(F& f) { f(steps), f(norm), f(stop); }

    /* The right-hand side is in residual. */
    __device__ void start(double tolerance) {
        for (int j = threadIdx.x; j < m; j += blockDim.x) {
            x[j] = 0.0;
            direction[j] = share(residual[j], c[j]);
        }
        norm = squares();
        stop = norm * tolerance * tolerance;
        steps = 0;
    }

    /* Whether a product with `direction` is wanted. */
    __device__ bool goes_on(int most) const { return norm > stop && steps < most; }

    /* With the product in image; whether another is wanted. */
    __device__ bool step(int most) {
        steps++;
        double curvature = 0.0;
        for (int j = threadIdx.x; j < m; j += blockDim.x) curvature += image[j] * direction[j];
        curvature = total(curvature);
        /* Rounding, or NaN: what there is so far is kept. */
        if (!(curvature > 0.0)) return false;
        double along = norm / curvature;
        for (int j = threadIdx.x; j < m; j += blockDim.x) {
            x[j] += along * direction[j];
            residual[j] -= along * image[j];
        }
        double next = squares(), back = next / norm;
        norm = next;
        for (int j = threadIdx.x; j < m; j += blockDim.x) direction[j] = share(residual[j], c[j]) + back * direction[j];
        return goes_on(most);
    }

    __device__ double squares() const {
        double sum = 0.0;
        for (int j = threadIdx.x; j < m; j += blockDim.x) sum += share(residual[j] * residual[j], c[j]);
        return total(sum);
    }
};


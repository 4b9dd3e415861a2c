/* A block's matrix of a transport problem: passes over it, and conjugate gradients that rest on them. */

enum { THREADS = 512, PART_ROWS = 128, SHARED_JOIN = 8 * WARP };

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

__device__ inline double share(double part, double whole) { return whole > 0.0 ? part / whole : 0.0; }
__device__ inline double total(double value) { return block_sum(value, shared<double>(0, WARP)); }
__device__ inline double largest(double value) { return block_max(value, shared<double>(0, WARP)); }

/* One problem's matrix [n, m], and the passes over it. */
struct Matrix {
    Buffer<float> data;
    int n, m;
    Vector parts;
    bool wide;

    __device__ float& operator()(int i, int j) const { return data[i * m + j]; }

    /* `value`, as a pass reads it. */
    __device__ double rounded(double value) const { return wide ? value : (double)(float)value; }

    /* `out_j = sum_i w_i entry(i, j)`, w in shared memory and seen by all. */
    template <class R, class Entry> __device__ void columns(Shared<R> w, Entry entry, Vector out) const {
        int tiles = (m + WARP - 1) / WARP, groups = max(1, warps() / tiles), count = (n + groups - 1) / groups;
        for (int t = warp(); t < tiles * groups; t += warps()) {
            int j = t % tiles * WARP + lane(), group = t / tiles, end = min((group + 1) * count, n);
            if (j >= m) continue;
            double sum = 0.0;
            for (int from = group * count; from < end; from += PART_ROWS) {
                R part = 0;
                for (int i = from; i < min(from + PART_ROWS, end); i++) part += w[i] * (R)entry(i, j);
                sum += (double)part;
            }
            parts[group * m + j] = sum;
        }
        __syncthreads();
        for (int j = threadIdx.x; j < m; j += blockDim.x) {
            double sum = 0.0;
            for (int group = 0; group < groups; group++) sum += parts[group * m + j];
            out[j] = sum;
        }
    }

    template <class R, class In, class Row> __device__ void pass_in(In in, Row row, Vector out) const {
        Shared<R> w = shared<R>(SHARED_JOIN, n), x = shared<R>(SHARED_JOIN + 8 * n, m);
        for (int j = threadIdx.x; j < m; j += blockDim.x) x[j] = (R)in(j);
        __syncthreads();
        for (int i = warp(); i < n; i += warps()) {
            R sum = 0;
            for (int j = lane(); j < m; j += WARP) sum += (R)(*this)(i, j) * x[j];
            sum = warp_sum(sum);
            if (lane() == 0) w[i] = (R)row(i, (double)sum);
        }
        __syncthreads();
        columns(w, *this, out);
    }

    /* `w_i = row(i, sum_j K_ij in(j))` and `out_j = sum_i w_i K_ij`. */
    template <class In, class Row> __device__ void pass(In in, Row row, Vector out) const {
        if (wide) pass_in<double>(in, row, out);
        else pass_in<float>(in, row, out);
    }
};

/* Conjugate gradients for a matrix like diag(c) - T^T diag(1/r) T, preconditioned with 1/c, from x = 0. */
struct ConjugateGradients {
    Vector x, residual, direction, image, c;
    int m, steps;
    double norm, stop;

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

    __device__ bool is_solved() const { return norm <= stop; }

    /* Up to so many steps in all; `product()` writes A direction to image. Whether more of them would change nothing. */
    template <class Product> __device__ bool run(int until, Product product) {
        while (norm > stop && steps < until) {
            product();
            steps++;
            double curvature = 0.0;
            for (int j = threadIdx.x; j < m; j += blockDim.x) curvature += image[j] * direction[j];
            curvature = total(curvature);
            /* Rounding, or NaN: what there is so far is kept. */
            if (!(curvature > 0.0)) return true;
            double along = norm / curvature;
            for (int j = threadIdx.x; j < m; j += blockDim.x) {
                x[j] += along * direction[j];
                residual[j] -= along * image[j];
            }
            double next = squares(), back = next / norm;
            norm = next;
            for (int j = threadIdx.x; j < m; j += blockDim.x) direction[j] = share(residual[j], c[j]) + back * direction[j];
        }
        return !(norm > stop);
    }

    __device__ void resume(Vector state) {
        steps = (int)state[1];
        norm = state[2];
        stop = state[3];
    }

    __device__ void pause(Vector state) const {
        state[1] = steps;
        state[2] = norm;
        state[3] = stop;
    }

    __device__ double squares() const {
        double sum = 0.0;
        for (int j = threadIdx.x; j < m; j += blockDim.x) sum += share(residual[j] * residual[j], c[j]);
        return total(sum);
    }
};


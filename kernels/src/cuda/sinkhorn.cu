/* Entropic optimal transport, a block for each problem: the plan T that minimises <T,C> + epsilon sum T ln T over row sums a and
 * column sums b, and the gradient of <T,C> through it.
 *
 * T = u K v with K = exp((f + g - C) / epsilon), which lies where the plan will be. Sinkhorn steps change the scalings u and v;
 * where they converge slowly, damped Newton steps on the dual take over, by conjugate gradients with passes over the same K; and
 * scalings that grow large move into the potentials f and g, and K is built anew. K is rounded to f32 from exponents in f64:
 * that moves a cost by epsilon * 2e-7 at most, whatever the size of C / epsilon. Passes add f32 products in parts that are
 * added in f64, until rounding is what stands in the way; then all in f64. Everything of which there is one number a row or
 * column is f64.
 *
 * Rows and columns of mass 0 are not there: their costs are not looked at. Vectors over columns are worked on by one thread for
 * each column, always the same; so are those over rows by one thread for each row, but where a warp has added up the row. */

/* Numbers that a problem keeps from one launch to the next. */
enum { STATE = 16 };
enum { STATUS, PASSES, NEWTON_STEPS, SCALED_ERROR, MARGINAL_ERROR, ENTROPIC_VALUE, TRANSPORT_COST, FACTS };

/* Scalings, the column sums of u K v with rows exact, and their L1 distance to b. */
struct Point {
    Vector u, v, mass;
    double error;
};

__device__ inline float exponential(double x) {
    if (x < -104.0) return 0.0f;
    float high = (float)x;
    return expf(high) * (1.0f + (float)(x - high));
}

/* How the steps of a launch ended; FAILED where an overflow stands in the way. */
enum Outcome { PAUSED, SOLVED, FAILED };

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

struct Solver {
    Matrix k;
    Buffer<float> cost;
    Vector a, b, f, g;
    Point now, trial;
    ConjugateGradients cg;
    double inverse, tolerance;
    int most, passes, newton_steps;
    /* Where the steps are. */
    double previous, best;
    int newton_from, patience, since_best;
    bool fill_first, pass_first, in_newton, swapped;

    /* Calls f with every number that outlives a launch. */
    template <class F> __device__ void each_number(F f) {
        f(now.error), f(k.wide), f(passes), f(newton_steps);
        f(previous), f(best), f(newton_from), f(patience), f(since_best);
        f(fill_first), f(pass_first), f(in_newton), f(swapped);
    }

    __device__ void start() {
        passes = newton_steps = newton_from = patience = since_best = 0;
        previous = best = now.error = infinity();
        fill_first = pass_first = true;
        in_newton = swapped = false;
    }

    __device__ void resume(Vector state) {
        each_number(Restored{state, 1});
        if (!swapped) return;
        double error = now.error;
        swap();
        now.error = error;
    }

    __device__ void pause(Vector state) {
        each_number(Kept{state, 1});
    }

    __device__ void swap() {
        Point left = now;
        now = trial;
        trial = left;
    }

    __device__ double cost_at(int i, int j) const { return cost[i * k.m + j]; }

    /* f and g, in units of epsilon, that leave every row and column of C - f - g >= 0 a zero. The first row with a cost that is not
     * finite, n where there is none. */
    __device__ int reduce() {
        double bad = 0.0;
        for (int i = warp(); i < k.n; i += warps()) {
            double least = infinity(), probe = 0.0;
            for (int j = lane(); j < k.m; j += WARP) {
                if (!(a[i] > 0.0 && b[j] > 0.0)) continue;
                least = fmin(least, cost_at(i, j));
                probe += 0.0 * cost_at(i, j);
            }
            least = -warp_join<Max>(-least);
            if (!(warp_sum(probe) == 0.0)) bad = fmax(bad, (double)(k.n - i));
            if (lane() == 0) f[i] = a[i] > 0.0 ? least * inverse : 0.0;
        }
        bad = largest(bad);
        for (int j = threadIdx.x; j < k.m; j += blockDim.x) {
            double least = infinity();
            for (int i = 0; i < k.n; i++)
                if (a[i] > 0.0) least = fmin(least, cost_at(i, j) * inverse - f[i]);
            g[j] = b[j] > 0.0 ? least : 0.0;
        }
        return k.n - (int)bad;
    }

    __device__ void fill() {
        __syncthreads();
        for (int i = warp(); i < k.n; i += warps())
            for (int j = lane(); j < k.m; j += WARP)
                k(i, j) = a[i] > 0.0 && b[j] > 0.0 ? exponential(f[i] + g[j] - cost_at(i, j) * inverse) : 0.0f;
        __syncthreads();
    }

    /* One pass at the point's v. */
    __device__ void evaluate(Point& p) {
        auto row = [&](int i, double sum) { return p.u[i] = k.rounded(a[i] > 0.0 ? a[i] / sum : 0.0); };
        k.pass([&](int j) { return p.v[j]; }, row, p.mass);
        passes++;
        double error = 0.0;
        for (int j = threadIdx.x; j < k.m; j += blockDim.x) {
            p.mass[j] *= k.rounded(p.v[j]);
            error += fabs(p.mass[j] - b[j]);
        }
        p.error = total(error);
    }

    /* No scalings. */
    __device__ void forget() {
        for (int j = threadIdx.x; j < k.m; j += blockDim.x) now.v[j] = b[j] > 0.0 ? 1.0 : 0.0;
    }

    /* Whether a scaling is beyond e^20. Entries that K has lost are then below e^-40 of their row. */
    __device__ bool outgrown() const {
        const double bound = 4.851651954097903e8;
        double outside = 0.0;
        for (int j = threadIdx.x; j < k.m; j += blockDim.x)
            if (b[j] > 0.0 && !(now.v[j] <= bound && now.v[j] >= 1.0 / bound)) outside = 1.0;
        for (int i = threadIdx.x; i < k.n; i += blockDim.x)
            if (a[i] > 0.0 && !(now.u[i] <= bound && now.u[i] >= 1.0 / bound)) outside = 1.0;
        return largest(outside) > 0.0;
    }

    /* Moves the scalings into the potentials. */
    __device__ void absorb() {
        for (int j = threadIdx.x; j < k.m; j += blockDim.x)
            if (b[j] > 0.0) g[j] += log(now.v[j]);
        for (int i = threadIdx.x; i < k.n; i += blockDim.x)
            if (a[i] > 0.0) f[i] += log(now.u[i]);
    }

    /* The dual up to a constant. */
    __device__ double dual(const Point& p) const {
        double sum = 0.0;
        for (int j = threadIdx.x; j < k.m; j += blockDim.x)
            if (b[j] > 0.0) sum += b[j] * log(p.v[j]);
        for (int i = threadIdx.x; i < k.n; i += blockDim.x)
            if (a[i] > 0.0) sum += a[i] * log(p.u[i]);
        return total(sum);
    }

    /* Solves (diag(mass) - T^T diag(1/a) T) delta = b - mass as exactly as the step deserves. */
    __device__ void newton_direction() {
        for (int j = threadIdx.x; j < k.m; j += blockDim.x) cg.residual[j] = b[j] - now.mass[j];
        cg.c = now.mass;
        cg.start(fmin(0.5 * sqrt(now.error), 0.1));
        cg.run(min(60, most - passes), [&] {
            auto in = [&](int j) { return cg.direction[j] * now.v[j]; };
            k.pass(in, [&](int i, double sum) { return share(now.u[i] * now.u[i], a[i]) * sum; }, cg.image);
            for (int j = threadIdx.x; j < k.m; j += blockDim.x) cg.image[j] = now.mass[j] * cg.direction[j] - now.v[j] * cg.image[j];
        });
        passes += cg.steps;
    }

    /* One damped step; false when no step was good enough. */
    __device__ bool newton_step() {
        newton_direction();
        double longest = 0.0, slope = 0.0;
        for (int j = threadIdx.x; j < k.m; j += blockDim.x) {
            longest = fmax(longest, fabs(cg.x[j]));
            slope += (b[j] - now.mass[j]) * cg.x[j];
        }
        longest = largest(longest);
        slope = total(slope);
        if (!(longest < infinity() && slope > 0.0)) return false;
        double before = dual(now), step = fmin(10.0 / longest, 1.0);
        for (int halvings = 0; halvings <= 6; halvings++, step *= 0.5) {
            for (int j = threadIdx.x; j < k.m; j += blockDim.x) trial.v[j] = now.v[j] * exp(step * cg.x[j]);
            evaluate(trial);
            bool near = now.error < 1e-2 && trial.error < 0.9 * now.error;
            if (trial.error < infinity() && (near || dual(trial) >= before + 1e-4 * step * slope)) {
                swap();
                swapped = !swapped;
                newton_steps++;
                return true;
            }
            if (passes >= most) return false;
        }
        return false;
    }

    /* To the tolerance or the limit, or to `pause_at` passes. Each thing is called in one place only: all of it becomes part of the
     * kernel where it is called. */
    __device__ Outcome run(int pause_at) {
        const int warm_up = 8;
        for (;;) {
            if (passes >= pause_at && passes < most) return PAUSED;
            if (fill_first) {
                fill();
                forget();
            }
            if (pass_first) evaluate(now);
            if (patience == 0) {
                patience = warm_up;
                newton_from = passes + warm_up;
            }
            if (!(now.error < infinity())) return FAILED;
            if (now.error <= tolerance || passes >= most) return SOLVED;
            since_best = now.error < 0.9 * best ? 0 : since_best + 1;
            best = fmin(best, now.error);
            if (in_newton && !k.wide && best < 1e-4 && since_best >= 3) {
                /* Rounding: from here on in f64, as if from the start. */
                k.wide = fill_first = pass_first = true;
                absorb();
                previous = best = infinity();
                patience = since_best = 0;
                in_newton = false;
                continue;
            }
            double rate = now.error / previous;
            previous = now.error;
            /* Whether Sinkhorn's rate leaves more than 24 steps to go. */
            bool slow = in_newton || rate >= 1.0 || log(tolerance / now.error) / log(rate) > 24.0;
            bool newton = slow && passes >= newton_from;
            in_newton = newton && newton_step();
            if (!in_newton) {
                if (newton) {
                    patience *= 2;
                    newton_from = passes + patience;
                }
                for (int j = threadIdx.x; j < k.m; j += blockDim.x)
                    if (b[j] > 0.0) now.v[j] *= b[j] / now.mass[j];
            }
            fill_first = outgrown();
            if (fill_first) absorb();
            pass_first = fill_first || !in_newton;
        }
    }

    /* The plan over K, its sums, and what follows from them. */
    __device__ void finish(Buffer<float> paid, Vector facts, Vector row_mass, Vector column_mass, double epsilon) {
        Shared<double> ones = shared<double>(SHARED_JOIN, k.n);
        absorb();
        double value = 0.0, transport_cost = 0.0, error = 0.0;
        for (int i = warp(); i < k.n; i += warps()) {
            double mass = 0.0;
            for (int j = lane(); j < k.m; j += WARP) {
                float t = (float)(now.u[i] * k(i, j) * k.rounded(now.v[j]));
                k(i, j) = t;
                mass += t;
                if (t > 0.0f) transport_cost += (double)t * paid[i * k.m + j];
            }
            mass = warp_sum(mass);
            if (lane() == 0) row_mass[i] = mass;
        }
        for (int i = threadIdx.x; i < k.n; i += blockDim.x) ones[i] = 1.0;
        __syncthreads();
        k.columns(ones, k, column_mass);
        for (int i = threadIdx.x; i < k.n; i += blockDim.x) {
            f[i] = a[i] > 0.0 ? f[i] * epsilon : -infinity();
            if (a[i] > 0.0) value += row_mass[i] * f[i];
        }
        for (int j = threadIdx.x; j < k.m; j += blockDim.x) {
            g[j] = b[j] > 0.0 ? g[j] * epsilon : -infinity();
            if (b[j] > 0.0) value += column_mass[j] * g[j];
            error += fabs(column_mass[j] - b[j]);
        }
        value = total(value);
        transport_cost = total(transport_cost);
        error = total(error);
        if (threadIdx.x == 0) {
            facts[MARGINAL_ERROR] = error;
            facts[ENTROPIC_VALUE] = value;
            facts[TRANSPORT_COST] = transport_cost;
        }
    }
};

/* cost and paid [blocks, n, m]: what the plan is for and what <T,C> is of; marginals [blocks, n + m]: a, b. plan [blocks, n, m].
 * found [blocks, FACTS + 2 (n + m)]: facts, f, g, the plan's row sums and column sums; where a mass is 0 the potential is -inf.
 * STATUS is 0, 1 + i where row i is the first with a cost that is not finite, or -1 where the plan is not; then the plan is 0 and
 * other facts say nothing. work [blocks, STATE + 2 n + 8 m + max(m, THREADS)]. Shared memory: SHARED_JOIN + 8 (n + m) bytes.
 *
 * A launch goes on where the one before has paused, the first (`launch` 0) from the start, and pauses after about `pause` passes: no
 * driver lets a display wait for thousands. Buffers are the same in all; results are those of one long launch to the bit. */
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    sinkhorn(Buffer<float> cost, Buffer<float> paid, Buffer<double> marginals, Buffer<float> plan, Buffer<double> found, Buffer<double> work,
             int n, int m, float epsilon, float tolerance, int most, int launch, int pause) {
    i64 block = blockIdx.x, at = block * n * m;
    Vectors given{marginals, block * (n + m)}, results{found, block * (FACTS + 2 * (n + m))};
    Vectors own{work, block * (STATE + 2 * n + 8 * m + max(m, (int)THREADS))};
    Vector state = own.next(STATE);
    if (launch > 0 && state[0] != 0.0) return;
    Solver s;
    s.cost = cost.part(at, n * m);
    s.a = given.next(n);
    s.b = given.next(m);
    Vector facts = results.next(FACTS);
    s.f = results.next(n);
    s.g = results.next(m);
    s.now.u = own.next(n);
    s.trial.u = own.next(n);
    s.now.v = own.next(m);
    s.trial.v = own.next(m);
    s.now.mass = own.next(m);
    s.trial.mass = own.next(m);
    s.cg.x = own.next(m);
    s.cg.residual = own.next(m);
    s.cg.direction = own.next(m);
    s.cg.image = own.next(m);
    s.cg.m = m;
    /* Below this f32 cannot tell whether the tolerance is met. */
    s.k = Matrix{plan.part(at, n * m), n, m, own.next(max(m, (int)THREADS)), tolerance < 5e-7f};
    s.inverse = 1.0 / (double)epsilon;
    s.tolerance = tolerance;
    s.most = most;

    int bad = n;
    if (launch == 0) {
        s.start();
        bad = s.reduce();
    } else {
        s.resume(state);
    }
    Outcome outcome = bad == n ? s.run(s.passes + pause) : FAILED;
    /* Nobody reads it any more in this launch. */
    __syncthreads();
    if (threadIdx.x == 0) {
        state[0] = outcome != PAUSED;
        s.pause(state);
        facts[STATUS] = bad < n ? (double)(bad + 1) : outcome == FAILED ? -1.0 : 0.0;
        facts[PASSES] = (double)s.passes;
        facts[NEWTON_STEPS] = (double)s.newton_steps;
        facts[SCALED_ERROR] = outcome == FAILED ? 0.0 : s.now.error;
    }
    if (outcome == SOLVED) {
        Vector row_mass = results.next(n), column_mass = results.next(m);
        s.finish(paid.part(at, n * m), facts, row_mass, column_mass, epsilon);
    }
    if (outcome == FAILED)
        for (int i = threadIdx.x; i < n * m; i += blockDim.x) s.k.data[i] = 0.0f;
}

/* The gradient of <T,C> through a plan T of `sinkhorn`:
 * T o (1 + (alpha + beta^T - C) / epsilon), [diag r, T; T^T, diag c] [alpha; beta] = [W 1; W^T 1], W = T o C.
 * cost, plan and gradient [blocks, n, m]; met [blocks]: 1 where the equations were solved, 0 where not, or not yet. work [blocks,
 * STATE + 3 n + 6 m + max(m, THREADS)]. Shared memory and launches as for `sinkhorn`; `most` and `pause` count steps of conjugate
 * gradients. */
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    sharp_gradient(Buffer<float> all_costs, Buffer<float> plan, Buffer<float> all_gradients, Buffer<double> met, Buffer<double> work, int n,
                   int m, float epsilon, int most, int launch, int pause) {
    i64 block = blockIdx.x, at = block * n * m;
    Vectors own{work, block * (STATE + 3 * n + 6 * m + max(m, (int)THREADS))};
    Vector state = own.next(STATE);
    if (launch > 0 && state[0] != 0.0) return;
    Vector row_mass = own.next(n), row_cost = own.next(n), alpha = own.next(n);
    ConjugateGradients cg;
    cg.x = own.next(m);
    cg.residual = own.next(m);
    cg.direction = own.next(m);
    cg.image = own.next(m);
    cg.c = own.next(m);
    cg.m = m;
    Vector column_cost = own.next(m);
    Matrix t{plan.part(at, n * m), n, m, own.next(max(m, (int)THREADS)), true};
    Buffer<float> cost = all_costs.part(at, n * m), gradient = all_gradients.part(at, n * m);
    if (launch == 0) {
        Shared<double> ones = shared<double>(SHARED_JOIN, n);
        for (int i = warp(); i < n; i += warps()) {
            double mass = 0.0, paid = 0.0;
            for (int j = lane(); j < m; j += WARP) {
                mass += t(i, j);
                if (t(i, j) > 0.0f) paid += (double)t(i, j) * cost[i * m + j];
            }
            mass = warp_sum(mass);
            paid = warp_sum(paid);
            if (lane() == 0) {
                row_mass[i] = mass;
                row_cost[i] = paid;
            }
        }
        for (int i = threadIdx.x; i < n; i += blockDim.x) ones[i] = 1.0;
        __syncthreads();
        t.columns(ones, t, cg.c);
        __syncthreads();
        t.columns(ones, [&](int i, int j) { return t(i, j) > 0.0f ? (double)t(i, j) * cost[i * m + j] : 0.0; }, column_cost);
        __syncthreads();
        t.pass([](int) { return 0.0; }, [&](int i, double) { return share(row_cost[i], row_mass[i]); }, cg.image);
        for (int j = threadIdx.x; j < m; j += blockDim.x) cg.residual[j] = column_cost[j] - cg.image[j];
        cg.start(1e-9);
    } else {
        cg.resume(state);
    }
    bool over = cg.run(min(most, cg.steps + pause), [&] {
        t.pass([&](int j) { return cg.direction[j]; }, [&](int i, double sum) { return share(sum, row_mass[i]); }, cg.image);
        for (int j = threadIdx.x; j < m; j += blockDim.x) cg.image[j] = cg.c[j] * cg.direction[j] - cg.image[j];
    });
    over = over || cg.steps >= most;
    __syncthreads();
    if (threadIdx.x == 0) {
        state[0] = over;
        cg.pause(state);
        met[block] = cg.is_solved() ? 1.0 : 0.0;
    }
    if (!over) return;
    auto row = [&](int i, double sum) { return alpha[i] = share(row_cost[i] - sum, row_mass[i]); };
    t.pass([&](int j) { return cg.x[j]; }, row, cg.image);
    double inverse = 1.0 / (double)epsilon;
    for (int i = warp(); i < n; i += warps())
        for (int j = lane(); j < m; j += WARP) {
            double moved = t(i, j) > 0.0f ? (alpha[i] + cg.x[j] - (double)cost[i * m + j]) * inverse : 0.0;
            gradient[i * m + j] = t(i, j) * (float)(1.0 + moved);
        }
}

/* Entropic optimal transport: the plan T that minimises <T,C> + epsilon sum T ln T over row sums a and column sums b.
 *
 * T = u K v with K = exp((f + g - C) / epsilon), which lies where the plan will be. Sinkhorn steps change the scalings u and v;
 * where they converge slowly, damped Newton steps on the dual take over, by conjugate gradients with passes over the same K; and
 * scalings that grow large move into the potentials f and g, and K is built anew. K is rounded to f32 from exponents in f64:
 * that moves a cost by epsilon * 2e-7 at most, whatever the size of C / epsilon. Passes add f32 products in parts that are
 * added in f64, until rounding is what stands in the way; then all in f64. Everything of which there is one number a row or
 * column is f64.
 *
 * Rows and columns of mass 0 are not there: their costs are not looked at. */

/* What the rows of a problem are next for: nothing more; the first potentials; a pass at the point where the solver is, in a direction
 * of conjugate gradients, at a trial point; the plan. */
enum Wish { NOTHING, REDUCE, POINT, DIRECTION, TRIAL, PLAN };
/* Numbers that a problem keeps from one launch to the next; rows look at the first of them. */
enum { WISH, FILL, WIDE, SWAPPED, STATE = 24 };
enum { STATUS, PASSES, NEWTON_STEPS, SCALED_ERROR, MARGINAL_ERROR, ENTROPIC_VALUE, TRANSPORT_COST, FACTS };
/* A problem's vectors, wherever they lie. */
struct Problem {
    int n, m, groups;
    double inverse;
    Vector a, b, facts, f, g, row_mass, column_mass, state, row_cost, x, residual, direction, image, parts;
    /* Of both points, one after the other. */
    Vector u, v, mass;
    Vector all_found, all_work;

    __device__ Problem(Buffer<double> marginals, Buffer<double> found, Buffer<double> work, int n, int m, int groups, float epsilon)
        : n(n), m(m), groups(groups), inverse(1.0 / (double)epsilon) {
        i64 block = blockIdx.x, found_len = FACTS + 2 * (n + m), work_len = STATE + 3 * n + (8 + groups) * m;
        all_found = found.part(block * found_len, found_len);
        all_work = work.part(block * work_len, work_len);
        Vectors given{marginals, block * (n + m)}, results{all_found, 0}, own{all_work, 0};
        a = given.next(n);
        b = given.next(m);
        facts = results.next(FACTS);
        f = results.next(n);
        g = results.next(m);
        row_mass = results.next(n);
        column_mass = results.next(m);
        state = own.next(STATE);
        u = own.next(2 * n);
        v = own.next(2 * m);
        mass = own.next(2 * m);
        row_cost = own.next(n);
        x = own.next(m);
        residual = own.next(m);
        direction = own.next(m);
        image = own.next(m);
        parts = own.next(groups * m);
    }

    /* What a vector of both points has of one. */
    __device__ static Vector of(Vector both, bool second) { return both.part(second ? both.len / 2 : 0, both.len / 2); }
};

/* `value`, as a pass reads it. */
__device__ inline double rounded(double value, bool wide) { return wide ? value : (double)(float)value; }

__device__ inline float exponential(double x) {
    if (x < -104.0) return 0.0f;
    float high = (float)x;
    return expf(high) * (1.0f + (float)(x - high));
}

/* cost and paid [blocks, n, m]: what the plan is for and what <T,C> is of; marginals [blocks, n + m]: a, b. plan [blocks, n, m].
 * found [blocks, FACTS + 2 (n + m)]: facts, f, g, the plan's row sums and column sums; where a mass is 0 the potential is -inf.
 * STATUS is 0, 1 + i where row i is the first with a cost that is not finite, -1 where the plan is not, then the plan is 0 and
 * other facts say nothing, or UNFINISHED. work [blocks, STATE + 3 n + (8 + groups) m]. Problems lie along x, and a block has so many
 * `rows` of one. Shared memory: 8 (m + rows) bytes. */
extern "C" __global__ void __launch_bounds__(256, 1)
    sinkhorn_rows(Buffer<float> cost, Buffer<float> paid, Buffer<double> marginals, Buffer<float> plan, Buffer<double> found, Buffer<double> work,
                  int n, int m, int rows, float epsilon) {
    Problem p(marginals, found, work, n, m, gridDim.y, epsilon);
    int wish = (int)p.state[WISH];
    bool fill = p.state[FILL] != 0.0, wide = p.state[WIDE] != 0.0, second = (p.state[SWAPPED] != 0.0) != (wish == TRIAL);
    i64 at = (i64)blockIdx.x * n * m;
    Buffer<float> costs = cost.part(at, (i64)n * m), pays = paid.part(at, (i64)n * m);
    Group k(plan.part(at, (i64)n * m), n, m, rows);
    Vector u = p.of(p.u, second), v = p.of(p.v, second);
    auto cost_at = [&](int i, int j) { return (double)costs[(i64)i * m + j]; };

    if (wish == REDUCE) {
        /* f and g, in units of epsilon, that leave every row and column of C - f - g >= 0 a zero. row_mass is 1 where a cost is not
         * finite. */
        k.each_row([&](int i) {
            double least = infinity(), probe = 0.0;
            for (int j = lane(); j < m; j += WARP) {
                if (!(p.a[i] > 0.0 && p.b[j] > 0.0)) continue;
                least = fmin(least, cost_at(i, j));
                probe += 0.0 * cost_at(i, j);
            }
            least = -warp_join<Max>(-least);
            probe = warp_sum(probe);
            if (lane() == 0) {
                p.f[i] = p.a[i] > 0.0 ? least * p.inverse : 0.0;
                p.row_mass[i] = probe == 0.0 ? 0.0 : 1.0;
            }
        });
        Vector own = k.part(p.parts);
        for (int j = threadIdx.x; j < m; j += blockDim.x) {
            double highest = -infinity();
            for (int i = k.first; i < k.end; i++)
                if (p.a[i] > 0.0) highest = fmax(highest, p.f[i] - cost_at(i, j) * p.inverse);
            own[j] = highest;
        }
    }
    if (wish == POINT && fill) {
        k.each_row([&](int i) {
            for (int j = lane(); j < m; j += WARP)
                k(i, j) = p.a[i] > 0.0 && p.b[j] > 0.0 ? exponential(p.f[i] + p.g[j] - cost_at(i, j) * p.inverse) : 0.0f;
        });
    }
    if (wish == POINT || wish == DIRECTION || wish == TRIAL) {
        auto in = [&](int j) { return wish == DIRECTION ? p.direction[j] * v[j] : v[j]; };
        auto row = [&](int i, double sum) {
            bool direction = wish == DIRECTION;
            double a = p.a[i], ratio = a > 0.0 ? (direction ? u[i] * u[i] : a) / (direction ? a : sum) : 0.0;
            if (direction) return ratio * sum;
            return u[i] = rounded(ratio, wide);
        };
        if (wide) k.pass<double>(in, row, p.parts);
        else k.pass<float>(in, row, p.parts);
    }
    if (wish == PLAN) {
        k.each_row([&](int i) {
            double mass = 0.0, transport_cost = 0.0;
            for (int j = lane(); j < m; j += WARP) {
                float t = (float)(u[i] * k(i, j) * rounded(v[j], wide));
                k(i, j) = t;
                mass += t;
                if (t > 0.0f) transport_cost += (double)t * pays[(i64)i * m + j];
            }
            mass = warp_sum(mass);
            transport_cost = warp_sum(transport_cost);
            if (lane() == 0) {
                p.row_mass[i] = mass;
                p.row_cost[i] = transport_cost;
            }
        });
        k.columns<double>(p.parts, k);
    }
}

/* Decides, with all that is known of a problem, what its rows are to do. Vectors over columns are worked on by one thread for each
 * column, always the same; so are those over rows by one thread for each row. */
struct Solver {
    Problem p;
    Buffer<float> plan;
    /* Scalings at the point where it is, and the column sums of u K v with rows exact. */
    Vector u, v, mass;
    ConjugateGradients cg;
    /* error is the L1 distance of mass to b. */
    double tolerance, status, error, previous, best, length, before, slope;
    int most, wish, passes, newton_steps, newton_from, patience, since_best, steps_most, halvings;
    bool fill, wide, swapped, in_newton;

    __device__ Solver(const Problem& p, Buffer<float> plan, float tolerance, int most) : p(p), plan(plan), tolerance(tolerance), most(most) {
        cg = ConjugateGradients{p.x, p.residual, p.direction, p.image, p.mass, p.m};
        fill = swapped = in_newton = false;
        /* Below this f32 cannot tell whether the tolerance is met. */
        wide = tolerance < 5e-7f;
        passes = newton_steps = newton_from = patience = since_best = steps_most = halvings = cg.steps = 0;
        previous = best = error = infinity();
        length = before = slope = cg.norm = cg.stop = 0.0;
        wish = REDUCE;
        status = UNFINISHED;
    }

    /* Calls f with every number that outlives a launch, in the order of WISH, FILL, WIDE and SWAPPED. */
    template <class F> __device__ void each_number(F f) {
        f(wish), f(fill), f(wide), f(swapped);
        f(passes), f(newton_steps), f(newton_from), f(patience), f(since_best), f(in_newton);
        f(previous), f(best), f(error), f(steps_most), f(halvings), f(length), f(before), f(slope);
        cg.each_number(f);
    }

    __device__ void find_point() {
        u = p.of(p.u, swapped);
        v = p.of(p.v, swapped);
        mass = p.of(p.mass, swapped);
        cg.c = mass;
    }

    /* What every group has added up, for each column. */
    __device__ void add_up(Vector out) {
        for (int j = threadIdx.x; j < p.m; j += blockDim.x) out[j] = join_parts<Sum>(p.parts, p.groups, p.m, j);
    }

    /* The first row with a cost that is not finite, n where there is none. */
    __device__ int reduce() {
        double bad = 0.0;
        for (int i = threadIdx.x; i < p.n; i += blockDim.x)
            if (p.row_mass[i] != 0.0) bad = fmax(bad, (double)(p.n - i));
        for (int j = threadIdx.x; j < p.m; j += blockDim.x)
            p.g[j] = p.b[j] > 0.0 ? -join_parts<Max>(p.parts, p.groups, p.m, j) : 0.0;
        return p.n - (int)largest(bad);
    }

    /* What a pass at a point has found: its column sums, and their error. */
    __device__ double measure(Vector at, Vector sums) {
        add_up(sums);
        double apart = 0.0;
        for (int j = threadIdx.x; j < p.m; j += blockDim.x) {
            sums[j] *= rounded(at[j], wide);
            apart += fabs(sums[j] - p.b[j]);
        }
        return total(apart);
    }

    /* No scalings. */
    __device__ void forget() {
        for (int j = threadIdx.x; j < p.m; j += blockDim.x) v[j] = p.b[j] > 0.0 ? 1.0 : 0.0;
    }

    /* Whether a scaling is beyond e^20. Entries that K has lost are then below e^-40 of their row. */
    __device__ bool outgrown() const {
        const double bound = 4.851651954097903e8;
        double outside = 0.0;
        for (int j = threadIdx.x; j < p.m; j += blockDim.x)
            if (p.b[j] > 0.0 && !(v[j] <= bound && v[j] >= 1.0 / bound)) outside = 1.0;
        for (int i = threadIdx.x; i < p.n; i += blockDim.x)
            if (p.a[i] > 0.0 && !(u[i] <= bound && u[i] >= 1.0 / bound)) outside = 1.0;
        return largest(outside) > 0.0;
    }

    /* Moves the scalings into the potentials. */
    __device__ void absorb() {
        for (int j = threadIdx.x; j < p.m; j += blockDim.x)
            if (p.b[j] > 0.0) p.g[j] += log(v[j]);
        for (int i = threadIdx.x; i < p.n; i += blockDim.x)
            if (p.a[i] > 0.0) p.f[i] += log(u[i]);
    }

    /* The dual up to a constant. */
    __device__ double dual(bool second) const {
        Vector rows = p.of(p.u, second), columns = p.of(p.v, second);
        double sum = 0.0;
        for (int j = threadIdx.x; j < p.m; j += blockDim.x)
            if (p.b[j] > 0.0) sum += p.b[j] * log(columns[j]);
        for (int i = threadIdx.x; i < p.n; i += blockDim.x)
            if (p.a[i] > 0.0) sum += p.a[i] * log(rows[i]);
        return total(sum);
    }

    /* Whether a trial point is good enough. */
    __device__ bool is_better(double of_trial) const {
        if (!(of_trial < infinity())) return false;
        return (error < 1e-2 && of_trial < 0.9 * error) || dual(!swapped) >= before + 1e-4 * length * slope;
    }

    /* From what a pass has found to the next that is wanted. Each thing is called in one place only: all of it becomes part of the kernel
     * where it is called. */
    __device__ void go_on() {
        const int warm_up = 8, halvings_most = 6;
        /* In the order in which one may lead to the next. */
        enum { JUDGED, AIMED, TRIED, GIVEN_UP, PLAIN } step = JUDGED;
        passes++;
        if (wish == DIRECTION) {
            add_up(cg.image);
            for (int j = threadIdx.x; j < p.m; j += blockDim.x) cg.image[j] = mass[j] * cg.direction[j] - v[j] * cg.image[j];
            if (cg.step(steps_most)) return;
            step = AIMED;
        } else {
            bool tried = wish == TRIAL, second = swapped != tried;
            double found = measure(p.of(p.v, second), p.of(p.mass, second));
            fill = false;
            if (!tried) {
                error = found;
            } else if (is_better(found)) {
                error = found;
                swapped = second;
                find_point();
                newton_steps++;
                in_newton = true;
                fill = outgrown();
            } else {
                halvings++;
                length *= 0.5;
                step = passes < most && halvings <= halvings_most ? TRIED : GIVEN_UP;
            }
        }
        if (step == JUDGED && !fill) {
            if (patience == 0) {
                patience = warm_up;
                newton_from = passes + warm_up;
            }
            if (!(error < infinity())) return fail(-1.0);
            if (error <= tolerance || passes >= most) {
                absorb();
                wish = PLAN;
                return;
            }
            since_best = error < 0.9 * best ? 0 : since_best + 1;
            best = fmin(best, error);
            double rate = error / previous;
            previous = error;
            /* Whether Sinkhorn's rate leaves more than 24 steps to go. */
            bool slow = in_newton || rate >= 1.0 || log(tolerance / error) / log(rate) > 24.0;
            step = PLAIN;
            if (in_newton && !wide && best < 1e-4 && since_best >= 3) {
                /* Rounding: from here on in f64, as if from the start. */
                wide = fill = true;
                previous = best = infinity();
                patience = since_best = 0;
            } else if (slow && passes >= newton_from) {
                /* Solves (diag(mass) - T^T diag(1/a) T) delta = b - mass as exactly as the step deserves. */
                for (int j = threadIdx.x; j < p.m; j += blockDim.x) cg.residual[j] = p.b[j] - mass[j];
                cg.start(fmin(0.5 * sqrt(error), 0.1));
                steps_most = min(60, most - passes);
                wish = DIRECTION;
                if (cg.goes_on(steps_most)) return;
                step = AIMED;
            }
        }
        if (step == AIMED) {
            double longest = 0.0;
            slope = 0.0;
            for (int j = threadIdx.x; j < p.m; j += blockDim.x) {
                longest = fmax(longest, fabs(cg.x[j]));
                slope += (p.b[j] - mass[j]) * cg.x[j];
            }
            longest = largest(longest);
            slope = total(slope);
            halvings = 0;
            length = fmin(10.0 / longest, 1.0);
            before = dual(swapped);
            step = longest < infinity() && slope > 0.0 ? TRIED : GIVEN_UP;
        }
        if (step == TRIED) {
            Vector trial = p.of(p.v, !swapped);
            for (int j = threadIdx.x; j < p.m; j += blockDim.x) trial[j] = v[j] * exp(length * cg.x[j]);
            wish = TRIAL;
            return;
        }
        if (step == GIVEN_UP) {
            patience *= 2;
            newton_from = passes + patience;
        }
        if (step != JUDGED) {
            in_newton = false;
            if (!fill) {
                for (int j = threadIdx.x; j < p.m; j += blockDim.x)
                    if (p.b[j] > 0.0) v[j] *= p.b[j] / mass[j];
                fill = outgrown();
            }
        }
        if (fill) {
            absorb();
            forget();
        }
        wish = POINT;
    }

    __device__ void fail(double how) {
        for (i64 i = threadIdx.x; i < plan.len; i += blockDim.x) plan[i] = 0.0f;
        status = how;
        error = 0.0;
        wish = NOTHING;
    }

    /* What follows from the plan. */
    __device__ void finish(double epsilon) {
        double value = 0.0, transport_cost = 0.0, apart = 0.0;
        add_up(p.column_mass);
        for (int i = threadIdx.x; i < p.n; i += blockDim.x) {
            p.f[i] = p.a[i] > 0.0 ? p.f[i] * epsilon : -infinity();
            if (p.a[i] > 0.0) value += p.row_mass[i] * p.f[i];
            transport_cost += p.row_cost[i];
        }
        for (int j = threadIdx.x; j < p.m; j += blockDim.x) {
            p.g[j] = p.b[j] > 0.0 ? p.g[j] * epsilon : -infinity();
            if (p.b[j] > 0.0) value += p.column_mass[j] * p.g[j];
            apart += fabs(p.column_mass[j] - p.b[j]);
        }
        value = total(value);
        transport_cost = total(transport_cost);
        apart = total(apart);
        status = 0.0;
        if (threadIdx.x == 0) {
            p.facts[MARGINAL_ERROR] = apart;
            p.facts[ENTROPIC_VALUE] = value;
            p.facts[TRANSPORT_COST] = transport_cost;
        }
        wish = NOTHING;
    }
};

/* Between two launches of sinkhorn_rows, whose buffers it shares, a block for each problem; `first` before all of them. */
extern "C" __global__ void __launch_bounds__(512, 1)
    sinkhorn_step(Buffer<double> marginals, Buffer<float> plan, Buffer<double> found, Buffer<double> work, int n, int m, int groups, float epsilon,
                  float tolerance, int most, int first) {
    Problem p(marginals, found, work, n, m, groups, epsilon);
    Solver s(p, plan.part((i64)blockIdx.x * n * m, (i64)n * m), tolerance, most);
    if (first) {
        clear(p.all_found);
        clear(p.all_work);
    } else {
        s.each_number(Restored{p.state, 0});
        if (s.wish == NOTHING) return;
        s.find_point();
        if (s.wish == REDUCE) {
            int bad = s.reduce();
            s.forget();
            s.fill = true;
            s.wish = POINT;
            if (bad < n) s.fail(1.0 + bad);
        } else if (s.wish == PLAN) {
            s.finish(epsilon);
        } else {
            s.go_on();
        }
    }
    /* Nobody reads it any more in this launch. */
    __syncthreads();
    if (threadIdx.x == 0) {
        s.each_number(Kept{p.state, 0});
        p.facts[STATUS] = s.status;
        p.facts[PASSES] = (double)s.passes;
        p.facts[NEWTON_STEPS] = (double)s.newton_steps;
        p.facts[SCALED_ERROR] = s.error;
    }
}

/* The gradient of <T,C> through a plan T of sinkhorn.cu. */

/* What the rows of a problem are next for: nothing more; the right-hand side; a product for conjugate gradients; the gradient. */
enum SharpWish { OVER, SIDES, PRODUCT, GRADIENT };
enum { SHARP_STATE = 4 };

struct SharpProblem {
    int n, m, groups;
    Vector all, state, row_mass, row_cost, parts, side_parts;
    ConjugateGradients cg;

    /* work [blocks, SHARP_STATE + 2 n + (5 + 2 groups) m]. */
    __device__ SharpProblem(Buffer<double> work, int n, int m, int groups) : n(n), m(m), groups(groups) {
        i64 len = SHARP_STATE + 2 * n + (5 + 2 * groups) * m;
        all = work.part(blockIdx.x * len, len);
        Vectors own{all, 0};
        state = own.next(SHARP_STATE);
        row_mass = own.next(n);
        row_cost = own.next(n);
        cg.x = own.next(m);
        cg.residual = own.next(m);
        cg.direction = own.next(m);
        cg.image = own.next(m);
        cg.c = own.next(m);
        cg.m = m;
        parts = own.next(groups * m);
        side_parts = own.next(groups * m);
    }
};

/* The gradient:
 * T o (1 + (alpha + beta^T - C) / epsilon), [diag r, T; T^T, diag c] [alpha; beta] = [W 1; W^T 1], W = T o C.
 * cost, plan and gradient [blocks, n, m]; work as SharpProblem has it. Launches and shared memory as for sinkhorn_rows. */
extern "C" __global__ void __launch_bounds__(256, 1)
    sharp_rows(Buffer<float> cost, Buffer<float> plan, Buffer<float> gradient, Buffer<double> work, int n, int m, int rows, float epsilon) {
    SharpProblem p(work, n, m, gridDim.y);
    int wish = (int)p.state[WISH];
    i64 at = (i64)blockIdx.x * n * m;
    Group t(plan.part(at, (i64)n * m), n, m, rows);
    Buffer<float> costs = cost.part(at, (i64)n * m), out = gradient.part(at, (i64)n * m);
    auto cost_at = [&](int i, int j) { return (double)costs[(i64)i * m + j]; };
    if (wish == SIDES) {
        t.each_row([&](int i) {
            double mass = 0.0, paid = 0.0;
            for (int j = lane(); j < m; j += WARP) {
                mass += t(i, j);
                if (t(i, j) > 0.0f) paid += t(i, j) * cost_at(i, j);
                out[(i64)i * m + j] = 0.0f;
            }
            mass = warp_sum(mass);
            paid = warp_sum(paid);
            if (lane() == 0) {
                p.row_mass[i] = mass;
                p.row_cost[i] = paid;
            }
        });
        t.columns<double>(p.parts, t);
        t.columns<double>(p.side_parts, [&](int i, int j) { return t(i, j) > 0.0f ? t(i, j) * (cost_at(i, j) - share(p.row_cost[i], p.row_mass[i])) : 0.0; });
    }
    if (wish == PRODUCT) {
        auto row = [&](int i, double sum) { return share(sum, p.row_mass[i]); };
        t.pass<double>([&](int j) { return p.cg.direction[j]; }, row, p.parts);
    }
    if (wish == GRADIENT) {
        double inverse = 1.0 / (double)epsilon;
        t.each_row([&](int i) {
            double sum = 0.0;
            for (int j = lane(); j < m; j += WARP) sum += t(i, j) * p.cg.x[j];
            double alpha = share(p.row_cost[i] - warp_sum(sum), p.row_mass[i]);
            for (int j = lane(); j < m; j += WARP) {
                double moved = t(i, j) > 0.0f ? (alpha + p.cg.x[j] - cost_at(i, j)) * inverse : 0.0;
                out[(i64)i * m + j] = t(i, j) * (float)(1.0 + moved);
            }
        });
    }
}

/* Between two launches of sharp_rows, a block for each problem; `first` before all of them. met [blocks]: 1 where the equations were
 * solved, 0 where not, UNFINISHED before. At most so many steps of conjugate gradients. */
extern "C" __global__ void __launch_bounds__(512, 1)
    sharp_step(Buffer<double> met, Buffer<double> work, int n, int m, int groups, int most, int first) {
    SharpProblem p(work, n, m, groups);
    ConjugateGradients& cg = p.cg;
    int wish = SIDES;
    double found = UNFINISHED;
    cg.steps = 0;
    cg.norm = cg.stop = 0.0;
    if (first) {
        clear(p.all);
    } else {
        Restored restored{p.state, 0};
        restored(wish);
        if (wish == OVER) return;
        cg.each_number(restored);
        bool more = false;
        if (wish == SIDES) {
            for (int j = threadIdx.x; j < m; j += blockDim.x) {
                cg.c[j] = join_parts<Sum>(p.parts, groups, m, j);
                cg.residual[j] = join_parts<Sum>(p.side_parts, groups, m, j);
            }
            cg.start(1e-9);
            more = cg.goes_on(most);
        } else if (wish == PRODUCT) {
            for (int j = threadIdx.x; j < m; j += blockDim.x)
                cg.image[j] = cg.c[j] * cg.direction[j] - join_parts<Sum>(p.parts, groups, m, j);
            more = cg.step(most);
        }
        if (wish == GRADIENT) found = cg.norm <= cg.stop ? 1.0 : 0.0;
        wish = wish == GRADIENT ? OVER : more ? PRODUCT : GRADIENT;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        Kept kept{p.state, 0};
        kept(wish);
        cg.each_number(kept);
        met[blockIdx.x] = found;
    }
}

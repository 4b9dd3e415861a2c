/* Matrix products on the CPU: blocks of both inputs are copied as f32 into the order in which a 16 x 6 tile reads them. */
#include "gemm.hpp"

#include <algorithm>
#include <cstring>
#include <vector>

using card::Binary16;
using card::Brain16;

namespace gemm {
/* A tile's accumulators fill twelve 32-byte registers; the blocks fit the caches. */
static const size_t TILE_M = 16, TILE_N = 6, BLOCK_M = 128, BLOCK_N = 960, BLOCK_K = 256;
typedef float Eight __attribute__((vector_size(32), aligned(4), may_alias));

static float round_input(float value, Rounding rounding) {
    if (rounding == TO_F16) return Binary16::wide(Binary16::of(value));
    if (rounding == TO_BF16) return Brain16::wide(Brain16::of(value));
    /* Ten bits of mantissa, to the nearest. */
    uint32_t bits = card::float_bits(value);
    return (bits & 0x7f800000) == 0x7f800000 ? value : card::bits_float((bits + 0xfff + (bits >> 13 & 1)) & ~0x1fffu);
}

/* `count` elements from `at`, `step` apart, to places `gap` apart. */
static void load(const Matrix& matrix, size_t at, size_t step, size_t count, float* to, size_t gap, Rounding rounding) {
    if (matrix.type == F32) {
        const float* from = static_cast<const float*>(matrix.at) + at;
        for (size_t i = 0; i < count; i++) to[i * gap] = from[i * step];
    } else {
        const uint16_t* from = static_cast<const uint16_t*>(matrix.at) + at;
        if (matrix.type == BF16) {
            for (size_t i = 0; i < count; i++) to[i * gap] = Brain16::wide(from[i * step]);
        } else {
            for (size_t i = 0; i < count; i++) to[i * gap] = Binary16::wide(from[i * step]);
        }
    }
    if (rounding == NONE) return;
    for (size_t i = 0; i < count; i++) to[i * gap] = round_input(to[i * gap], rounding);
}

/* Rows [row, row + rows) and columns [column, column + columns) of op(matrix), as panels of `tile` rows: for each column the rows of
 * a panel side by side, zeros below the last. */
static void pack(const Matrix& matrix, size_t row, size_t rows, size_t column, size_t columns, size_t tile, float* to, Rounding rounding) {
    for (size_t first = 0; first < rows; first += tile, to += tile * columns) {
        size_t here = std::min(tile, rows - first);
        if (here < tile) std::fill_n(to, tile * columns, 0.0f);
        if (matrix.transposed) {
            for (size_t i = 0; i < here; i++) {
                load(matrix, (row + first + i) * matrix.leading + column, 1, columns, to + i, tile, rounding);
            }
        } else {
            for (size_t j = 0; j < columns; j++) {
                load(matrix, (column + j) * matrix.leading + row + first, 1, here, to + j * tile, 1, rounding);
            }
        }
    }
}

/* sums[j * leading + i] += sum over k of a[k][i] b[k][j]. */
__attribute__((target_clones("default", "arch=haswell"))) static void multiply_tile(size_t k, const float* a, const float* b, float* sums, size_t leading) {
    Eight low[TILE_N], high[TILE_N];
    for (size_t j = 0; j < TILE_N; j++) {
        low[j] = *reinterpret_cast<const Eight*>(sums + j * leading);
        high[j] = *reinterpret_cast<const Eight*>(sums + j * leading + 8);
    }
    for (size_t step = 0; step < k; step++, a += TILE_M, b += TILE_N) {
        Eight above = *reinterpret_cast<const Eight*>(a), below = *reinterpret_cast<const Eight*>(a + 8);
        for (size_t j = 0; j < TILE_N; j++) {
            low[j] += above * b[j];
            high[j] += below * b[j];
        }
    }
    for (size_t j = 0; j < TILE_N; j++) {
        *reinterpret_cast<Eight*>(sums + j * leading) = low[j];
        *reinterpret_cast<Eight*>(sums + j * leading + 8) = high[j];
    }
}

static size_t round_up(size_t value, size_t unit) { return (value + unit - 1) / unit * unit; }

static void store(const Product& p, size_t column, size_t columns, const float* sums, size_t leading) {
    float alpha = static_cast<float>(p.alpha), beta = static_cast<float>(p.beta);
    for (size_t j = 0; j < columns; j++) {
        const float* from = sums + j * leading;
        size_t at = (column + j) * p.c_leading;
        if (p.c_type == F32) {
            float* to = static_cast<float*>(p.c) + at;
            for (size_t i = 0; i < p.m; i++) to[i] = alpha * from[i] + (beta == 0 ? 0 : beta * to[i]);
            continue;
        }
        uint16_t* to = static_cast<uint16_t*>(p.c) + at;
        for (size_t i = 0; i < p.m; i++) {
            bool bfloat = p.c_type == BF16;
            float before = beta == 0 ? 0 : beta * (bfloat ? Brain16::wide(to[i]) : Binary16::wide(to[i]));
            float value = alpha * from[i] + before;
            to[i] = bfloat ? Brain16::of(value) : Binary16::of(value);
        }
    }
}

static void multiply_f64(const Product& p) {
    const double *a = static_cast<const double*>(p.a.at), *b = static_cast<const double*>(p.b.at);
    double* c = static_cast<double*>(p.c);
    for (size_t j = 0; j < p.n; j++) {
        for (size_t i = 0; i < p.m; i++) {
            double sum = 0;
            for (size_t k = 0; k < p.k; k++) {
                double left = p.a.transposed ? a[i * p.a.leading + k] : a[k * p.a.leading + i];
                double right = p.b.transposed ? b[k * p.b.leading + j] : b[j * p.b.leading + k];
                sum += left * right;
            }
            double& to = c[j * p.c_leading + i];
            to = p.alpha * sum + (p.beta == 0 ? 0 : p.beta * to);
        }
    }
}

void multiply(const Product& p) {
    if (p.a.type == F64) return multiply_f64(p);
    size_t leading = round_up(p.m, TILE_M), widest = round_up(std::min(BLOCK_N, p.n), TILE_N);
    static thread_local std::vector<float> sums, packed_a, packed_b;
    sums.resize(leading * widest);
    packed_a.resize(BLOCK_M * BLOCK_K);
    packed_b.resize(widest * BLOCK_K);
    /* op(B)'s columns are packed like rows. */
    Matrix b = p.b;
    b.transposed = !b.transposed;
    for (size_t column = 0; column < p.n; column += BLOCK_N) {
        size_t columns = std::min(BLOCK_N, p.n - column);
        std::fill_n(sums.begin(), leading * round_up(columns, TILE_N), 0.0f);
        for (size_t depth = 0; depth < p.k; depth += BLOCK_K) {
            size_t steps = std::min(BLOCK_K, p.k - depth);
            pack(b, column, columns, depth, steps, TILE_N, packed_b.data(), p.rounding);
            for (size_t row = 0; row < p.m; row += BLOCK_M) {
                size_t rows = std::min(BLOCK_M, p.m - row);
                pack(p.a, row, rows, depth, steps, TILE_M, packed_a.data(), p.rounding);
                for (size_t j = 0; j < columns; j += TILE_N) {
                    for (size_t i = 0; i < rows; i += TILE_M) {
                        multiply_tile(steps, &packed_a[i * steps], &packed_b[j * steps], &sums[j * leading + row + i], leading);
                    }
                }
            }
        }
        store(p, column, columns, sums.data(), leading);
    }
}
}  // namespace gemm

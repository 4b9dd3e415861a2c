/* Matrix products on the CPU: column-major, C = alpha op(A) op(B) + beta C. */
#pragma once
#include <cstddef>
#include <cstdint>

#include "include/card_small_floats.h"

namespace gemm {
enum Type { F32, F64, F16, BF16 };
inline size_t width(Type type) { return type == F64 ? 8 : type == F32 ? 4 : 2; }

/* What inputs are rounded to first, as tensor cores do. */
enum Rounding { NONE, TO_TF32, TO_F16, TO_BF16 };

struct Matrix {
    const void* at;
    Type type;
    size_t leading;
    bool transposed;
};

struct Product {
    size_t m, n, k;
    Matrix a, b;
    void* c;
    Type c_type;
    size_t c_leading;
    double alpha, beta;
    Rounding rounding;
};

/* Sums in f32; in f64 where the inputs are. */
void multiply(const Product& product);
}  // namespace gemm

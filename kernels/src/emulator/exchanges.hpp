/* What the lanes of a warp do together, and what each of them brings to it. Both the engine and the kernels include this. */
#pragma once
#include <cstdint>

namespace card {
/* SYNC alone orders accesses to memory. A lane brings a number to the first three. To the others, which take all 32 lanes, it brings
 * the address of a structure below, and finds there what came of it. */
enum Exchange { SYNC, SHUFFLE, BALLOT, PRODUCT_BF16, PRODUCT_F16, MATRICES, MATRICES_TRANSPOSED };

/* Of sum += a b: PTX's mma.m16n8k16 for floats of 16 bits, two to a register. */
struct Product {
    uint32_t a[4], b[2];
    float sum[4];
    const void* site;  // in the kernel's code
};

/* Of four matrices of 8 x 8 numbers of 16 bits: one row, and two elements of each matrix. PTX's ldmatrix.m8n8.x4. */
struct Matrices {
    uint32_t row[4], part[4];
    const void* site;
};
}  // namespace card

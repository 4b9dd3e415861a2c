/* What a tensor core, and the instruction that loads its operands, make of the registers of a warp. Where each element lies is in
 * PTX's documentation, under "Matrix Fragments for mma.m16n8k16" and "ldmatrix". */
#pragma once
#include <cstring>

#include "exchanges.hpp"

namespace card {
/* A float of 16 bits; of f16 where not `brain`. */
inline float wide(uint16_t bits, bool brain) {
    uint32_t sign = (uint32_t)(bits & 0x8000u) << 16, magnitude = bits & 0x7fffu, word = magnitude << 16;
    if (!brain) {
        /* Another bias of the exponent, by a product that is exact for subnormal numbers too; infinity and NaN have all its bits. */
        float scaled;
        word = magnitude << 13;
        memcpy(&scaled, &word, 4);
        scaled *= 0x1p112f;
        memcpy(&word, &scaled, 4);
        if (magnitude >= 0x7c00u) word = 0x7f800000u | magnitude << 13;
    }
    word |= sign;
    float value;
    memcpy(&value, &word, 4);
    return value;
}

/* sum [16, 8] += a [16, 16] b [16, 8], element by element to the sum that was there, in the order of a's columns, and rounded to f32
 * each time. Products of 16-bit floats are exact in f32. PTX leaves the order and the rounding of a card's sums open. */
inline void multiply(Product* const (&lanes)[32], bool brain) {
    float a[16][16], b[16][8], sum[16][8];
    for (int lane = 0; lane < 32; lane++) {
        const Product& part = *lanes[lane];
        int group = lane / 4, pair = lane % 4 * 2;
        for (int i = 0; i < 8; i++) a[group + i / 2 % 2 * 8][pair + i % 2 + i / 4 * 8] = wide((uint16_t)(part.a[i / 2] >> i % 2 * 16), brain);
        for (int i = 0; i < 4; i++) b[pair + i % 2 + i / 2 * 8][group] = wide((uint16_t)(part.b[i / 2] >> i % 2 * 16), brain);
        for (int i = 0; i < 4; i++) sum[group + i / 2 * 8][pair + i % 2] = part.sum[i];
    }
    for (int row = 0; row < 16; row++)
        for (int k = 0; k < 16; k++)
            for (int column = 0; column < 8; column++) sum[row][column] += a[row][k] * b[k][column];
    for (int lane = 0; lane < 32; lane++)
        for (int i = 0; i < 4; i++) lanes[lane]->sum[i] = sum[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
}

/* Lane l brings row l % 8 of matrix l / 8, and gets of each matrix elements 2 (l % 4) and the next of row l / 4; of column l / 4 where
 * they are transposed. */
inline void hand_out(Matrices* const (&lanes)[32], bool transposed) {
    for (int matrix = 0; matrix < 4; matrix++) {
        uint16_t rows[8][8];
        for (int row = 0; row < 8; row++) memcpy(rows[row], lanes[matrix * 8 + row]->row, sizeof rows[row]);
        for (int lane = 0; lane < 32; lane++) {
            int across = lane / 4, along = lane % 4 * 2;
            uint32_t first = transposed ? rows[along][across] : rows[across][along];
            uint32_t second = transposed ? rows[along + 1][across] : rows[across][along + 1];
            lanes[lane]->part[matrix] = second << 16 | first;
        }
    }
}

/* What all lanes brought to an exchange of structures. */
inline void exchange_structures(const uint64_t (&values)[32], Exchange kind) {
    if (kind == PRODUCT_BF16 || kind == PRODUCT_F16) {
        Product* lanes[32];
        for (int lane = 0; lane < 32; lane++) lanes[lane] = (Product*)values[lane];
        multiply(lanes, kind == PRODUCT_BF16);
    } else {
        Matrices* lanes[32];
        for (int lane = 0; lane < 32; lane++) lanes[lane] = (Matrices*)values[lane];
        hand_out(lanes, kind == MATRICES_TRANSPOSED);
    }
}
}  // namespace card

/* The bytes that the matrices of a product lie in. */
#pragma once
#include <vector>

#include "library.hpp"

namespace card {
/* As many matrices as a batch has, column-major: `rows` elements side by side, `columns` times, `leading` elements apart. */
struct Matrices {
    const void* at;
    size_t rows, columns, leading;
    /* From one matrix to the next, in elements; 0 is one matrix for all, and what a batch of one says is not read. */
    long long stride;
    int count;
    /* Of an element. */
    size_t width;
};

std::vector<CardUse> uses_of(const Matrices& matrices, bool writes);
/* Whether two matrices of one batch have an element in common. */
bool overlap_each_other(const Matrices& matrices);
/* Whether some of these bytes are also among those; bytes between the rows are in neither. */
bool overlap(const std::vector<CardUse>& these, const std::vector<CardUse>& those);
/* Whether every column of every matrix begins at a multiple of so many bytes. */
bool aligned(const Matrices& matrices, size_t bytes);
}  // namespace card

/* Products of parts of larger matrices: what is computed, what is touched, and what is not taken. */
#include <unistd.h>

#include <cmath>
#include <fstream>
#include <iterator>

#include "products.hpp"

/* Where the matrices of a batch lie in one allocation, in elements; rows are side by side. */
struct Layout {
    int rows, columns, leading;
    long long stride, first;

    long long at(int matrix, int row, int column) const { return first + matrix * stride + static_cast<long long>(column) * leading + row; }
    /* The allocation ends with the last element: nothing may touch the rest of the last column. */
    long long end(int batch) const { return at(stride < 0 ? 0 : batch - 1, rows - 1, columns - 1) + 1; }
};

struct Operand {
    Layout layout;
    int type;
    CUdeviceptr on_card;
    /* By element of the allocation; those of no matrix were never written. */
    std::vector<float> values;
    std::vector<bool> belongs;

    void* begin() const { return reinterpret_cast<void*>(on_card + layout.first * width(type)); }
};

static Operand make(Layout layout, int type, int batch, unsigned seed, bool written) {
    size_t count = layout.end(batch);
    Operand made{layout, type, unwritten(count * width(type), nullptr), numbers(count, seed, type), std::vector<bool>(count)};
    for (int p = 0; p < batch; p++) {
        for (int column = 0; column < layout.columns; column++) {
            long long at = layout.at(p, 0, column);
            std::fill_n(made.belongs.begin() + at, layout.rows, true);
            if (!written) continue;
            std::vector<unsigned char> bytes = bytes_of(std::vector<float>(made.values.begin() + at, made.values.begin() + at + layout.rows), type);
            OK(cuMemcpyHtoDAsync_v2(made.on_card + at * width(type), bytes.data(), bytes.size(), nullptr));
        }
    }
    return made;
}

struct Sizes {
    int m, n, k, batch;
};

static int call(Operand& a, Operand& b, Operand& c, bool transa, bool transb, Sizes sizes, float beta) {
    float alpha = 0.5f;
    return cublasGemmStridedBatchedEx(handle(), transa, transb, sizes.m, sizes.n, sizes.k, &alpha, a.begin(), a.type, a.layout.leading, a.layout.stride,
                                      b.begin(), b.type, b.layout.leading, b.layout.stride, &beta, c.begin(), c.type, c.layout.leading, c.layout.stride,
                                      sizes.batch, COMPUTE_32F, -1);
}

static void check_parts(Operand& a, Operand& b, Operand& c, bool transa, bool transb, Sizes sizes, float beta) {
    EXPECT(call(a, b, c, transa, transb, sizes, beta) == 0);
    double relative = c.type == BF16 ? 1.0 / 256 : c.type == F16 ? 1.0 / 2048 : 0, absolute = 1e-6 * (sizes.k + 1);
    for (int p = 0; p < sizes.batch; p++) {
        for (int j = 0; j < sizes.n; j++) {
            std::vector<unsigned char> back(sizes.m * width(c.type));
            OK(cuMemcpyDtoHAsync_v2(back.data(), c.on_card + c.layout.at(p, 0, j) * width(c.type), back.size(), nullptr));
            std::vector<float> got = values_of(back, c.type);
            for (int i = 0; i < sizes.m; i++) {
                double sum = 0;
                for (int x = 0; x < sizes.k; x++) {
                    double left = a.values[transa ? a.layout.at(p, x, i) : a.layout.at(p, i, x)];
                    sum += left * b.values[transb ? b.layout.at(p, j, x) : b.layout.at(p, x, j)];
                }
                float& before = c.values[c.layout.at(p, i, j)];
                double expected = 0.5 * sum + (beta == 0 ? 0 : beta * before);
                EXPECT(std::fabs(got[i] - expected) <= absolute + relative * std::fabs(expected));
                before = got[i];
            }
        }
    }
}

/* A product into what nothing wrote, then two more on top of it. */
static void accumulate(int type, int c_type, bool transa, bool transb, Sizes s, Layout a_layout, Layout b_layout, Layout c_layout) {
    Operand a = make(a_layout, type, s.batch, 1, true), b = make(b_layout, type, s.batch, 2, true), c = make(c_layout, c_type, s.batch, 3, false);
    check_parts(a, b, c, transa, transb, s, 0);
    check_parts(a, b, c, transa, transb, s, 1);
    check_parts(a, b, c, transa, transb, s, -0.75f);
}

LEGAL(parts_of_matrices_are_multiplied_and_nothing_beside_them_is_touched) {
    open_card();
    const int types[][2] = {{F32, F32}, {BF16, BF16}, {BF16, F32}, {F16, F16}, {F16, F32}};
    for (auto [type, c_type] : types) {
        for (int trans = 0; trans < 4; trans++) {
            bool transa = trans & 1, transb = trans & 2;
            Sizes s{21, 10, 34, 1};
            auto layout = [](bool turned, int rows, int columns, int beside, int first) {
                return Layout{turned ? columns : rows, turned ? rows : columns, (turned ? columns : rows) + beside, 0, first};
            };
            accumulate(type, c_type, transa, transb, s, layout(transa, s.m, s.k, 40, 7), layout(transb, s.k, s.n, 5, 3), layout(false, s.m, s.n, 64, 33));
        }
    }
}

/* Heads side by side in one row of a token: matrices of a batch that begin within each other's columns. */
LEGAL(heads_of_one_matrix_are_a_batch) {
    open_card();
    const int heads = 3, wide = 8, tokens = 18;
    const int types[][2] = {{F32, F32}, {BF16, BF16}, {BF16, F32}};
    Layout by_token{wide, tokens, heads * wide + 4, wide, 2}, by_head{tokens, tokens, tokens, tokens * tokens, 0};
    for (auto [type, c_type] : types) {
        accumulate(type, c_type, true, false, {tokens, tokens, wide, heads}, by_token, by_token, by_head);
        accumulate(type, c_type, false, false, {wide, tokens, tokens, heads}, by_token, by_head, by_token);
        accumulate(type, c_type, false, true, {wide, tokens, tokens, heads}, by_token, by_head, by_token);
        /* One matrix for all heads. */
        accumulate(type, c_type, true, false, {tokens, tokens, wide, heads}, {wide, tokens, wide, 0, 0}, by_token, by_head);
        /* The last head first. */
        accumulate(type, c_type, true, false, {tokens, tokens, wide, heads}, {wide, tokens, heads * wide, -wide, 2 * wide}, by_token, by_head);
    }
}

LEGAL(a_product_leaves_what_is_beside_its_output) {
    open_card();
    CUdeviceptr a = floats(4, 1, nullptr), b = floats(4, 1, nullptr), c = floats(10, 9, nullptr);
    float one = 1, zero = 0;
    EXPECT(cublasGemmEx(handle(), 0, 0, 2, 2, 2, &one, reinterpret_cast<void*>(a), F32, 2, reinterpret_cast<void*>(b), F32, 2, &zero,
                        reinterpret_cast<void*>(c + 4), F32, 5, COMPUTE_32F, -1) == 0);
    EXPECT((read_floats(c, 10, nullptr) == std::vector<float>{9, 2, 2, 9, 9, 9, 2, 2, 9, 9}));
}

static std::string counts_so_far() {
    OK(cuCtxSynchronize());
    std::ifstream file(std::string(getenv("CARD_DIR")) + "/counts-" + std::to_string(getpid()) + ".json");
    return std::string(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
}

LEGAL(a_product_s_bytes_are_those_of_its_parts) {
    open_card();
    Operand a = make({4, 3, 100, 0, 0}, BF16, 1, 1, true), b = make({3, 5, 50, 0, 0}, BF16, 1, 2, true), c = make({4, 5, 30, 0, 0}, F32, 1, 3, true);
    EXPECT(call(a, b, c, false, false, {4, 5, 3, 1}, 0) == 0);
    EXPECT(counts_so_far().find("\"gemms\": {\"bytes\": 134, \"count\": 1, \"flop\": 120, \"misaligned\": 1}") != std::string::npos);
    /* Read and written. */
    EXPECT(call(a, b, c, false, false, {4, 5, 3, 1}, 1) == 0);
    EXPECT(counts_so_far().find("\"gemms\": {\"bytes\": 348, \"count\": 2, \"flop\": 240, \"misaligned\": 2}") != std::string::npos);
}

static const Sizes SMALL{4, 4, 4, 1};
static const Layout SQUARE{4, 4, 12, 16, 0};

LEGAL(columns_of_one_allocation_are_inputs_and_output) {
    open_card();
    Operand all = make({12, 4, 12, 0, 0}, F32, 1, 1, true), a = all, b = all, c = all;
    a.layout = b.layout = c.layout = SQUARE;
    b.layout.first = 4, c.layout.first = 8;
    check_parts(a, b, c, false, false, SMALL, 1);
}

REFUSED(an_output_over_its_input, "cublasGemmStridedBatchedEx: C has bytes that A or B have too") {
    open_card();
    Operand all = make({12, 4, 12, 0, 0}, F32, 1, 1, true), a = all, b = all, c = all;
    a.layout = b.layout = c.layout = SQUARE;
    b.layout.first = 4, c.layout.first = 7;
    call(a, b, c, false, false, SMALL, 0);
}

static void batch_of(Layout c_layout) {
    open_card();
    Operand a = make({4, 4, 4, 16, 0}, F32, 3, 1, true), b = make({4, 4, 4, 16, 0}, F32, 3, 2, true), c = make(c_layout, F32, 3, 3, false);
    call(a, b, c, false, false, {4, 4, 4, 3}, 0);
}
REFUSED(outputs_of_a_batch_that_are_one, "the products of a batch overlap") { batch_of({4, 4, 4, 0, 0}); }
REFUSED(outputs_of_a_batch_that_overlap, "the products of a batch overlap") { batch_of({4, 4, 4, 12, 0}); }
REFUSED(heads_that_overlap, "the products of a batch overlap") { batch_of({4, 4, 12, 3, 0}); }
REFUSED(heads_that_overlap_in_the_next_row, "the products of a batch overlap") { batch_of({4, 4, 11, 4, 0}); }

REFUSED(a_sum_with_what_nothing_wrote, "that nothing has written") {
    open_card();
    Operand a = make(SQUARE, F32, 1, 1, true), b = make(SQUARE, F32, 1, 2, true), c = make(SQUARE, F32, 1, 3, false);
    EXPECT(call(a, b, c, false, false, SMALL, 1) == 0);
    cuCtxSynchronize();
}

REFUSED(a_part_beyond_what_was_written, "that nothing has written") {
    open_card();
    Operand a = make({4, 5, 12, 0, 0}, F32, 1, 1, true), b = make(SQUARE, F32, 1, 2, true), c = make(SQUARE, F32, 1, 3, false);
    a.layout.first = 1;
    EXPECT(call(a, b, c, false, false, SMALL, 0) == 0);
    cuCtxSynchronize();
}

REFUSED(a_part_beyond_its_allocation, "reads 160 bytes") {
    open_card();
    Operand a = make(SQUARE, F32, 1, 1, true), b = make(SQUARE, F32, 1, 2, true), c = make(SQUARE, F32, 1, 3, false);
    a.layout.first = 1;
    call(a, b, c, false, false, SMALL, 0);
}

REFUSED(a_matrix_between_two_elements, "a matrix is not aligned to its elements") {
    open_card();
    Operand a = make(SQUARE, BF16, 1, 1, true), b = make(SQUARE, BF16, 1, 2, true), c = make(SQUARE, F32, 1, 3, true);
    c.on_card += 2;
    call(a, b, c, false, false, SMALL, 0);
}

REFUSED(doubles_summed_in_f32, "COMPUTE_32F is not for f64") {
    open_card();
    Operand a = make(SQUARE, F32, 2, 1, true), c = make(SQUARE, F32, 1, 3, false);
    a.type = F64;
    call(a, a, c, false, false, SMALL, 0);
}

REFUSED(a_product_on_another_stream_than_its_input, "nothing orders the two") {
    open_card();
    CUstream one = new_stream(), two = new_stream();
    CUdeviceptr a = floats(16, 1, one), b = floats(16, 1, two), c = floats(16, 1, two);
    OK(cuStreamSynchronize(one));
    OK(cuMemsetD8Async(a, 0, 64, one));
    EXPECT(cublasSetStream_v2(handle(), two) == 0);
    float alpha = 1, beta = 0;
    EXPECT(cublasGemmEx(handle(), 0, 0, 4, 4, 4, &alpha, reinterpret_cast<void*>(a), F32, 4, reinterpret_cast<void*>(b), F32, 4, &beta,
                        reinterpret_cast<void*>(c), F32, 4, COMPUTE_32F, -1) == 0);
    cuCtxSynchronize();
}

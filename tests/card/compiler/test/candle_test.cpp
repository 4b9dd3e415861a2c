/* Kernels of candle's and of ours, compiled as for a card, against plain loops; in several orders of threads. */
#include <algorithm>
#include <cmath>
#include <fstream>
#include <iterator>
#include <numeric>

#include "check.hpp"

using namespace check;

static const uint64_t ORDERS = 6;

static std::vector<float> numbers(size_t count) {
    std::vector<float> values(count);
    for (size_t i = 0; i < count; i++) values[i] = (float)((int)(i * 7919 % 2003) - 1001) / 128.0f;
    return values;
}
static float from_bf16(uint16_t bits) {
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, 4);
    return value;
}
static bool near(float a, float b) { return std::fabs(a - b) <= 1e-5f * std::max(1.0f, std::fabs(b)); }

static void launch(const Loaded& module, const char* name, Shape shape, std::vector<const void*> parameters) {
    std::string said = run(module, name, shape, parameters);
    expect(said.empty(), std::string(name) + ": " + said);
}

static void* const NONE = nullptr;
static const size_t ZERO = 0;

static void elementwise(const Loaded& binary, const Loaded& unary, const Loaded& cast, uint64_t order) {
    size_t n = 1003, two = 2;
    std::vector<float> a = numbers(n), b = numbers(2 * n);
    b.erase(b.begin(), b.begin() + n);
    float *x = fresh(a), *y = fresh(b), *out = (float*)fresh(n * 4);
    Shape shape = {{4, 1, 1}, {96, 1, 1}, 0, order};
    launch(binary, "badd_f32", shape, {&n, &ZERO, &NONE, &x, &y, &out});
    for (size_t i = 0; i < n; i++) expect(out[i] == a[i] + b[i], "badd_f32");
    /* y read as the transpose of [17, 59]. */
    std::vector<size_t> strides = {59, 17, 17, 1, 1, 59};
    size_t* info = fresh(strides);
    launch(binary, "bmul_f32", shape, {&n, &two, &info, &x, &y, &out});
    for (size_t i = 0; i < n; i++) expect(out[i] == a[i] * b[i / 17 + i % 17 * 59], "bmul_f32, strided");
    uint16_t* narrow = (uint16_t*)fresh(n * 2);
    launch(cast, "cast_f32_bf16", shape, {&n, &ZERO, &NONE, &x, &narrow});
    launch(cast, "cast_bf16_f32", shape, {&n, &ZERO, &NONE, &narrow, &out});
    for (size_t i = 0; i < n; i++) expect(std::fabs(out[i] - a[i]) <= std::fabs(a[i]) / 256 && out[i] == from_bf16(narrow[i]), "cast_f32_bf16");
    uint16_t* silu = (uint16_t*)fresh(n * 2);
    launch(unary, "usilu_bf16", shape, {&n, &ZERO, &NONE, &narrow, &silu});
    for (size_t i = 0; i < n; i++) {
        float right = out[i] / (1.0f + expf(-out[i]));
        expect(std::fabs(from_bf16(silu[i]) - right) <= std::fabs(right) / 256 + 1e-30f, "usilu_bf16");
    }
}

static void reductions(const Loaded& reduce, uint64_t order) {
    size_t rows = 5, columns = 300, n = rows * columns, two = 2;
    std::vector<float> a = numbers(n);
    std::vector<size_t> layout = {rows, columns, columns, 1};
    size_t* info = fresh(layout);
    float *x = fresh(a), *out = (float*)fresh(rows * 4);
    uint32_t* index = (uint32_t*)fresh(rows * 4);
    Shape shape = {{(unsigned)rows, 1, 1}, {512, 1, 1}, 0, order};
    auto row = [&](size_t i) { return a.begin() + i * columns; };
    launch(reduce, "fast_sum_f32", shape, {&n, &columns, &two, &info, &x, &out});
    for (size_t i = 0; i < rows; i++) expect(near(out[i], std::accumulate(row(i), row(i + 1), 0.0f)), "fast_sum_f32");
    launch(reduce, "fast_max_f32", shape, {&n, &columns, &two, &info, &x, &out});
    for (size_t i = 0; i < rows; i++) expect(out[i] == *std::max_element(row(i), row(i + 1)), "fast_max_f32");
    launch(reduce, "fast_argmax_f32", shape, {&n, &columns, &two, &info, &x, &index});
    for (size_t i = 0; i < rows; i++) expect(a[i * columns + index[i]] == out[i], "fast_argmax_f32");
    float* soft = (float*)fresh(n * 4);
    int count = (int)columns, block = 1024;
    launch(reduce, "softmax_f32", {{(unsigned)rows, 1, 1}, {1, 32, 1}, 0, order}, {&x, &soft, &count});
    float epsilon = 1e-5f;
    float* alpha = fresh(numbers(columns));
    float* norm = (float*)fresh(n * 4);
    launch(reduce, "rmsnorm_f32", {{(unsigned)rows, 1, 1}, {1024, 1, 1}, 0, order}, {&x, &norm, &alpha, &count, &block, &epsilon});
    for (size_t i = 0; i < n; i++) {
        size_t first = i / columns * columns;
        double total = 0.0, squares = 0.0;
        for (size_t j = first; j < first + columns; j++) total += exp((double)a[j] - out[i / columns]), squares += (double)a[j] * a[j];
        expect(near(soft[i], (float)(exp((double)a[i] - out[i / columns]) / total)), "softmax_f32");
        expect(near(norm[i], (float)(a[i] / sqrt(squares / columns + epsilon) * alpha[i - first])), "rmsnorm_f32");
    }
}

static void rows_by_index(const Loaded& indexing, const Loaded& sort, const Loaded& ternary, uint64_t order) {
    std::vector<float> a = numbers(37 * 8);
    std::vector<uint32_t> ids = {3, 36, 0, 3, 0xffffffffu};
    float *x = fresh(a), *out = (float*)fresh(5 * 8 * 4);
    uint32_t* at = fresh(ids);
    size_t n = 40, two = 2, one = 1, source = 37, count = 5, right = 8;
    std::vector<size_t> layout = {37, 8, 8, 1};
    size_t* info = fresh(layout);
    Shape shape = {{2, 1, 1}, {32, 1, 1}, 0, order};
    launch(indexing, "is_u32_f32", shape, {&n, &two, &info, &at, &x, &out, &one, &source, &count, &right});
    for (size_t i = 0; i < n; i++) expect(out[i] == (i < 32 ? a[ids[i / 8] * 8 + i % 8] : 0.0f), "is_u32_f32");
    float* sum = fresh(std::vector<float>(37 * 8, 1.0f));
    launch(indexing, "ia_u32_f32", {{1, 1, 1}, {8, 1, 1}, 0, order}, {&at, &count, &out, &sum, &one, &count, &source, &right});
    for (size_t i = 0; i < 8; i++) expect(sum[24 + i] == 1.0f + 2 * a[24 + i], "ia_u32_f32");
    std::string said = run(indexing, "is_u32_f32", shape, {&n, &two, &info, &at, &x, &out, &one, &count, &count, &right});
    expect(said.find("assertion failed: ids[id_i] < src_dim_size (") != std::string::npos, "an index too large: " + said);
    int columns = 296, padded = 512;
    uint32_t* sorted = (uint32_t*)fresh(296 * 4);
    launch(sort, "asort_asc_f32", {{1, 1, 1}, {512, 1, 1}, 512 * 4, order}, {&x, &sorted, &columns, &padded});
    for (int i = 1; i < columns; i++) expect(a[sorted[i - 1]] <= a[sorted[i]], "asort_asc_f32");
    uint8_t* choice = fresh(std::vector<uint8_t>{1, 0, 1, 1, 0, 0, 1, 0});
    size_t eight = 8;
    size_t* eights = fresh(std::vector<size_t>{8, 1, 1, 1});
    float* y = fresh(numbers(8));
    launch(ternary, "where_u8_f32", {{1, 1, 1}, {32, 1, 1}, 0, order}, {&eight, &one, &eights, &choice, &x, &sum, &y});
    for (size_t i = 0; i < 8; i++) expect(y[i] == (choice[i] ? x[i] : sum[i]), "where_u8_f32");
}

/* 32 weights of eight bits with one scale. */
static void unpacking(const Loaded& quantized, uint64_t order) {
    std::vector<uint8_t> blocks(8 * 34);
    std::vector<float> right;
    for (size_t i = 0; i < 8; i++) {
        blocks[34 * i] = 0x00, blocks[34 * i + 1] = 0x34;  // 0.25 in f16
        for (int j = 0; j < 32; j++) {
            blocks[34 * i + 2 + j] = (uint8_t)(int8_t)(j * 7 - 100);
            right.push_back(0.25f * (float)(j * 7 - 100));
        }
    }
    uint8_t* x = fresh(blocks);
    float* out = (float*)fresh(256 * 4);
    int count = 8;
    launch(quantized, "dequantize_block_q8_0_f32", {{1, 1, 1}, {32, 1, 1}, 0, order}, {&x, &out, &count});
    expect_equal(values(out, 256), right, "dequantize_block_q8_0_f32");
}

static void self_test(const Loaded& ours, uint64_t order) {
    struct Floats {
        void* data;
        int64_t len;
        int32_t dtype;
    };
    int64_t size = 1000;
    std::vector<float> a(3 * size);
    for (size_t i = 0; i < a.size(); i++) a[i] = (float)(i % 701);
    Floats x = {fresh(a), 3 * size, 0}, out = {fresh(6 * 4), 6, 0};
    launch(ours, "block_totals", {{3, 1, 1}, {256, 1, 1}, 128, order}, {&x, &out, &size});
    for (int i = 0; i < 3; i++) {
        auto first = a.begin() + i * size;
        expect(((float*)out.data)[2 * i] == std::accumulate(first, first + size, 0.0f), "block_totals");
        expect(((float*)out.data)[2 * i + 1] == *std::max_element(first, first + size), "block_totals");
    }
    std::vector<uint32_t> y(128);
    std::iota(y.begin(), y.end(), 0);
    Floats in = {fresh(y), 128, 0}, turned = {fresh(128 * 4), 128, 0};
    launch(ours, "reverse", {{2, 1, 1}, {64, 1, 1}, 256, order}, {&in, &turned});
    std::reverse(y.begin(), y.begin() + 64);
    std::reverse(y.begin() + 64, y.end());
    expect_equal(values((uint32_t*)turned.data, 128), y, "reverse");
    /* Half of the memory that it needs. */
    std::string said = run(ours, "reverse", {{2, 1, 1}, {64, 1, 1}, 128, order}, {&in, &turned});
    expect(said.find("shared memory to byte") != std::string::npos && said.find("the launch has 128") != std::string::npos, "reverse: " + said);
}

static const char WITHOUT_A_LANE[] = R"(
    extern "C" __global__ void without_a_lane(Buffer<float> out) {
        float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        u32 a[4] = {0, 0, 0, 0};
        if (lane() == 3) return;
        mma<BF16>(sum, a, 0, 0);
        out[lane()] = sum[0];
    })";

static uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

/* A product of tensor cores: of whole numbers, exact in any order. And one without a lane, which has ended. */
static void tensor_cores(const Loaded& ours, const Loaded& fault, uint64_t order) {
    struct Floats {
        void* data;
        int64_t len;
        int32_t dtype;
    };
    std::vector<uint16_t> a(256), b(128);
    std::vector<float> c(128), right(128);
    /* bf16: the upper half of an f32. */
    auto brain = [](float value) { return (uint16_t)(bits_of(value) >> 16); };
    for (int i = 0; i < 256; i++) a[i] = brain((float)(i % 17 - 8));
    for (int i = 0; i < 128; i++) b[i] = brain((float)(i % 13 - 6)), c[i] = (float)i;
    for (int i = 0; i < 128; i++) {
        right[i] = c[i];
        for (int k = 0; k < 16; k++) right[i] += (float)((i / 8 * 16 + k) % 17 - 8) * (float)((k * 8 + i % 8) % 13 - 6);
    }
    Floats x = {fresh(a), 256, 1}, y = {fresh(b), 128, 1}, sum = {fresh(c), 128, 0}, out = {fresh(128 * 4), 128, 0};
    launch(ours, "multiply_16", {{1, 1, 1}, {32, 1, 1}, 0, order}, {&x, &y, &sum, &out});
    expect_equal(values((float*)out.data, 128), right, "multiply_16");
    std::string said = run(fault, "without_a_lane", {{1, 1, 1}, {32, 1, 1}, 0, order}, {&out});
    expect(said.find("tensor cores take all lanes of a warp, and of these only fffffff7 come") != std::string::npos, "without_a_lane: " + said);
}

static void describe(const Loaded& ours) {
    for (size_t i = 0; i < ours.count; i++) {
        const CardEntry& entry = ours.entries[i];
        if (strcmp(entry.name, "convert") == 0) {
            const CardParameter *x = entry.parameters, *len = entry.parameters + 2;
            expect(entry.count == 3 && x->kind == CARD_FLOATS && x->size == 24, "convert's floats");
            expect(len->offset == 48 && len->kind == CARD_NUMBER && len->size == 8 && len->arithmetic == CARD_SIGNED, "convert's length");
        } else if (strcmp(entry.name, "reverse") == 0) {
            const CardParameter* x = entry.parameters;
            expect(entry.count == 2 && x->kind == CARD_BUFFER && x->element == 4 && x->arithmetic == CARD_UNSIGNED, "reverse's buffers");
        }
    }
}

static std::string read(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) fprintf(stderr, "cannot read %s\n", path.c_str()), exit(1);
    return std::string(std::istreambuf_iterator<char>(file), {});
}

/* words: candle-kernels' src, and the folder of our .cu files. */
int main(int, char** words) {
    std::string candle = words[1], own = words[2];
    auto module = [&](const char* name) { return compile_file(candle + "/" + name + ".cu"); };
    Loaded binary = module("binary"), unary = module("unary"), cast = module("cast"), reduce = module("reduce");
    Loaded indexing = module("indexing"), sort = module("sort"), ternary = module("ternary"), quantized = module("quantized");
    std::string prelude = read(own + "/prelude.cuh");
    Loaded ours = compile(prelude + read(own + "/self_test.cu"));
    Loaded fault = compile(prelude + WITHOUT_A_LANE);
    describe(ours);
    for (uint64_t order = 0; order < ORDERS; order++) {
        elementwise(binary, unary, cast, order);
        reductions(reduce, order);
        rows_by_index(indexing, sort, ternary, order);
        unpacking(quantized, order);
        self_test(ours, order);
        tensor_cores(ours, fault, order);
    }
    return report();
}

/* cuBLAS and cuRAND. */
#include <cmath>

#include "products.hpp"

CARD_API int curandCreateGenerator(void**, int);
CARD_API int curandSetPseudoRandomGeneratorSeed(void*, unsigned long long);
CARD_API int curandGenerateUniform(void*, float*, size_t);
CARD_API int curandGenerateNormal(void*, float*, size_t, float, float);

static void check_product(int type, int c_type, int transa, int transb, int m, int n, int k, int batch, float beta) {
    int lda = (transa ? k : m) + 3, ldb = (transb ? n : k) + 1, ldc = m + 2;
    long long stride_a = static_cast<long long>(lda) * (transa ? m : k), stride_b = static_cast<long long>(ldb) * (transb ? k : n);
    long long stride_c = static_cast<long long>(ldc) * n;
    std::vector<float> a = numbers(stride_a * batch, 1, type), b = numbers(stride_b * batch, 2, type), c = numbers(stride_c * batch, 3, c_type);
    CUdeviceptr on_a = upload(bytes_of(a, type)), on_b = upload(bytes_of(b, type)), on_c = upload(bytes_of(c, c_type));
    float alpha = 0.5f;
    int done = cublasGemmStridedBatchedEx(handle(), transa, transb, m, n, k, &alpha, reinterpret_cast<void*>(on_a), type, lda, stride_a,
                                          reinterpret_cast<void*>(on_b), type, ldb, stride_b, &beta, reinterpret_cast<void*>(on_c), c_type, ldc, stride_c,
                                          batch, COMPUTE_32F, -1);
    EXPECT(done == 0);
    std::vector<unsigned char> back(stride_c * batch * width(c_type));
    OK(cuMemcpyDtoHAsync_v2(back.data(), on_c, back.size(), nullptr));
    std::vector<float> got = values_of(back, c_type);
    /* Half types round the result to 8 or 11 bits; sums of f32 differ by their order. */
    double relative = c_type == BF16 ? 1.0 / 256 : c_type == F16 ? 1.0 / 2048 : 0, absolute = 1e-6 * (k + 1);
    for (int p = 0; p < batch; p++) {
        for (int j = 0; j < n; j++) {
            for (int i = 0; i < m; i++) {
                double sum = 0;
                for (int x = 0; x < k; x++) {
                    float left = a[p * stride_a + (transa ? i * lda + x : x * lda + i)], right = b[p * stride_b + (transb ? x * ldb + j : j * ldb + x)];
                    sum += static_cast<double>(left) * right;
                }
                long long at = p * stride_c + j * ldc + i;
                double expected = alpha * sum + beta * c[at];
                EXPECT(std::fabs(got[at] - expected) <= absolute + relative * std::fabs(expected));
            }
        }
    }
}

LEGAL(products_of_all_types_and_shapes) {
    open_card();
    struct {
        int type, c_type;
    } types[] = {{F32, F32}, {BF16, BF16}, {BF16, F32}, {F16, F16}, {F16, F32}};
    for (auto [type, c_type] : types) {
        for (int trans = 0; trans < 4; trans++) {
            check_product(type, c_type, trans & 1, trans >> 1, 33, 7, 19, 1, 0);
            check_product(type, c_type, trans & 1, trans >> 1, 5, 70, 300, 2, 1.5f);
        }
        check_product(type, c_type, 1, 0, 150, 13, 520, 1, 0);
        check_product(type, c_type, 0, 0, 1, 1, 1, 3, 0);
    }
    check_product(F32, F32, 0, 1, 17, 1000, 3, 1, 0);
}

LEGAL(a_product_over_nothing_is_zero) {
    open_card();
    check_product(F32, F32, 0, 0, 4, 3, 0, 1, 0);
}

LEGAL(products_in_f64) {
    open_card();
    double a[] = {1, 2, 3, 4}, b[] = {5, 6, 7, 8}, one = 1, zero = 0, c[4];
    CUdeviceptr on[3];
    for (CUdeviceptr& at : on) at = unwritten(32, nullptr);
    OK(cuMemcpyHtoDAsync_v2(on[0], a, 32, nullptr));
    OK(cuMemcpyHtoDAsync_v2(on[1], b, 32, nullptr));
    double* p[3];
    for (int i = 0; i < 3; i++) p[i] = reinterpret_cast<double*>(on[i]);
    EXPECT(cublasDgemmStridedBatched(handle(), 0, 0, 2, 2, 2, &one, p[0], 2, 4, p[1], 2, 4, &zero, p[2], 2, 4, 1) == 0);
    OK(cuMemcpyDtoHAsync_v2(c, on[2], 32, nullptr));
    EXPECT(c[0] == 23 && c[1] == 34 && c[2] == 31 && c[3] == 46);
}

static int product(CUdeviceptr a, CUdeviceptr b, CUdeviceptr c, int size, int leading, int transa = 0) {
    float one = 1, zero = 0;
    return cublasGemmEx(handle(), transa, 0, size, size, size, &one, reinterpret_cast<void*>(a), F32, leading, reinterpret_cast<void*>(b), F32, leading, &zero,
                        reinterpret_cast<void*>(c), F32, leading, COMPUTE_32F, -1);
}

REFUSED(a_product_beyond_its_matrix, "cublasGemmEx reads 64 bytes") {
    open_card();
    product(floats(15, 1, nullptr), floats(16, 1, nullptr), floats(16, 1, nullptr), 4, 4);
}

REFUSED(a_product_with_too_small_a_leading_dimension, "leading dimensions 3, 3, 3; at least 4, 4, 4") {
    open_card();
    product(floats(16, 1, nullptr), floats(16, 1, nullptr), floats(16, 1, nullptr), 4, 3);
}

REFUSED(a_product_of_no_operation_of_cublas, "transa or transb is none of cuBLAS's operations") {
    open_card();
    product(floats(16, 1, nullptr), floats(16, 1, nullptr), floats(16, 1, nullptr), 4, 4, 7);
}

REFUSED(a_product_of_what_nothing_wrote, "cublasGemmEx on stream 0: reads 64 bytes that nothing has written") {
    open_card();
    product(unwritten(64, nullptr), floats(16, 1, nullptr), unwritten(64, nullptr), 4, 4);
    cuCtxSynchronize();
}

LEGAL(no_memory_for_cublas, {"CARD_FAIL_ALLOC", "1"}) {
    open_card();
    void* none;
    EXPECT(cublasCreate_v2(&none) == 3);
}

LEGAL(a_device_is_lost_at_a_product, {"CARD_LOST_AT", "1"}) {
    open_card();
    EXPECT(product(floats(16, 1, nullptr), floats(16, 1, nullptr), floats(16, 1, nullptr), 4, 4) == 13);
    EXPECT(cuCtxSynchronize() == CUDA_ERROR_LAUNCH_FAILED);
}

LEGAL(random_numbers_are_spread_and_repeat) {
    open_card();
    void* generator;
    EXPECT(curandCreateGenerator(&generator, 100) == 0);
    std::vector<float> first;
    for (int time = 0; time < 2; time++) {
        EXPECT(curandSetPseudoRandomGeneratorSeed(generator, 7) == 0);
        CUdeviceptr at = unwritten(80000, nullptr);
        EXPECT(curandGenerateUniform(generator, reinterpret_cast<float*>(at), 10000) == 0);
        EXPECT(curandGenerateNormal(generator, reinterpret_cast<float*>(at + 40000), 10000, 1, 2) == 0);
        EXPECT(curandGenerateNormal(generator, reinterpret_cast<float*>(at), 3, 1, 2) == 105);
        std::vector<float> got = read_floats(at, 20000, nullptr);
        if (time) EXPECT(got == first);
        first = got;
    }
    double uniform = 0, normal = 0, squares = 0;
    for (int i = 0; i < 10000; i++) {
        EXPECT(first[i] > 0 && first[i] <= 1);
        uniform += first[i] / 1e4;
        normal += first[10000 + i] / 1e4;
        squares += first[10000 + i] * first[10000 + i] / 1e4;
    }
    /* Five standard errors. */
    EXPECT(std::fabs(uniform - 0.5) < 0.015 && std::fabs(normal - 1) < 0.1 && std::fabs(squares - 5) < 0.5);
}

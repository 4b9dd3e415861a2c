/* libcublas: checks a product as cuBLAS does, and queues it on the handle's stream. */
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <memory>
#include <vector>

#include "gemm.hpp"
#include "library.hpp"
#include "uses.hpp"

#define CARD_API extern "C" __attribute__((visibility("default")))

namespace {
enum Status { SUCCESS = 0, NOT_INITIALIZED = 1, ALLOC_FAILED = 3, INVALID_VALUE = 7, EXECUTION_FAILED = 13, NOT_SUPPORTED = 15 };
enum { OP_N = 0, OP_T = 1, OP_C = 2 };
enum { R_32F = 0, R_64F = 1, R_16F = 2, R_16BF = 14 };
enum { COMPUTE_16F = 64, COMPUTE_32F = 68, COMPUTE_32F_PEDANTIC = 69, COMPUTE_64F = 70, FAST_16F = 74, FAST_16BF = 75, FAST_TF32 = 77 };
const int OUT_OF_MEMORY = 2;
/* What cuBLAS takes for itself on cards before Hopper. */
const size_t WORKSPACE_BYTES = 4 << 20;
const size_t WANTED_ALIGNMENT = 16;

struct Handle {
    void* stream;
    uint64_t workspace;
};

/* The arguments of every entry. */
struct Call {
    const char* name;
    int transa, transb, m, n, k;
    const void *alpha, *a;
    int a_type, lda;
    long long stride_a;
    const void* b;
    int b_type, ldb;
    long long stride_b;
    const void *beta;
    void* c;
    int c_type, ldc;
    long long stride_c;
    int batch, compute;
};

bool type_of(int code, gemm::Type* type) {
    switch (code) {
        case R_32F: *type = gemm::F32; return true;
        case R_64F: *type = gemm::F64; return true;
        case R_16F: *type = gemm::F16; return true;
        case R_16BF: *type = gemm::BF16; return true;
        default: return false;
    }
}

/* nullptr, or why cuBLAS does not take these types together. */
const char* check_types(const Call& call, gemm::Product* product) {
    bool known = type_of(call.a_type, &product->a.type) && type_of(call.b_type, &product->b.type) && type_of(call.c_type, &product->c_type);
    if (!known || call.a_type != call.b_type) return "these types of A, B and C are not multiplied";
    bool half = call.a_type == R_16F || call.a_type == R_16BF;
    switch (call.compute) {
        case COMPUTE_64F: return call.a_type == R_64F && call.c_type == R_64F ? nullptr : "COMPUTE_64F is for f64";
        case COMPUTE_16F: return call.a_type == R_16F && call.c_type == R_16F ? nullptr : "COMPUTE_16F is for f16";
        case COMPUTE_32F:
        case COMPUTE_32F_PEDANTIC:
            if (!half && call.a_type != R_32F) return "COMPUTE_32F is not for f64";
            return call.c_type == R_32F || call.c_type == call.a_type ? nullptr : "C has another type than A, and is not f32";
        case FAST_16F:
        case FAST_16BF:
        case FAST_TF32: return call.a_type == R_32F && call.c_type == R_32F ? nullptr : "this compute type is for f32";
        default: return "the compute type is not known";
    }
}

const char* check_sizes(const Call& call) {
    static thread_local char why[160];
    auto wants = [](int transposed, int rows, int columns) { return std::max(1, transposed == OP_N ? rows : columns); };
    auto known = [](int operation) { return operation >= OP_N && operation <= OP_C; };
    if (!known(call.transa) || !known(call.transb)) return "transa or transb is none of cuBLAS's operations";
    if (call.m < 0 || call.n < 0 || call.k < 0 || call.batch < 0) return "a size is negative";
    int lda = wants(call.transa, call.m, call.k), ldb = wants(call.transb, call.k, call.n), ldc = std::max(1, call.m);
    if (call.lda < lda || call.ldb < ldb || call.ldc < ldc) {
        snprintf(why, sizeof why, "leading dimensions %d, %d, %d; at least %d, %d, %d for m %d, n %d, k %d", call.lda, call.ldb, call.ldc, lda, ldb, ldc, call.m, call.n, call.k);
        return why;
    }
    return nullptr;
}

/* A scalar by the type that sums have. */
double scalar(const void* at, int compute) {
    if (compute == COMPUTE_64F) return *static_cast<const double*>(at);
    if (compute == COMPUTE_16F) return card::Binary16::wide(*static_cast<const uint16_t*>(at));
    return *static_cast<const float*>(at);
}

gemm::Rounding rounding_of(int compute) {
    return compute == FAST_TF32 ? gemm::TO_TF32 : compute == FAST_16F ? gemm::TO_F16 : compute == FAST_16BF ? gemm::TO_BF16 : gemm::NONE;
}

struct Batch {
    gemm::Product product;
    long long stride_a, stride_b, stride_c;
    int count;
};

void run(void* data) {
    const Batch& batch = *static_cast<Batch*>(data);
    gemm::Product one = batch.product;
    for (int i = 0; i < batch.count; i++) {
        one.a.at = static_cast<const char*>(batch.product.a.at) + i * batch.stride_a * static_cast<long long>(gemm::width(one.a.type));
        one.b.at = static_cast<const char*>(batch.product.b.at) + i * batch.stride_b * static_cast<long long>(gemm::width(one.b.type));
        one.c = static_cast<char*>(batch.product.c) + i * batch.stride_c * static_cast<long long>(gemm::width(one.c_type));
        gemm::multiply(one);
    }
}

void drop(void* data) { delete static_cast<Batch*>(data); }

/* What cuBLAS says is undefined, or what a card faults at; the bytes of all matrices are noted in `uses`. */
const char* find_uses(const Call& call, const gemm::Product& p, std::vector<CardUse>* uses, bool* misaligned) {
    size_t width = gemm::width(p.a.type);
    card::Matrices a{call.a, p.a.transposed ? p.k : p.m, p.a.transposed ? p.m : p.k, p.a.leading, call.stride_a, call.batch, width};
    card::Matrices b{call.b, p.b.transposed ? p.n : p.k, p.b.transposed ? p.k : p.n, p.b.leading, call.stride_b, call.batch, width};
    card::Matrices c{call.c, p.m, p.n, p.c_leading, call.stride_c, call.batch, gemm::width(p.c_type)};
    if (overlap_each_other(c)) return "the products of a batch overlap";
    if (!aligned(a, width) || !aligned(b, width) || !aligned(c, c.width)) return "a matrix is not aligned to its elements";
    std::vector<CardUse> read = uses_of(a, false), of_b = uses_of(b, false), written = uses_of(c, true);
    read.insert(read.end(), of_b.begin(), of_b.end());
    if (card::overlap(written, read)) return "C has bytes that A or B have too, and a product is not formed in its place";
    *misaligned = width == 2 && !(aligned(a, WANTED_ALIGNMENT) && aligned(b, WANTED_ALIGNMENT) && aligned(c, WANTED_ALIGNMENT));
    *uses = read;
    /* C is not read when beta is 0. */
    if (p.beta != 0) {
        std::vector<CardUse> before = uses_of(c, false);
        uses->insert(uses->end(), before.begin(), before.end());
    }
    uses->insert(uses->end(), written.begin(), written.end());
    return nullptr;
}

int refuse(const Call& call, const char* wrong) {
    char text[256];
    snprintf(text, sizeof text, "%s: %s", call.name, wrong);
    card_refuse(text);
    return INVALID_VALUE;
}

int multiply(Handle* handle, const Call& call) {
    if (!handle) return NOT_INITIALIZED;
    gemm::Product p = {};
    const char* wrong = check_types(call, &p);
    if (!wrong) wrong = check_sizes(call);
    if (!wrong && (!call.alpha || !call.beta)) wrong = "no alpha, or no beta";
    if (wrong) return refuse(call, wrong);
    if (call.m == 0 || call.n == 0 || call.batch == 0) return SUCCESS;
    p.m = call.m, p.n = call.n, p.k = call.k;
    p.a = {call.a, p.a.type, static_cast<size_t>(call.lda), call.transa != OP_N};
    p.b = {call.b, p.b.type, static_cast<size_t>(call.ldb), call.transb != OP_N};
    p.c = call.c;
    p.c_leading = call.ldc;
    p.alpha = scalar(call.alpha, call.compute);
    p.beta = scalar(call.beta, call.compute);
    p.rounding = rounding_of(call.compute);
    std::vector<CardUse> uses;
    CardWork work = {};
    if ((wrong = find_uses(call, p, &uses, &work.misaligned))) return refuse(call, wrong);
    work.name = call.name;
    work.uses = uses.data();
    work.use_count = uses.size();
    work.run = run;
    work.drop = drop;
    work.data = new Batch{p, call.stride_a, call.stride_b, call.stride_c, call.batch};
    work.type = p.c_type == gemm::F64 ? "f64" : p.c_type == gemm::F32 ? "f32" : p.c_type == gemm::F16 ? "f16" : "bf16";
    work.flop = 2 * uint64_t{p.m} * p.n * std::max<uint64_t>(p.k, 1) * call.batch;
    return card_enqueue(handle->stream, &work) == 0 ? SUCCESS : EXECUTION_FAILED;
}
}  // namespace

CARD_API int cublasCreate_v2(Handle** handle) {
    auto made = std::make_unique<Handle>();
    made->stream = nullptr;
    if (int result = card_library_take(&made->workspace, WORKSPACE_BYTES)) return result == OUT_OF_MEMORY ? ALLOC_FAILED : NOT_INITIALIZED;
    *handle = made.release();
    return SUCCESS;
}

CARD_API int cublasDestroy_v2(Handle* handle) {
    if (!handle) return NOT_INITIALIZED;
    card_library_give(handle->workspace);
    delete handle;
    return SUCCESS;
}

CARD_API int cublasSetStream_v2(Handle* handle, void* stream) {
    if (!handle) return NOT_INITIALIZED;
    handle->stream = stream;
    return SUCCESS;
}

CARD_API int cublasGetStream_v2(Handle* handle, void** stream) {
    if (!handle) return NOT_INITIALIZED;
    *stream = handle->stream;
    return SUCCESS;
}

CARD_API int cublasSetWorkspace_v2(Handle* handle, void*, size_t) { return handle ? SUCCESS : NOT_INITIALIZED; }
CARD_API int cublasSetMathMode(Handle* handle, int) { return handle ? SUCCESS : NOT_INITIALIZED; }
/* Scalars are read from the host. */
CARD_API int cublasSetPointerMode_v2(Handle* handle, int mode) { return !handle ? NOT_INITIALIZED : mode == 0 ? SUCCESS : NOT_SUPPORTED; }

CARD_API int cublasGetVersion_v2(Handle*, int* version) {
    *version = 130000;
    return SUCCESS;
}

CARD_API int cublasGemmEx(Handle* handle, int transa, int transb, int m, int n, int k, const void* alpha, const void* a, int a_type, int lda, const void* b,
                          int b_type, int ldb, const void* beta, void* c, int c_type, int ldc, int compute, int) {
    return multiply(handle, {"cublasGemmEx", transa, transb, m, n, k, alpha, a, a_type, lda, 0, b, b_type, ldb, 0, beta, c, c_type, ldc, 0, 1, compute});
}

CARD_API int cublasGemmStridedBatchedEx(Handle* handle, int transa, int transb, int m, int n, int k, const void* alpha, const void* a, int a_type, int lda,
                                        long long stride_a, const void* b, int b_type, int ldb, long long stride_b, const void* beta, void* c, int c_type,
                                        int ldc, long long stride_c, int batch, int compute, int) {
    return multiply(handle, {"cublasGemmStridedBatchedEx", transa, transb, m, n, k, alpha, a, a_type, lda, stride_a, b, b_type, ldb, stride_b, beta, c, c_type,
                             ldc, stride_c, batch, compute});
}

CARD_API int cublasDgemmStridedBatched(Handle* handle, int transa, int transb, int m, int n, int k, const double* alpha, const double* a, int lda,
                                       long long stride_a, const double* b, int ldb, long long stride_b, const double* beta, double* c, int ldc,
                                       long long stride_c, int batch) {
    return multiply(handle, {"cublasDgemmStridedBatched", transa, transb, m, n, k, alpha, a, R_64F, lda, stride_a, b, R_64F, ldb, stride_b, beta, c, R_64F, ldc,
                             stride_c, batch, COMPUTE_64F});
}

CARD_API int cublasSgemmStridedBatched(Handle* handle, int transa, int transb, int m, int n, int k, const float* alpha, const float* a, int lda,
                                       long long stride_a, const float* b, int ldb, long long stride_b, const float* beta, float* c, int ldc,
                                       long long stride_c, int batch) {
    return multiply(handle, {"cublasSgemmStridedBatched", transa, transb, m, n, k, alpha, a, R_32F, lda, stride_a, b, R_32F, ldb, stride_b, beta, c, R_32F, ldc,
                             stride_c, batch, COMPUTE_32F});
}

CARD_API int cublasSgemm_v2(Handle* handle, int transa, int transb, int m, int n, int k, const float* alpha, const float* a, int lda, const float* b, int ldb,
                            const float* beta, float* c, int ldc) {
    return multiply(handle, {"cublasSgemm", transa, transb, m, n, k, alpha, a, R_32F, lda, 0, b, R_32F, ldb, 0, beta, c, R_32F, ldc, 0, 1, COMPUTE_32F});
}

CARD_API const char* cublasGetStatusName(int status) {
    switch (status) {
        case SUCCESS: return "CUBLAS_STATUS_SUCCESS";
        case NOT_INITIALIZED: return "CUBLAS_STATUS_NOT_INITIALIZED";
        case ALLOC_FAILED: return "CUBLAS_STATUS_ALLOC_FAILED";
        case INVALID_VALUE: return "CUBLAS_STATUS_INVALID_VALUE";
        case EXECUTION_FAILED: return "CUBLAS_STATUS_EXECUTION_FAILED";
        case NOT_SUPPORTED: return "CUBLAS_STATUS_NOT_SUPPORTED";
        default: return "CUBLAS_STATUS_INTERNAL_ERROR";
    }
}

CARD_API const char* cublasGetStatusString(int status) { return cublasGetStatusName(status); }

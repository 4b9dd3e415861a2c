/* What the tests of products share: cuBLAS's calls, and numbers of its types. */
#pragma once
#include <cstring>

#include "../../include/card_small_floats.h"
#include "card.hpp"

CARD_API int cublasCreate_v2(void**);
CARD_API int cublasDestroy_v2(void*);
CARD_API int cublasSetStream_v2(void*, CUstream);
CARD_API int cublasGemmEx(void*, int, int, int, int, int, const void*, const void*, int, int, const void*, int, int, const void*, void*, int, int, int, int);
CARD_API int cublasGemmStridedBatchedEx(void*, int, int, int, int, int, const void*, const void*, int, int, long long, const void*, int, int, long long,
                                        const void*, void*, int, int, long long, int, int, int);
CARD_API int cublasDgemmStridedBatched(void*, int, int, int, int, int, const double*, const double*, int, long long, const double*, int, long long,
                                       const double*, double*, int, long long, int);

enum { F32 = 0, F64 = 1, F16 = 2, BF16 = 14, COMPUTE_32F = 68, COMPUTE_64F = 70 };

inline size_t width(int type) { return type == F64 ? 8 : type == F32 ? 4 : 2; }

inline float held_as(int type, float value) {
    if (type == F16) return card::Binary16::wide(card::Binary16::of(value));
    return type == BF16 ? card::Brain16::wide(card::Brain16::of(value)) : value;
}

inline std::vector<unsigned char> bytes_of(const std::vector<float>& values, int type) {
    std::vector<unsigned char> bytes(values.size() * width(type));
    for (size_t i = 0; i < values.size(); i++) {
        uint16_t half = type == F16 ? card::Binary16::of(values[i]) : card::Brain16::of(values[i]);
        if (type == F32) memcpy(&bytes[i * 4], &values[i], 4);
        else memcpy(&bytes[i * 2], &half, 2);
    }
    return bytes;
}

inline std::vector<float> values_of(const std::vector<unsigned char>& bytes, int type) {
    std::vector<float> values(bytes.size() / width(type));
    for (size_t i = 0; i < values.size(); i++) {
        uint16_t half;
        memcpy(&half, &bytes[i * width(type)], 2);
        if (type == F32) memcpy(&values[i], &bytes[i * 4], 4);
        else values[i] = type == F16 ? card::Binary16::wide(half) : card::Brain16::wide(half);
    }
    return values;
}

inline CUdeviceptr upload(const std::vector<unsigned char>& bytes) {
    CUdeviceptr at = unwritten(bytes.size(), nullptr);
    OK(cuMemcpyHtoDAsync_v2(at, bytes.data(), bytes.size(), nullptr));
    return at;
}

inline std::vector<float> numbers(size_t count, unsigned seed, int type) {
    std::vector<float> values(count);
    for (float& value : values) {
        seed = seed * 1664525 + 1013904223;
        value = held_as(type, static_cast<float>(seed >> 8) / (1 << 23) - 1);
    }
    return values;
}

inline void* handle() {
    static void* made;
    if (!made) OK(static_cast<CUresult>(cublasCreate_v2(&made)));
    return made;
}

/* CUDA's fp8 of four exponent bits: no infinity, 448 at most, and what is larger becomes that. */
#pragma once
#include "cuda_bf16.h"
#include "cuda_fp16.h"

typedef unsigned char __nv_fp8_storage_t;
enum __nv_fp8_interpretation_t { __NV_E4M3 };

namespace card {
inline unsigned char float_to_e4m3(float value) {
    uint32_t bits = float_bits(value), sign = bits >> 24 & 0x80u, magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return 0x7f;
    if (magnitude >= 0x43e00000u) return (unsigned char)(sign | 0x7eu);
    /* Below 2^-6: adding 2^14 leaves the rounded multiple of 2^-9 in the low bits of the sum. */
    if (magnitude < 0x3c800000u) return (unsigned char)(sign | (float_bits(bits_float(magnitude) + 0x1p14f) - float_bits(0x1p14f)));
    return (unsigned char)(sign | ((magnitude + 0x7ffffu + (magnitude >> 20 & 1u) - 0x3c000000u) >> 20));
}
inline float e4m3_to_float(unsigned char bits) {
    float sign = bits & 0x80u ? -1.0f : 1.0f;
    int exponent = bits >> 3 & 0xf, mantissa = bits & 7;
    if (exponent == 0xf && mantissa == 7) return bits_float(0x7fffffffu);
    if (exponent == 0) return sign * (float)mantissa * 0x1p-9f;
    return sign * bits_float((uint32_t)(exponent + 120) << 23 | (uint32_t)mantissa << 20);
}
}  // namespace card

struct __nv_fp8_e4m3 {
    __nv_fp8_storage_t __x;

    constexpr __nv_fp8_e4m3() : __x() {}
    explicit __nv_fp8_e4m3(float value) : __x(card::float_to_e4m3(value)) {}
    explicit __nv_fp8_e4m3(double value) : __x(card::float_to_e4m3(card::round_to_odd(value))) {}
    explicit __nv_fp8_e4m3(__half value) : __nv_fp8_e4m3(value.wide()) {}
    explicit __nv_fp8_e4m3(__nv_bfloat16 value) : __nv_fp8_e4m3(value.wide()) {}
    explicit __nv_fp8_e4m3(int value) : __nv_fp8_e4m3((double)value) {}
    explicit __nv_fp8_e4m3(unsigned value) : __nv_fp8_e4m3((double)value) {}
    explicit __nv_fp8_e4m3(long value) : __nv_fp8_e4m3((float)value) {}
    explicit __nv_fp8_e4m3(unsigned long value) : __nv_fp8_e4m3((float)value) {}
    float wide() const { return card::e4m3_to_float(__x); }
    explicit operator float() const { return wide(); }
    explicit operator double() const { return wide(); }
    explicit operator __half() const { return __half(wide()); }
    explicit operator __nv_bfloat16() const { return __nv_bfloat16(wide()); }
    explicit operator bool() const { return wide() != 0.0f; }
};

inline __half_raw __nv_cvt_fp8_to_halfraw(__nv_fp8_storage_t bits, __nv_fp8_interpretation_t) {
    return __half_raw{__half(card::e4m3_to_float(bits)).__x};
}

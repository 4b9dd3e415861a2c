/* The conversions of the small floats, for floats.py. */
#include "cuda_fp8.h"

extern "C" {
#define CONVERSIONS(NAME, T)                                                                                        \
    void NAME##_half(const T* x, uint16_t* y, size_t n) { for (size_t i = 0; i < n; i++) y[i] = __half(x[i]).__x; }  \
    void NAME##_bf16(const T* x, uint16_t* y, size_t n) { for (size_t i = 0; i < n; i++) y[i] = __nv_bfloat16(x[i]).__x; } \
    void NAME##_e4m3(const T* x, uint8_t* y, size_t n) { for (size_t i = 0; i < n; i++) y[i] = __nv_fp8_e4m3(x[i]).__x; }
CONVERSIONS(f32, float)
CONVERSIONS(f64, double)
CONVERSIONS(i64, long)
CONVERSIONS(u32, unsigned)

#define PARTS(NAME, T)                                                                                               \
    void NAME##_wide(const uint16_t* x, float* y, size_t n) { for (size_t i = 0; i < n; i++) y[i] = T::from_bits(x[i]).wide(); }        \
    void NAME##_i64(const uint16_t* x, int64_t* y, size_t n) { for (size_t i = 0; i < n; i++) y[i] = (long)T::from_bits(x[i]); }         \
    void NAME##_u8(const uint16_t* x, uint8_t* y, size_t n) { for (size_t i = 0; i < n; i++) y[i] = (unsigned char)T::from_bits(x[i]); } \
    void NAME##_sum(const uint16_t* a, const uint16_t* b, uint16_t* y, size_t n) { for (size_t i = 0; i < n; i++) y[i] = (T::from_bits(a[i]) + T::from_bits(b[i])).__x; }     \
    void NAME##_product(const uint16_t* a, const uint16_t* b, uint16_t* y, size_t n) { for (size_t i = 0; i < n; i++) y[i] = (T::from_bits(a[i]) * T::from_bits(b[i])).__x; } \
    void NAME##_quotient(const uint16_t* a, const uint16_t* b, uint16_t* y, size_t n) { for (size_t i = 0; i < n; i++) y[i] = (T::from_bits(a[i]) / T::from_bits(b[i])).__x; }
PARTS(half, __half)
PARTS(bf16, __nv_bfloat16)
void e4m3_wide(const uint8_t* x, float* y, size_t n) { for (size_t i = 0; i < n; i++) y[i] = card::e4m3_to_float(x[i]); }
}

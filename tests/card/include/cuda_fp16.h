/* CUDA's half and half2. */
#pragma once
#include "card/device.hpp"
#include "card_small_floats.h"

typedef card::Small<card::Binary16> __half;
typedef card::SmallPair<card::Binary16> __half2;
typedef __half half;
typedef __half2 half2;

struct __half_raw {
    unsigned short x;
    operator __half() const { return __half::from_bits(x); }
};

CARD_SMALL_FUNCTIONS(__half, __half2)

inline float __half2float(__half value) { return value.wide(); }
inline __half __float2half(float value) { return __half(value); }
inline __half __float2half_rn(float value) { return __half(value); }
inline __half __double2half(double value) { return __half(value); }
inline __half2 make_half2(__half x, __half y) { return __half2(x, y); }
inline __half2 __halves2half2(__half x, __half y) { return __half2(x, y); }
inline __half2 __half2half2(__half x) { return __half2(x, x); }
inline __half2 __float2half2_rn(float x) { return __half2(__half(x), __half(x)); }
inline __half2 __floats2half2_rn(float x, float y) { return __half2(__half(x), __half(y)); }
inline __half2 __float22half2_rn(float2 v) { return __half2(__half(v.x), __half(v.y)); }
inline float2 __half22float2(__half2 v) { return make_float2(v.x.wide(), v.y.wide()); }
inline __half __low2half(__half2 v) { return v.x; }
inline __half __high2half(__half2 v) { return v.y; }
inline float __low2float(__half2 v) { return v.x.wide(); }
inline float __high2float(__half2 v) { return v.y.wide(); }
inline unsigned short __half_as_ushort(__half value) { return value.__x; }
inline __half __ushort_as_half(unsigned short bits) { return __half::from_bits(bits); }

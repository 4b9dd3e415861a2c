/* Floats of 16 and 8 bits: exact conversions, rounded to the nearest, ties to even, as a card rounds them. Sums, products, quotients
 * and roots are those of f32, which has more than twice as many bits: rounding twice is rounding once. */
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace card {
inline uint32_t float_bits(float value) {
    uint32_t bits;
    __builtin_memcpy(&bits, &value, 4);
    return bits;
}
inline float bits_float(uint32_t bits) {
    float value;
    __builtin_memcpy(&value, &bits, 4);
    return value;
}

/* To f32, cut off, with the last bit set where anything was: what is then rounded to fewer bits is rounded rightly. */
template <class Wide> inline float round_to_odd(Wide value) {
    float near = (float)value;
    if (!((Wide)near != value) || value != value) return near;
    uint32_t bits = float_bits(near);
    bool outward = std::fabs((long double)near) > std::fabs((long double)value);
    return bits_float((outward ? bits - 1 : bits) | 1u);
}

struct Binary16 {
    static uint16_t of(float value) {
        uint32_t bits = float_bits(value), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
        if (magnitude > 0x7f800000u) return 0x7fff;
        if (magnitude >= 0x47800000u) return (uint16_t)(sign | 0x7c00u);
        if (magnitude < 0x38800000u) {
            /* Below 2^-14: adding 0.5 leaves the rounded multiple of 2^-24 in the low bits of the sum. */
            return (uint16_t)(sign | (float_bits(bits_float(magnitude) + 0.5f) - 0x3f000000u));
        }
        return (uint16_t)(sign | ((magnitude + 0xfffu + (magnitude >> 13 & 1u) - 0x38000000u) >> 13));
    }
    static float wide(uint16_t bits) {
        uint32_t sign = (uint32_t)(bits & 0x8000u) << 16, exponent = bits >> 10 & 0x1fu, mantissa = bits & 0x3ffu;
        if (exponent == 0x1fu) return bits_float(sign | 0x7f800000u | mantissa << 13);
        if (exponent) return bits_float(sign | (exponent + 112u) << 23 | mantissa << 13);
        return bits_float(sign | float_bits((float)mantissa * 0x1p-24f));
    }
};

struct Brain16 {
    static uint16_t of(float value) {
        uint32_t bits = float_bits(value);
        if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
        return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
    }
    static float wide(uint16_t bits) { return bits_float((uint32_t)bits << 16); }
};

/* A number as any of CUDA's 16-bit types. */
template <class Format> struct Small {
    uint16_t __x;

    /* Constant, and not left open: static arrays of these need no guard then, and lie with those of other types. */
    constexpr Small() : __x() {}
    Small(float value) : __x(Format::of(value)) {}
    Small(double value) : __x(Format::of(round_to_odd(value))) {}
    Small(int value) : __x(Format::of(round_to_odd((double)value))) {}
    Small(unsigned value) : __x(Format::of(round_to_odd((double)value))) {}
    Small(long value) : __x(Format::of(round_to_odd((long double)value))) {}
    Small(unsigned long value) : __x(Format::of(round_to_odd((long double)value))) {}
    Small(long long value) : __x(Format::of(round_to_odd((long double)value))) {}
    Small(unsigned long long value) : __x(Format::of(round_to_odd((long double)value))) {}
    static Small from_bits(uint16_t bits) {
        Small out;
        out.__x = bits;
        return out;
    }

    float wide() const { return Format::wide(__x); }
    operator float() const { return wide(); }
    operator bool() const { return wide() != 0.0f; }
    operator signed char() const { return saturated<signed char>(); }
    operator char() const { return saturated<char>(); }
    operator unsigned char() const { return saturated<unsigned char>(); }
    operator short() const { return saturated<short>(); }
    operator unsigned short() const { return saturated<unsigned short>(); }
    operator int() const { return saturated<int>(); }
    operator unsigned() const { return saturated<unsigned>(); }
    operator long() const { return saturated<long>(); }
    operator unsigned long() const { return saturated<unsigned long>(); }
    operator long long() const { return saturated<long long>(); }
    operator unsigned long long() const { return saturated<unsigned long long>(); }

    friend Small operator+(Small a, Small b) { return Small(a.wide() + b.wide()); }
    friend Small operator-(Small a, Small b) { return Small(a.wide() - b.wide()); }
    friend Small operator*(Small a, Small b) { return Small(a.wide() * b.wide()); }
    friend Small operator/(Small a, Small b) { return Small(a.wide() / b.wide()); }
    friend Small& operator+=(Small& a, Small b) { return a = a + b; }
    friend Small& operator-=(Small& a, Small b) { return a = a - b; }
    friend Small& operator*=(Small& a, Small b) { return a = a * b; }
    friend Small& operator/=(Small& a, Small b) { return a = a / b; }
    friend Small operator-(Small a) { return from_bits(a.__x ^ 0x8000u); }
    friend Small operator+(Small a) { return a; }
    friend bool operator==(Small a, Small b) { return a.wide() == b.wide(); }
    friend bool operator!=(Small a, Small b) { return a.wide() != b.wide(); }
    friend bool operator<(Small a, Small b) { return a.wide() < b.wide(); }
    friend bool operator<=(Small a, Small b) { return a.wide() <= b.wide(); }
    friend bool operator>(Small a, Small b) { return a.wide() > b.wide(); }
    friend bool operator>=(Small a, Small b) { return a.wide() >= b.wide(); }

private:
    /* Toward zero, and to the nearest that there is; NaN becomes 0. */
    template <class T> T saturated() const {
        float value = wide();
        if (value != value) return 0;
        const bool is_signed = std::is_signed<T>::value;
        const float end = std::ldexp(1.0f, 8 * (int)sizeof(T) - is_signed);
        if (value >= end) return (T)(~0ull >> (64 - 8 * (int)sizeof(T) + is_signed));
        if (is_signed && value <= -end) return (T)(1ull << (8 * sizeof(T) - 1));
        if (!is_signed && value <= 0.0f) return 0;
        return (T)value;
    }
};

/* Two of them, which lie and move as one. */
template <class Format> struct alignas(4) SmallPair {
    Small<Format> x, y;

    constexpr SmallPair() {}
    SmallPair(Small<Format> x, Small<Format> y) : x(x), y(y) {}

    friend SmallPair operator+(SmallPair a, SmallPair b) { return SmallPair(a.x + b.x, a.y + b.y); }
    friend SmallPair operator-(SmallPair a, SmallPair b) { return SmallPair(a.x - b.x, a.y - b.y); }
    friend SmallPair operator*(SmallPair a, SmallPair b) { return SmallPair(a.x * b.x, a.y * b.y); }
    friend SmallPair operator/(SmallPair a, SmallPair b) { return SmallPair(a.x / b.x, a.y / b.y); }
};

/* a b + c, rounded once. */
template <class Format> inline Small<Format> fused(Small<Format> a, Small<Format> b, Small<Format> c) {
    return Small<Format>((double)a.wide() * (double)b.wide() + (double)c.wide());
}
}  // namespace card

/* The functions that both 16-bit types have under one name. */
#define CARD_SMALL_FUNCTIONS(T, PAIR)                                                                    \
    inline T __hadd(T a, T b) { return a + b; }                                                          \
    inline T __hsub(T a, T b) { return a - b; }                                                          \
    inline T __hmul(T a, T b) { return a * b; }                                                          \
    inline T __hdiv(T a, T b) { return a / b; }                                                          \
    inline T __hneg(T a) { return -a; }                                                                  \
    inline T __habs(T a) { return T::from_bits(a.__x & 0x7fffu); }                                       \
    inline T __hfma(T a, T b, T c) { return card::fused(a, b, c); }                                      \
    inline bool __hisnan(T a) { return a.wide() != a.wide(); }                                           \
    inline bool __hlt(T a, T b) { return a < b; }                                                        \
    inline bool __hgt(T a, T b) { return a > b; }                                                        \
    inline bool __heq(T a, T b) { return a == b; }                                                       \
    inline T __hmax(T a, T b) { return T(fmaxf(a.wide(), b.wide())); }                                   \
    inline T __hmin(T a, T b) { return T(fminf(a.wide(), b.wide())); }                                   \
    inline T __hmax_nan(T a, T b) { return __hisnan(a) || __hisnan(b) ? T::from_bits(0x7fff) : __hmax(a, b); } \
    inline T __hmin_nan(T a, T b) { return __hisnan(a) || __hisnan(b) ? T::from_bits(0x7fff) : __hmin(a, b); } \
    inline T hsqrt(T a) { return T(sqrtf(a.wide())); }                                                   \
    inline T hrsqrt(T a) { return T(1.0f / sqrtf(a.wide())); }                                           \
    inline T hrcp(T a) { return T(1.0f / a.wide()); }                                                    \
    inline T hexp(T a) { return T(expf(a.wide())); }                                                     \
    inline T hlog(T a) { return T(logf(a.wide())); }                                                     \
    inline T hcos(T a) { return T(cosf(a.wide())); }                                                     \
    inline T hsin(T a) { return T(sinf(a.wide())); }                                                     \
    inline T hfloor(T a) { return T(floorf(a.wide())); }                                                 \
    inline T hceil(T a) { return T(ceilf(a.wide())); }                                                   \
    inline PAIR __hadd2(PAIR a, PAIR b) { return a + b; }                                                \
    inline PAIR __hsub2(PAIR a, PAIR b) { return a - b; }                                                \
    inline PAIR __hmul2(PAIR a, PAIR b) { return a * b; }                                                \
    inline PAIR __h2div(PAIR a, PAIR b) { return a / b; }                                                \
    inline PAIR __hfma2(PAIR a, PAIR b, PAIR c) { return PAIR(__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)); } \
    inline T atomicAdd(T* at, T value) { return card::add_atomically<uint16_t>(at, value); }             \
    inline PAIR atomicAdd(PAIR* at, PAIR value) { return card::add_atomically<uint32_t>(at, value); }

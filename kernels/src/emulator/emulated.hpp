/* What the unit tests' kernels see in place of a card's: the same, with every index checked against its buffer's length. */
#pragma once
#include "device.hpp"
#include "registry.hpp"

#define EMULATED
#define __global__ __attribute__((noinline, used))
#define __launch_bounds__(...)

extern "C" {
[[noreturn]] void card_outside(long long index, long long len);
void* card_shared_at(long long offset, long long bytes);
}

inline void check(long long index, long long len) {
    if (index < 0 || index >= len) card_outside(index, len);
}
inline void* shared_at(long long offset, long long bytes) { return card_shared_at(offset, bytes); }
inline unsigned float_bits(float value) { return __float_as_uint(value); }
inline float bits_float(unsigned bits) { return __uint_as_float(bits); }

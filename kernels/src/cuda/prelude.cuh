/* What every kernel's text begins with: types, buffers, conversions, reductions. The same text is compiled by NVRTC for a card
 * and by a C++17 compiler for the emulator, so:
 *  - nothing is included, and of CUDA only this is used: threadIdx.x, blockIdx, blockDim.x, gridDim, __syncthreads,
 *    __syncwarp, __shfl_{,xor_,up_,down_}sync and __ballot_sync with all 32 lanes (FULL), atomicAdd, atomicMax and atomicMin on
 *    int, unsigned and unsigned long long, __popc, __clz, __ffs, __fmul_rn and __fadd_rn (a product and a sum that are not fused),
 *    and the functions of math.h that CUDA also has; of PTX what `mma`, `load_matrices` and `pack` at the end of this file are;
 *  - kernels are extern "C" __global__ void, with names that the C library does not have; their parameters are Floats, Buffer<T>,
 *    a Table of either, i64, int or float, and nothing else;
 *  - blocks are one-dimensional, whole warps, and all threads of a block meet at the same barriers: none returns before one;
 *  - shared memory is what shared<T>(offset, len) hands out of the launch's bytes; what nobody wrote there is not read;
 *  - every element of an output is written; inputs are not; what is changed in place is neither;
 *  - sums are formed in a fixed order: no atomics on floats, so that a run can be repeated bit for bit;
 *  - arithmetic is in f32, and in f64 where little is computed and much depends on it; bf16 and f16 are what is loaded and stored.
 */
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

enum { F32 = 0, BF16 = 1, F16 = 2, U8 = 3, U32 = 4, I64 = 5, F64 = 6 };
enum { WARP = 32 };
#define FULL 0xffffffffu

#ifndef EMULATED
/* The emulator has its own: these check bounds there. */
extern __shared__ float4 shared_memory[];
__device__ inline void* shared_at(i64 offset, i64) { return (u8*)shared_memory + offset; }
__device__ inline void check(i64, i64) {}
__device__ inline u32 float_bits(float value) { return __float_as_uint(value); }
__device__ inline float bits_float(u32 bits) { return __uint_as_float(bits); }
#endif

__device__ inline float infinity() { return bits_float(0x7f800000u); }

__device__ inline float bf16_to_float(u16 bits) { return bits_float((u32)bits << 16); }

/* To the nearest, ties to even; NaN stays NaN. */
__device__ inline u16 float_to_bf16(float value) {
    u32 bits = float_bits(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (u16)(bits >> 16 | 0x40u);
    return (u16)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

__device__ inline float f16_to_float(u16 bits) {
    u32 sign = (u32)(bits & 0x8000u) << 16, exponent = bits >> 10 & 0x1fu, mantissa = bits & 0x3ffu;
    if (exponent == 0x1fu) return bits_float(sign | 0x7f800000u | mantissa << 13 | (mantissa ? 0x400000u : 0u));
    if (exponent) return bits_float(sign | (exponent + 112u) << 23 | mantissa << 13);
    /* Subnormal: mantissa * 2^-24, exact in f32. */
    float magnitude = (float)mantissa * bits_float(103u << 23);
    return bits_float(sign | float_bits(magnitude));
}

/* To the nearest, ties to even; too large becomes infinity; NaN stays NaN. */
__device__ inline u16 float_to_f16(float value) {
    u32 bits = float_bits(value), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return (u16)(sign | 0x7e00u | (magnitude >> 13 & 0x3ffu));
    if (magnitude >= 0x47800000u) return (u16)(sign | 0x7c00u);
    if (magnitude < 0x38800000u) {
        /* Below 2^-14: adding 0.5 leaves the rounded multiple of 2^-24 in the low bits of the sum. */
        return (u16)(sign | (float_bits(bits_float(magnitude) + 0.5f) - 0x3f000000u));
    }
    return (u16)(sign | ((magnitude + 0xfffu + (magnitude >> 13 & 1u) - 0x38000000u) >> 13));
}

/* `value` as it reads after being stored as `dtype`. */
__device__ inline float round_to(float value, int dtype) {
    if (dtype == BF16) return bf16_to_float(float_to_bf16(value));
    if (dtype == F16) return f16_to_float(float_to_f16(value));
    return value;
}

/* A buffer as the host describes it in a table. */
struct alignas(16) Record {
    void* data;
    i64 len;
    int dtype;
};

/* Numbers of one type in global memory. */
template <class T> struct Buffer {
    T* data;
    i64 len;
    __device__ static Buffer of(const Record& record) { return Buffer{(T*)record.data, record.len}; }
    __device__ T& operator[](i64 i) const {
        check(i, len);
        return data[i];
    }
    /* Elements [at, at + size). */
    __device__ Buffer part(i64 at, i64 size) const {
        check(at, len + 1);
        check(at + size, len + 1);
        return Buffer{data + at, size};
    }
};

/* Four neighbouring floats. */
struct alignas(16) Four {
    float x, y, z, w;
};

/* Floats in global memory, of a type that is known when the kernel runs: all threads take the same branch. */
struct Floats {
    void* data;
    i64 len;
    int dtype;
    __device__ static Floats of(const Record& record) { return Floats{record.data, record.len, record.dtype}; }
    __device__ float load(i64 i) const {
        check(i, len);
        if (dtype == F32) return ((const float*)data)[i];
        u16 bits = ((const u16*)data)[i];
        return dtype == BF16 ? bf16_to_float(bits) : f16_to_float(bits);
    }
    __device__ void store(i64 i, float value) const {
        check(i, len);
        if (dtype == F32) ((float*)data)[i] = value;
        else ((u16*)data)[i] = dtype == BF16 ? float_to_bf16(value) : float_to_f16(value);
    }
    /* Elements i and i + 1 at once; i is even and the buffer is one that was allocated, not a part of one. */
    __device__ void store_pair(i64 i, float first, float second) const {
        check(i + 1, len);
        if (dtype == F32) {
            store(i, first);
            store(i + 1, second);
        } else if (dtype == BF16) {
            ((u32*)data)[i / 2] = (u32)float_to_bf16(second) << 16 | float_to_bf16(first);
        } else {
            ((u32*)data)[i / 2] = (u32)float_to_f16(second) << 16 | float_to_f16(first);
        }
    }
    /* Elements i to i + 3, in one access where they lie so. */
    __device__ Four load_four(i64 i) const {
        check(i, len - 3);
        const void* at = (const u8*)data + i * (dtype == F32 ? 4 : 2);
        if (dtype == F32 && (u64)at % 16 == 0) return *(const Four*)at;
        if (dtype == F32 || (u64)at % 8 != 0) return Four{load(i), load(i + 1), load(i + 2), load(i + 3)};
        u64 bits = *(const u64*)at;
        u16 a = (u16)bits, b = (u16)(bits >> 16), c = (u16)(bits >> 32), d = (u16)(bits >> 48);
        if (dtype == BF16) return Four{bf16_to_float(a), bf16_to_float(b), bf16_to_float(c), bf16_to_float(d)};
        return Four{f16_to_float(a), f16_to_float(b), f16_to_float(c), f16_to_float(d)};
    }
    __device__ void store_four(i64 i, Four v) const {
        store(i, v.x);
        store(i + 1, v.y);
        store(i + 2, v.z);
        store(i + 3, v.w);
    }
    __device__ float round(float value) const { return round_to(value, dtype); }
};

/* Many buffers of one launch, of unlike lengths: T is Floats or Buffer of something. */
template <class T> struct Table {
    const Record* records;
    i64 len;
    __device__ T operator[](i64 i) const {
        check(i, len);
        return T::of(records[i]);
    }
};

/* Numbers in the block's shared memory. */
template <class T> struct Shared {
    T* data;
    i64 len;
    __device__ T& operator[](i64 i) const {
        check(i, len);
        return data[i];
    }
};

/* `len` numbers from byte `offset` on, a multiple of their size. */
template <class T> __device__ inline Shared<T> shared(i64 offset, i64 len) {
    return Shared<T>{(T*)shared_at(offset, len * (i64)sizeof(T)), len};
}

__device__ inline int lane() { return threadIdx.x % WARP; }
__device__ inline int warp() { return threadIdx.x / WARP; }
__device__ inline int warps() { return blockDim.x / WARP; }
/* This thread's index among all of a grid along x. */
__device__ inline i64 global_index() { return (i64)blockIdx.x * blockDim.x + threadIdx.x; }

struct Sum {
    __device__ static float nothing() { return 0.0f; }
    template <class T> __device__ static T join(T a, T b) { return a + b; }
};
struct Max {
    __device__ static float nothing() { return -infinity(); }
    __device__ static float join(float a, float b) { return fmaxf(a, b); }
    __device__ static double join(double a, double b) { return fmax(a, b); }
};

/* Joins the values of a warp; every lane gets the same. */
template <class Op, class T> __device__ inline T warp_join(T value) {
    for (int step = WARP / 2; step > 0; step /= 2) value = Op::join(value, __shfl_xor_sync(FULL, value, step));
    return value;
}
template <class T> __device__ inline T warp_sum(T value) { return warp_join<Sum>(value); }
__device__ inline float warp_max(float value) { return warp_join<Max>(value); }

/* Joins the values of a block; every thread gets the same. `scratch` has room for WARP of them and may be used again at once. */
template <class Op, class T> __device__ inline T block_join(T value, Shared<T> scratch) {
    value = warp_join<Op>(value);
    __syncthreads();
    if (lane() == 0) scratch[warp()] = value;
    __syncthreads();
    return warp_join<Op>(lane() < warps() ? scratch[lane()] : (T)Op::nothing());
}
template <class T> __device__ inline T block_sum(T value, Shared<T> scratch) { return block_join<Sum>(value, scratch); }
template <class T> __device__ inline T block_max(T value, Shared<T> scratch) { return block_join<Max>(value, scratch); }

/* ---- Tensor cores. All 32 lanes of a warp call these together. ----
 *
 * An operand lies in the registers of the whole warp, two 16-bit floats to a register, the first in the low half. With
 * group = lane / 4 and pair = lane % 4 * 2, a lane has of
 *
 *   a [16, 16]    a[0]: row group, columns pair and pair + 1      a[1]: the same of row group + 8
 *                 a[2]: row group, columns pair + 8 and pair + 9   a[3]: the same of row group + 8
 *   b [16, 8]     b0: rows pair and pair + 1 of column group       b1: rows pair + 8 and pair + 9 of column group
 *   sum [16, 8]   sum[0], sum[1]: row group, columns pair and pair + 1     sum[2], sum[3]: the same of row group + 8
 *
 * So a sum, rounded and packed, is one half of an `a` as it lies: of columns 0 to 7 or 8 to 15. */

/* Eight 16-bit floats, as their bits. */
struct alignas(16) Eight {
    u32 x, y, z, w;
};

/* The two floats as 16 bits each, `first` in the low half; to the nearest, ties to even. */
template <int DTYPE> __device__ inline u32 pack(float first, float second) {
#if !defined(CARD_IN_SOFTWARE) && __CUDA_ARCH__ >= 800
    u32 bits;
    if (DTYPE == BF16) asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(second), "f"(first));
    else asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(second), "f"(first));
    return bits;
#else
    if (DTYPE == BF16) return (u32)float_to_bf16(second) << 16 | float_to_bf16(first);
    return (u32)float_to_f16(second) << 16 | float_to_f16(first);
#endif
}

/* sum += a b. Products are exact; how a card rounds and orders their sum is its own affair. */
template <int DTYPE> __device__ inline void mma(float (&sum)[4], const u32 (&a)[4], u32 b0, u32 b1) {
#if defined(CARD_IN_SOFTWARE)
    card::multiply(DTYPE == BF16 ? card::PRODUCT_BF16 : card::PRODUCT_F16, sum, a, b0, b1);
#elif __CUDA_ARCH__ >= 800
#define MMA(TYPE)                                                                                                          \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." TYPE "." TYPE ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};" \
                 : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])                                                  \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))
    if (DTYPE == BF16) MMA("bf16");
    else MMA("f16");
#undef MMA
#else
    /* Compute capability 7.5 has no bf16, and f16 in two halves. */
    if (DTYPE == BF16) __trap();
#define HALF(FIRST, SECOND, B)                                                                                             \
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"           \
                 : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])                                                  \
                 : "r"(FIRST), "r"(SECOND), "r"(B))
    HALF(a[0], a[1], b0);
    HALF(a[2], a[3], b1);
#undef HALF
#endif
}

/* Four matrices of 8 x 8 numbers of 16 bits from shared memory: lane l says where row l % 8 of matrix l / 8 lies, and part[m] gets of
 * matrix m elements pair and pair + 1 of row group; of column group where TRANSPOSED. */
template <bool TRANSPOSED> __device__ inline void load_matrices(const Eight& row, u32 (&part)[4]) {
#if defined(CARD_IN_SOFTWARE)
    card::load_matrices(TRANSPOSED ? card::MATRICES_TRANSPOSED : card::MATRICES, &row, part);
#else
    u32 at = (u32)__cvta_generic_to_shared(&row);
#define LOAD(HOW)                                                                                                 \
    asm volatile("ldmatrix.sync.aligned.m8n8.x4" HOW ".shared.b16 {%0,%1,%2,%3}, [%4];"                           \
                 : "=r"(part[0]), "=r"(part[1]), "=r"(part[2]), "=r"(part[3])                                     \
                 : "r"(at)                                                                                        \
                 : "memory")
    if (TRANSPOSED) LOAD(".trans");
    else LOAD("");
#undef LOAD
#endif
}

/* Four-bit matrices in bitsandbytes' layout, unpacked into scratch for one product.
 *
 * A warp takes one block of elements that share a scale. Its lanes hold the 16 values that codes of this block stand for,
 * and a code is looked up by asking the lane of that number. */

/* Elements block * block_size on, `to` elements further in out, an even number: round(table[code] * scale), as the type that the matrix had before it was quantised. */
__device__ inline void decode_block(Buffer<u8> codes, Buffer<float> table, float scale, i64 block_size, int rounding, i64 len, Floats out, i64 to) {
    float value = round_to(__fmul_rn(table[lane() % 16], scale), rounding);
    i64 first = global_index() / WARP * block_size;
    for (i64 step = 2 * lane(); step - 2 * lane() < block_size; step += 2 * WARP) {
        i64 i = first + step;
        bool inside = step < block_size && i < len;
        int code = inside ? codes[i / 2] : 0;
        float high = __shfl_sync(FULL, value, code >> 4), low = __shfl_sync(FULL, value, code & 15);
        if (inside && i + 1 < len) out.store_pair(to + i, high, low);
        else if (inside) out.store(to + i, high);
    }
}

/* Scales in 8 bits: map[scale code] * absmax of the scale's own block + offset, product and sum rounded one after the other. */
extern "C" __global__ void dequantize_nested(Buffer<u8> codes, Buffer<float> table, Buffer<u8> scales, Buffer<float> map,
                                             Buffer<float> absmax, i64 nested_size, float offset, i64 block_size, int rounding,
                                             i64 len, Floats out, i64 to) {
    i64 block = global_index() / WARP;
    if (block * block_size >= len) return;
    float scale = __fadd_rn(__fmul_rn(map[scales[block]], absmax[(u32)block / (u32)nested_size]), offset);
    decode_block(codes, table, scale, block_size, rounding, len, out, to);
}

/* Scales in f32. */
extern "C" __global__ void dequantize_plain(Buffer<u8> codes, Buffer<float> table, Buffer<float> absmax, i64 block_size, int rounding,
                                            i64 len, Floats out, i64 to) {
    i64 block = global_index() / WARP;
    if (block * block_size >= len) return;
    decode_block(codes, table, absmax[block], block_size, rounding, len, out, to);
}

struct alignas(16) Words {
    u32 words[4];
};

/* Elements i to i + 7 of out; i is a multiple of 8. 16 bits in one access where they lie so. */
__device__ inline void store_eight(Floats out, i64 i, const float* values) {
    check(i + 7, out.len);
    u8* to = (u8*)out.data + 2 * i;
    if (out.dtype == F32 || (u64)to % sizeof(Words) != 0) {
        for (int at = 0; at < 8; at++) out.store(i + at, values[at]);
        return;
    }
    Words packed;
    for (int pair = 0; pair < 4; pair++) {
        float first = values[2 * pair], second = values[2 * pair + 1];
        u32 low = out.dtype == BF16 ? float_to_bf16(first) : float_to_f16(first);
        u32 high = out.dtype == BF16 ? float_to_bf16(second) : float_to_f16(second);
        packed.words[pair] = high << 16 | low;
    }
    *(Words*)to = packed;
}

/* A matrix with scales in 8 bits. */
struct Nested {
    Buffer<u8> codes, scales;
    Buffer<float> map, absmax;
    float offset;
    /* Elements at to at + 7, which share a scale, into out from `to` on. */
    __device__ void unpack(i64 at, i64 block_size, i64 nested_size, int rounding, Shared<float> values, Floats out, i64 to) const {
        i64 block = at / block_size;
        float scale = __fadd_rn(__fmul_rn(map[scales[block]], absmax[(u32)block / (u32)nested_size]), offset);
        check(at / 2 + 3, codes.len);
        const u8* bytes = codes.data + at / 2;
        u32 word;
        if ((u64)bytes % 4 == 0) word = *(const u32*)bytes;
        else word = (u32)bytes[3] << 24 | (u32)bytes[2] << 16 | (u32)bytes[1] << 8 | bytes[0];
        float unpacked[8];
        for (int byte = 0; byte < 4; byte++) {
            u32 pair = word >> 8 * byte & 255u;
            unpacked[2 * byte] = round_to(__fmul_rn(values[pair >> 4], scale), rounding);
            unpacked[2 * byte + 1] = round_to(__fmul_rn(values[pair & 15u], scale), rounding);
        }
        store_eight(out, to, unpacked);
    }
};

/* Up to three matrices, one below the other: what stands in one product. A thread takes eight elements; lengths and blocks are whole
 * eights, and a matrix that is not there has length 0. */
extern "C" __global__ void dequantize_three(Buffer<u8> codes0, Buffer<u8> scales0, Buffer<float> map0, Buffer<float> absmax0, float offset0,
                                            i64 len0, Buffer<u8> codes1, Buffer<u8> scales1, Buffer<float> map1, Buffer<float> absmax1,
                                            float offset1, i64 len1, Buffer<u8> codes2, Buffer<u8> scales2, Buffer<float> map2,
                                            Buffer<float> absmax2, float offset2, i64 len2, Buffer<float> table, i64 block_size,
                                            i64 nested_size, int rounding, Floats out) {
    Shared<float> values = shared<float>(0, 16);
    if (threadIdx.x < 16) values[threadIdx.x] = table[threadIdx.x];
    __syncthreads();
    i64 to = 8 * global_index(), at = to;
    if (at < len0) Nested{codes0, scales0, map0, absmax0, offset0}.unpack(at, block_size, nested_size, rounding, values, out, to);
    else if ((at -= len0) < len1) Nested{codes1, scales1, map1, absmax1, offset1}.unpack(at, block_size, nested_size, rounding, values, out, to);
    else if ((at -= len1) < len2) Nested{codes2, scales2, map2, absmax2, offset2}.unpack(at, block_size, nested_size, rounding, values, out, to);
}

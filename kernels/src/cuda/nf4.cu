/* Four-bit matrices in bitsandbytes' layout, unpacked into scratch for one product.
 *
 * A warp takes one block of elements that share a scale. Its lanes hold the 16 values that codes of this block stand for,
 * and a code is looked up by asking the lane of that number. */

/* Elements block * block_size on: round(table[code] * scale), as the type that the matrix had before it was quantised. */
__device__ inline void decode_block(Buffer<u8> codes, Buffer<float> table, float scale, i64 block_size, int rounding, i64 len, Floats out) {
    float value = round_to(__fmul_rn(table[lane() % 16], scale), rounding);
    i64 first = global_index() / WARP * block_size;
    for (i64 step = 2 * lane(); step - 2 * lane() < block_size; step += 2 * WARP) {
        i64 i = first + step;
        bool inside = step < block_size && i < len;
        int code = inside ? codes[i / 2] : 0;
        float high = __shfl_sync(FULL, value, code >> 4), low = __shfl_sync(FULL, value, code & 15);
        if (inside && i + 1 < len) out.store_pair(i, high, low);
        else if (inside) out.store(i, high);
    }
}

/* Scales in 8 bits: map[scale code] * absmax of the scale's own block + offset, product and sum rounded one after the other. */
extern "C" __global__ void dequantize_nested(Buffer<u8> codes, Buffer<float> table, Buffer<u8> scales, Buffer<float> map,
                                             Buffer<float> absmax, i64 nested_size, float offset, i64 block_size, int rounding,
                                             i64 len, Floats out) {
    i64 block = global_index() / WARP;
    if (block * block_size >= len) return;
    float scale = __fadd_rn(__fmul_rn(map[scales[block]], absmax[(u32)block / (u32)nested_size]), offset);
    decode_block(codes, table, scale, block_size, rounding, len, out);
}

/* Scales in f32. */
extern "C" __global__ void dequantize_plain(Buffer<u8> codes, Buffer<float> table, Buffer<float> absmax, i64 block_size, int rounding,
                                            i64 len, Floats out) {
    i64 block = global_index() / WARP;
    if (block * block_size >= len) return;
    decode_block(codes, table, absmax[block], block_size, rounding, len, out);
}

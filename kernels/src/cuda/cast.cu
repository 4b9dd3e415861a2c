/* Many tensors in another type, in one launch. */

/* to[tensor] = from[tensor], element by element, rounded to its type; blockIdx.y of them. */
extern "C" __global__ void cast_many(Table<Floats> from, Table<Floats> to) {
    Floats x = from[blockIdx.y], out = to[blockIdx.y];
    for (i64 i = global_index(); i < out.len; i += (i64)gridDim.x * blockDim.x) out.store(i, x.load(i));
}

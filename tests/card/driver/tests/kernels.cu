/* Kernels of the tests. */
template <class T> struct Buffer {
    T* data;
    long long len;
};
struct Floats {
    void* data;
    long long len;
    int dtype;
};

extern "C" __global__ void add(float* to, const float* from, long long count) {
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) to[i] += from[i];
}

extern "C" __global__ void set(float* to, float value, long long count) {
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) to[i] = value;
}

extern "C" __global__ void __launch_bounds__(64) bound(float* to) { to[threadIdx.x] = 0; }

extern "C" __global__ void buffers(Buffer<float> to, Floats from) {
    long long i = threadIdx.x;
    if (i < to.len) to.data[i] = ((const float*)from.data)[i];
}

extern "C" __global__ void optional(float* to, const float* maybe) { to[threadIdx.x] = maybe ? maybe[threadIdx.x] : 1; }

extern "C" __global__ void shared_reverse(float* to) {
    extern __shared__ float held[];
    held[threadIdx.x] = threadIdx.x;
    __syncthreads();
    to[threadIdx.x] = held[blockDim.x - 1 - threadIdx.x];
}

extern "C" __global__ void shared_race(float* to) {
    extern __shared__ float held[];
    held[threadIdx.x] = 0;
    __syncthreads();
    held[threadIdx.x] = threadIdx.x;
    to[threadIdx.x] = held[blockDim.x - 1 - threadIdx.x];
}

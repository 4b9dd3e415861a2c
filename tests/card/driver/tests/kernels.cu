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

/* Blocks and threads at one place of the card's memory. */
extern "C" __global__ void all_write(float* to) {
    if (threadIdx.x == 0) to[0] = blockIdx.x;
}

extern "C" __global__ void all_write_one(float* to) { to[0] = 1; }
extern "C" __global__ void threads_write_one(float* to) { to[0] = threadIdx.x; }

extern "C" __global__ void shift_in_place(float* to, long long count) {
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    float next = i + 1 < count ? to[i + 1] : 0;
    __syncthreads();
    if (i < count) to[i] = next;
}

extern "C" __global__ void read_by_all_and_written_by_one(float* to, float* sums) {
    if (threadIdx.x != 0) return;
    sums[blockIdx.x] = to[0];
    if (blockIdx.x == gridDim.x / 2) to[0] = 1;
}

extern "C" __global__ void reverse_in_place(float* to, int barrier) {
    float other = to[blockIdx.x * blockDim.x + blockDim.x - 1 - threadIdx.x];
    if (barrier) __syncthreads();
    to[blockIdx.x * blockDim.x + threadIdx.x] = other;
}

extern "C" __global__ void add_up(float* to, unsigned* done, float* sum) {
    __shared__ unsigned before;
    to[blockIdx.x * blockDim.x + threadIdx.x] = 1;
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        before = atomicAdd(done, 1u);
    }
    __syncthreads();
    if (before + 1 < gridDim.x || threadIdx.x != 0) return;
    float all = 0;
    for (unsigned i = 0; i < gridDim.x * blockDim.x; i++) all += to[i];
    *sum = all;
}

extern "C" __global__ void add_up_too_soon(float* to, unsigned* done, float* sum) {
    to[blockIdx.x * blockDim.x + threadIdx.x] = 1;
    __syncthreads();
    if (blockIdx.x + 1 < gridDim.x || threadIdx.x != 0) return;
    float all = 0;
    for (unsigned i = 0; i < gridDim.x * blockDim.x; i++) all += to[i];
    *sum = all;
    atomicAdd(done, 1u);
}

/* Three elements a block: those of two blocks share a word. */
template <class T> __device__ void mark_three(T* to, unsigned apart) {
    unsigned at = blockIdx.x * apart + threadIdx.x;
    if (threadIdx.x < 3) to[at] = (T)(blockIdx.x * 3 + threadIdx.x + 1);
}
extern "C" __global__ void threes_of_bytes(unsigned char* to, unsigned apart) { mark_three(to, apart); }
extern "C" __global__ void threes_of_halves(unsigned short* to, unsigned apart) { mark_three(to, apart); }

extern "C" __global__ void exchange_in_warp(unsigned* to) {
    to[threadIdx.x] = threadIdx.x;
    __syncwarp();
    unsigned other = to[threadIdx.x ^ 1];
    __syncwarp();
    to[threadIdx.x] = other;
}

struct alignas(16) Record {
    void* data;
    long long len;
    int dtype;
};
template <class T> struct Row {
    T* data;
    long long len;
    static __device__ Row of(const Record& record) { return {(T*)record.data, record.len}; }
};
template <class T> struct Table {
    const Record* records;
    long long len;
    __device__ T operator[](long long i) const { return T::of(records[i]); }
};
extern "C" __global__ void double_many(Table<Row<float>> all) {
    Row<float> one = all[blockIdx.x];
    for (long long i = threadIdx.x; i < one.len; i += blockDim.x) one.data[i] *= 2;
}
extern "C" __global__ void join_many(Table<Row<float>> all) {
    if (threadIdx.x == 0) all[0].data[0] = all[blockIdx.x].len;
}

extern "C" __global__ void write_through_const(const float* from) { ((float*)from)[threadIdx.x] = 1; }

extern "C" __global__ void far_read(float* to, const float* from, long long by) { to[threadIdx.x] = from[by + threadIdx.x]; }
extern "C" __global__ void read_past_row(Table<Row<float>> all, float* to) { to[threadIdx.x] = all[0].data[threadIdx.x]; }
extern "C" __global__ void copy_100(char* to, const char* from) { memcpy(to, from, 100); }
extern "C" __global__ void copy_wide(float* to, const float* from, int bytes) { memcpy(to, from + blockIdx.x * 32, bytes); }

extern "C" __global__ void warp_leader(float* to, float* sums) {
    sums[threadIdx.x] = to[0];
    __syncwarp();
    if (threadIdx.x == 1) to[0] += 1;
}
extern "C" __global__ void swap_by_shuffle(float* to) {
    float other = to[threadIdx.x ^ 1];
    __shfl_sync(0xffffffffu, other, 0);
    to[threadIdx.x] = other;
}

struct Three {
    unsigned long long x[3];
};
extern "C" __global__ void copy_three(Three* to, const Three* from) { to[threadIdx.x] = from[threadIdx.x]; }

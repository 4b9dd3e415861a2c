/* What the tests call of the card, and how they are told apart. */
#pragma once
#include <cstdio>
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include "../cuda_types.hpp"

CARD_API CUresult cuInit(unsigned);
CARD_API CUresult cuDeviceGet(CUdevice*, int);
CARD_API CUresult cuDeviceGetDefaultMemPool(CUmemoryPool*, CUdevice);
CARD_API CUresult cuDevicePrimaryCtxRetain(CUcontext*, CUdevice);
CARD_API CUresult cuDevicePrimaryCtxRelease_v2(CUdevice);
CARD_API CUresult cuCtxSetCurrent(CUcontext);
CARD_API CUresult cuCtxSynchronize();
CARD_API CUresult cuStreamCreate(CUstream*, unsigned);
CARD_API CUresult cuStreamDestroy_v2(CUstream);
CARD_API CUresult cuStreamSynchronize(CUstream);
CARD_API CUresult cuStreamQuery(CUstream);
CARD_API CUresult cuStreamWaitEvent(CUstream, CUevent, unsigned);
CARD_API CUresult cuEventCreate(CUevent*, unsigned);
CARD_API CUresult cuEventRecord(CUevent, CUstream);
CARD_API CUresult cuEventQuery(CUevent);
CARD_API CUresult cuEventSynchronize(CUevent);
CARD_API CUresult cuEventElapsedTime(float*, CUevent, CUevent);
CARD_API CUresult cuEventDestroy_v2(CUevent);
CARD_API CUresult cuMemAlloc_v2(CUdeviceptr*, size_t);
CARD_API CUresult cuMemFree_v2(CUdeviceptr);
CARD_API CUresult cuMemAllocAsync(CUdeviceptr*, size_t, CUstream);
CARD_API CUresult cuMemFreeAsync(CUdeviceptr, CUstream);
CARD_API CUresult cuMemGetInfo_v2(size_t*, size_t*);
CARD_API CUresult cuMemPoolTrimTo(CUmemoryPool, size_t);
CARD_API CUresult cuMemPoolSetAttribute(CUmemoryPool, int, void*);
CARD_API CUresult cuMemPoolGetAttribute(CUmemoryPool, int, void*);
CARD_API CUresult cuMemHostAlloc(void**, size_t, unsigned);
CARD_API CUresult cuMemFreeHost(void*);
CARD_API CUresult cuMemHostRegister_v2(void*, size_t, unsigned);
CARD_API CUresult cuMemHostUnregister(void*);
CARD_API CUresult cuMemcpyHtoD_v2(CUdeviceptr, const void*, size_t);
CARD_API CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr, const void*, size_t, CUstream);
CARD_API CUresult cuMemcpyDtoHAsync_v2(void*, CUdeviceptr, size_t, CUstream);
CARD_API CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr, CUdeviceptr, size_t, CUstream);
CARD_API CUresult cuMemsetD8Async(CUdeviceptr, unsigned char, size_t, CUstream);
CARD_API CUresult cuMemsetD32Async(CUdeviceptr, unsigned, size_t, CUstream);
CARD_API CUresult cuModuleLoad(CUmodule*, const char*);
CARD_API CUresult cuModuleLoadData(CUmodule*, const void*);
CARD_API CUresult cuModuleUnload(CUmodule);
CARD_API CUresult cuModuleGetFunction(CUfunction*, CUmodule, const char*);
CARD_API CUresult cuFuncSetAttribute(CUfunction, int, int);
CARD_API CUresult cuFuncGetParamInfo(CUfunction, size_t, size_t*, size_t*);
CARD_API CUresult cuLaunchKernel(CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, CUstream, void**, void**);
CARD_API CUresult cuLaunchHostFunc(CUstream, CUhostFn, void*);
CARD_API CUresult cuGetErrorName(CUresult, const char**);
CARD_API CUresult cuGetErrorString(CUresult, const char**);

/* A test runs in a process of its own. */
struct Case {
    const char* name;
    /* What the refusal must say; nullptr when the process must end well. */
    const char* refusal;
    std::vector<std::pair<const char*, const char*>> environment;
    void (*run)();
};
std::vector<Case>& cases();
struct Registered {
    Registered(Case test) { cases().push_back(std::move(test)); }
};

#define CASE_IN(name, refusal, ...)                                     \
    static void name();                                                 \
    static Registered register_##name({#name, refusal, {__VA_ARGS__}, name}); \
    static void name()
#define LEGAL(name, ...) CASE_IN(name, nullptr, __VA_ARGS__)
#define REFUSED(name, words) CASE_IN(name, words)

#define EXPECT(condition)                                                        \
    do {                                                                         \
        if (!(condition)) {                                                      \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);      \
            exit(1);                                                             \
        }                                                                        \
    } while (0)
#define OK(call) EXPECT((call) == CUDA_SUCCESS)

/* A context, current on this thread; the process's end gives it back. */
CUcontext open_card();
CUstream new_stream(unsigned flags = STREAM_NON_BLOCKING);
CUevent new_event();
CUfunction kernel(const char* name);
/* `count` floats on the card, all of this value, on this stream. */
CUdeviceptr floats(size_t count, float value, CUstream stream);
CUdeviceptr unwritten(size_t bytes, CUstream stream);
std::vector<float> read_floats(CUdeviceptr at, size_t count, CUstream stream);
/* One block of `threads` with these arguments. */
CUresult launch(const char* name, CUstream stream, unsigned threads, std::vector<void*> arguments);
/* to[i] += from[i] for i < count. */
CUresult add(CUdeviceptr to, CUdeviceptr from, long long count, CUstream stream);
size_t free_bytes();

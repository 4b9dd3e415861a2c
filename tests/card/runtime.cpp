/* libcudart: programs link it and call nothing of it but to ask whether it is there. */
#define CARD_API extern "C" __attribute__((visibility("default")))

CARD_API int cudaRuntimeGetVersion(int* version) {
    *version = 13000;
    return 0;
}

/* cudaErrorNotSupported: the card is used through the driver. */
CARD_API int cudaMalloc(void**, unsigned long) { return 801; }
CARD_API int cudaFree(void*) { return 801; }
CARD_API int cudaDeviceSynchronize() { return 801; }
CARD_API int cudaGetLastError() { return 801; }
CARD_API const char* cudaGetErrorString(int) { return "the software card is used through the driver"; }

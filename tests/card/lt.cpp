/* libcublasLt: programs link it and call nothing of it. */
extern "C" __attribute__((visibility("default"))) unsigned long cublasLtGetVersion() { return 130000; }

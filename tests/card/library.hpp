/* What the driver offers the libraries that queue work of their own: cuBLAS and cuRAND. */
#pragma once
#include <cstddef>
#include <cstdint>

/* Rows of bytes in the card's memory, each `stride` after the other. */
struct CardUse {
    const void* at;
    size_t bytes, rows, stride;
    bool writes;
};

struct CardWork {
    const char* name;
    const CardUse* uses;
    size_t use_count;
    /* Runs when the stream comes to it, after the uses were checked; `drop` follows in any case. */
    void (*run)(void* data);
    void (*drop)(void* data);
    void* data;
    /* Of what it writes: "f32", "f64", "bf16" or "f16". */
    const char* type;
    uint64_t flop;
    bool misaligned;
};

extern "C" {
/* 0, or a CUresult. */
int card_enqueue(void* stream, const CardWork* work);
/* Refuses a call by name: does not return, unless CARD_REFUSE=error. */
void card_refuse(const char* what);
/* Memory that a library takes for itself. */
int card_library_take(uint64_t* at, size_t bytes);
void card_library_give(uint64_t at);
}

/* What a compiled module exports: its kernels, each with what its parameters are, and where its static shared memory lies.
 *
 * A module is an ELF shared object. As "PTX" it is text: TEXT_HEADER, a line for each entry for people, and the ELF in base64. */
#pragma once
#include <cstddef>
#include <cstdint>

/* The first line of a module as text. */
#define CARD_TEXT_HEADER "// card module 1"

enum CardKind : uint32_t {
    CARD_NUMBER = 0,
    CARD_POINTER = 1,
    /* {pointer; int64 length in elements} at the beginning of the parameter. */
    CARD_BUFFER = 2,
    /* {pointer; int64 length in elements; int32 dtype: 0 f32, 1 bf16, 2 f16}. */
    CARD_FLOATS = 3,
    /* {pointer to records; int64 how many}; a record is CARD_RECORD_BYTES and begins like CARD_FLOATS. `element` and `arithmetic` are
     * those of the buffers that the records describe. */
    CARD_TABLE = 4,
    CARD_FLOATS_TABLE = 5,
};

enum { CARD_RECORD_BYTES = 32 };

/* Of a number, or of the elements that a pointer points to. */
enum CardClass : uint32_t { CARD_OTHER = 0, CARD_FLOAT = 1, CARD_SIGNED = 2, CARD_UNSIGNED = 3 };

struct CardParameter {
    uint32_t offset;  // among the parameters, as a card lays them out
    uint32_t size;
    uint32_t kind;        // CardKind
    uint32_t element;     // bytes of what the pointer points to; 1 where that is not known
    uint32_t readonly;    // a pointer to const
    uint32_t arithmetic;  // CardClass
};

struct CardEntry {
    const char* name;
    uint32_t max_threads;  // of __launch_bounds__, else 1024
    uint32_t count;
    const CardParameter* parameters;
    /* The body of one thread, which threadIdx and the like name. parameters[i] points to the i-th argument. */
    void (*run)(void* const* parameters);
};

extern "C" {
typedef const CardEntry* (*CardEntries)(size_t* count);  // "card_entries"
typedef void (*CardShared)(void** begin, size_t* len);   // "card_shared": the module's .bss, its static __shared__ arrays
}

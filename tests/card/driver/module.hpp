/* Modules that were loaded, and their functions. */
#pragma once
#include <string>
#include <unordered_map>
#include <vector>

#include "../module.hpp"
#include "state.hpp"

namespace card {
/* A shared object; loaded once, whatever often its text is. */
struct Code {
    const CardEntry* entries;
    size_t count;
    void* static_shared;
    size_t static_len;
    std::unordered_map<std::string, size_t> index;
};

struct Module;

struct Function {
    Module* module;
    const CardEntry* entry;
    unsigned dynamic_shared_max;
    /* In counts.launches. */
    uint64_t* tally;

    const Code& code() const;
};

struct Module {
    Code* code;
    bool loaded = true;
    std::vector<Function> functions;
};
inline const Code& Function::code() const { return *module->code; }

/* nullptr when there is no such function, or its module was unloaded. */
Function* find_function(CUfunction handle);
}  // namespace card

/* A card that is nothing but memory, and modules that run on it: for tests of the compiler and the engine without a driver. */
#pragma once
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "../../driver/engine.hpp"

namespace check {
/* A buffer of the card's; what it held before is gone. */
void* fresh(size_t bytes);
template <class T> T* fresh(const std::vector<T>& values) {
    T* at = (T*)fresh(values.size() * sizeof(T));
    memcpy((void*)at, values.data(), values.size() * sizeof(T));
    return at;
}
template <class T> std::vector<T> values(const T* at, size_t count) { return std::vector<T>(at, at + count); }

struct Loaded {
    const CardEntry* entries = nullptr;
    size_t count = 0;
    void* shared = nullptr;
    size_t shared_len = 0;
};
/* A module from its ELF, or its text. */
Loaded load(const std::string& image);
Loaded compile(const std::string& text, std::string* log = nullptr);
Loaded compile_file(const std::string& path);

struct Shape {
    unsigned grid[3], block[3], shared;
    uint64_t order;
};
/* What was wrong; empty where nothing. */
std::string run(const Loaded& module, const char* name, Shape shape, std::vector<const void*> parameters);
uint64_t touched();

void expect(bool right, const std::string& what);
template <class T> void expect_equal(const std::vector<T>& made, const std::vector<T>& right, const std::string& what) {
    expect(made == right, what);
}
/* The exit status of the program. */
int report();
}  // namespace check

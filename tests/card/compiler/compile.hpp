/* Turns CUDA C++ into a module: preprocessed, translated, compiled and linked by the system's C++ compiler. */
#pragma once
#include <string>
#include <vector>

namespace card {
struct Request {
    std::string text;
    std::string name;    // what messages call it
    std::string folder;  // where includes in quotes lie; empty for none
    int arch = 890;      // __CUDA_ARCH__
    bool runtime = false;               // as NVRTC compiles it, and not nvcc
    std::vector<std::string> language;  // -I, -D, -U, -include, as given
};

struct Module {
    bool ok = false;
    int arch = 0;
    std::string log;  // of the compilers
    std::string elf;
    std::vector<std::string> names;  // of the entries
};

Module compile(const Request& request);

/* What a module is made of beside its text: the compiler with its version and flags, what kernels include, and this program itself. */
std::string toolchain();

/* The module as text, which stands for PTX. */
std::string as_text(const Module& module);

/* An object in which every extern "C" host function of the text exists, and refuses to run. */
bool compile_refusals(const Request& request, const std::string& object, std::string& log);
}  // namespace card

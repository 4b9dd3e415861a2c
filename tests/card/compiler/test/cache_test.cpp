/* What was compiled before the toolchain changed is not used again: neither what the compiler keeps, nor what a program keeps by nvrtcVersion. */
#include <dlfcn.h>

#include <filesystem>
#include <fstream>

#include "check.hpp"

using namespace check;

static int version(void* library) {
    int major = 0, minor = 0;
    auto ask = (int (*)(int*, int*))dlsym(library, "nvrtcVersion");
    expect(ask(&major, &minor) == 0 && major == 13 && minor >= 1000, "a version that is none of NVIDIA's");
    return minor;
}

/* How many modules are kept after another compilation. */
static size_t kept_after(void* library, const std::string& card) {
    auto create = (int (*)(void**, const char*, const char*, int, const char* const*, const char* const*))dlsym(library, "nvrtcCreateProgram");
    auto make = (int (*)(void*, int, const char* const*))dlsym(library, "nvrtcCompileProgram");
    void* program;
    create(&program, "extern \"C\" __global__ void f(int* x) { x[0] = 1; }", "a.cu", 0, nullptr, nullptr);
    expect(make(program, 0, nullptr) == 0, "f compiles");
    size_t kept = 0;
    for (const auto& entry : std::filesystem::directory_iterator(card + "/nvrtc")) kept += entry.path().extension() == ".so";
    return kept;
}

/* cache_test TOOLKIT CARD COMPILER: a copy of the toolkit, which is changed; an empty folder; another name of the compiler. */
int main(int, char** words) {
    std::string toolkit = words[1], card = words[2];
    void* library = dlopen((toolkit + "/lib64/libnvrtc.so.13").c_str(), RTLD_NOW);
    if (!library) fprintf(stderr, "%s\n", dlerror()), exit(1);
    setenv("CARD_DIR", card.c_str(), 1);
    int first = version(library);
    expect(version(library) == first, "the version of one toolchain is one");
    expect(kept_after(library, card) == 1 && kept_after(library, card) == 1, "what was compiled is kept");
    setenv("CARD_CXX", words[3], 1);
    int renamed = version(library);
    expect(renamed != first, "another compiler has another version");
    expect(kept_after(library, card) == 2, "another compiler compiles anew");
    std::ofstream(toolkit + "/include/card/device.hpp", std::ios::app) << "/* changed */\n";
    expect(version(library) != renamed && version(library) != first, "other headers have another version");
    return report();
}

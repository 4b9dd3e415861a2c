/* libnvrtc: the compiler as a library. */
#include <algorithm>
#include <cstring>
#include <exception>
#include <functional>
#include <iterator>
#include <new>

#include "compile.hpp"

#define NVRTC_API extern "C" __attribute__((visibility("default")))

namespace {
enum Result {
    SUCCESS = 0,
    OUT_OF_MEMORY = 1,
    PROGRAM_CREATION_FAILURE = 2,
    INVALID_INPUT = 3,
    INVALID_PROGRAM = 4,
    INVALID_OPTION = 5,
    COMPILATION = 6,
    INTERNAL_ERROR = 11
};
const char* const RESULTS[] = {"NVRTC_SUCCESS", "NVRTC_ERROR_OUT_OF_MEMORY", "NVRTC_ERROR_PROGRAM_CREATION_FAILURE",
                               "NVRTC_ERROR_INVALID_INPUT", "NVRTC_ERROR_INVALID_PROGRAM", "NVRTC_ERROR_INVALID_OPTION",
                               "NVRTC_ERROR_COMPILATION"};
/* The architectures that CUDA 13 knows. */
const int ARCH_MIN = 75, ARCH_MAX = 121;

struct Program {
    std::string text, name, log, ptx, elf;
};

bool begins_with(const std::string& word, const char* begin) { return word.compare(0, strlen(begin), begin) == 0; }

/* What one option asks for; false where NVRTC has no such option. */
bool take_option(const std::string& word, card::Request& request) {
    std::string value = word.substr(word.find('=') + 1);
    if (begins_with(word, "--gpu-architecture=") || begins_with(word, "-arch=")) {
        bool named = begins_with(value, "compute_") || begins_with(value, "sm_");
        int number = named ? atoi(value.c_str() + value.find('_') + 1) : 0;
        request.arch = number * 10;
        return number >= ARCH_MIN && number <= ARCH_MAX;
    }
    if (word == "--std=c++17" || word == "-std=c++17") return true;
    if (begins_with(word, "--include-path=")) return request.language.push_back("-I" + value), true;
    if (begins_with(word, "-I") || begins_with(word, "-D") || begins_with(word, "-U")) return request.language.push_back(word), true;
    if (begins_with(word, "--define-macro=")) return request.language.push_back("-D" + value), true;
    /* Of no meaning for this compiler, whose products and roots are exact and never fused. */
    for (const char* known : {"--fmad=", "--ftz=", "--prec-sqrt=", "--prec-div=", "--maxrregcount=", "--default-device", "-lineinfo"})
        if (begins_with(word, known)) return true;
    return false;
}

Result compile(Program& program, int count, const char* const* options) {
    card::Request request;
    request.text = program.text;
    request.name = program.name.empty() ? "default_program" : program.name;
    request.runtime = true;
    for (int i = 0; i < count; i++) {
        if (take_option(options[i], request)) continue;
        program.log = std::string("nvrtc: error: unrecognized option or value: ") + options[i] + "\n";
        return INVALID_OPTION;
    }
    card::Module module = card::compile(request);
    program.log = module.log;
    if (!module.ok) return COMPILATION;
    program.elf = module.elf;
    program.ptx = card::as_text(module);
    return SUCCESS;
}

/* Both sizes count the zero that ends a text. */
Result give_size(size_t* size, const std::string* bytes, size_t end) {
    if (!bytes) return INVALID_PROGRAM;
    if (!size) return INVALID_INPUT;
    *size = bytes->size() + end;
    return SUCCESS;
}
Result give(char* to, const std::string* bytes, size_t end) {
    if (!bytes) return INVALID_PROGRAM;
    if (!to) return INVALID_INPUT;
    memcpy(to, bytes->c_str(), bytes->size() + end);
    return SUCCESS;
}
}  // namespace

NVRTC_API const char* nvrtcGetErrorString(Result result) {
    bool known = result >= SUCCESS && result <= COMPILATION;
    return known ? RESULTS[result] : result == INTERNAL_ERROR ? "NVRTC_ERROR_INTERNAL_ERROR" : "NVRTC_ERROR unknown";
}

NVRTC_API Result nvrtcVersion(int* major, int* minor) {
    if (!major || !minor) return INVALID_INPUT;
    try {
        /* No version of NVIDIA's, and another one for each toolchain: what a program keeps of this compiler's code must be taken neither for theirs
         * nor for that of a later one. */
        *major = 13, *minor = 1000 + static_cast<int>(std::hash<std::string>()(card::toolchain()) % 1000000000);
        return SUCCESS;
    } catch (const std::exception&) {
        return INTERNAL_ERROR;
    }
}

/* As NVRTC 13.0 has them. */
static const int ARCHITECTURES[] = {75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121};

NVRTC_API Result nvrtcGetNumSupportedArchs(int* count) {
    if (!count) return INVALID_INPUT;
    *count = sizeof(ARCHITECTURES) / sizeof(*ARCHITECTURES);
    return SUCCESS;
}

NVRTC_API Result nvrtcGetSupportedArchs(int* architectures) {
    if (!architectures) return INVALID_INPUT;
    std::copy(std::begin(ARCHITECTURES), std::end(ARCHITECTURES), architectures);
    return SUCCESS;
}

NVRTC_API Result nvrtcCreateProgram(Program** program, const char* text, const char* name, int header_count, const char* const*, const char* const*) {
    if (!program || !text || header_count < 0) return INVALID_INPUT;
    /* Headers given as text are not supported. */
    if (header_count > 0) return PROGRAM_CREATION_FAILURE;
    *program = new (std::nothrow) Program{text, name ? name : "", "", "", ""};
    return *program ? SUCCESS : OUT_OF_MEMORY;
}

NVRTC_API Result nvrtcDestroyProgram(Program** program) {
    if (!program || !*program) return INVALID_PROGRAM;
    delete *program;
    *program = nullptr;
    return SUCCESS;
}

NVRTC_API Result nvrtcCompileProgram(Program* program, int count, const char* const* options) {
    if (!program) return INVALID_PROGRAM;
    if (count < 0 || (count > 0 && !options)) return INVALID_INPUT;
    try {
        return compile(*program, count, options);
    } catch (const std::exception& error) {
        program->log += error.what();
        return INTERNAL_ERROR;
    }
}

NVRTC_API Result nvrtcGetPTXSize(Program* program, size_t* size) { return give_size(size, program ? &program->ptx : nullptr, 1); }
NVRTC_API Result nvrtcGetPTX(Program* program, char* to) { return give(to, program ? &program->ptx : nullptr, 1); }
NVRTC_API Result nvrtcGetCUBINSize(Program* program, size_t* size) { return give_size(size, program ? &program->elf : nullptr, 0); }
NVRTC_API Result nvrtcGetCUBIN(Program* program, char* to) { return give(to, program ? &program->elf : nullptr, 0); }
NVRTC_API Result nvrtcGetProgramLogSize(Program* program, size_t* size) { return give_size(size, program ? &program->log : nullptr, 1); }
NVRTC_API Result nvrtcGetProgramLog(Program* program, char* to) { return give(to, program ? &program->log : nullptr, 1); }

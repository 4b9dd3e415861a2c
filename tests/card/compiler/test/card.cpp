#include <dlfcn.h>
#include <sys/mman.h>
#include <unistd.h>

#include <fstream>
#include <iterator>

#include "check.hpp"

uint64_t card_begin = 0, card_end = 0;

namespace check {
static const size_t CARD_BYTES = 256 << 20;
static size_t used, failures, checks;
static uint64_t accesses;
static struct {
    uintptr_t begin, end;
} last;
static std::vector<std::pair<uintptr_t, uintptr_t>> buffers;

void* fresh(size_t bytes) {
    if (!card_begin) {
        card_begin = (uint64_t)mmap(nullptr, CARD_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        card_end = card_begin + CARD_BYTES;
    }
    /* All starts anew when all is used up. */
    if (used + bytes + 1024 > CARD_BYTES) used = 0, buffers.clear(), last = {};
    uintptr_t at = card_begin + used;
    used += (bytes + 1023) / 512 * 512;
    buffers.push_back({at, at + bytes});
    memset((void*)at, 0xff, bytes);
    return (void*)at;
}

uint64_t touched() { return accesses; }

static const char* find(uintptr_t begin, uintptr_t end) {
    for (auto& buffer : buffers) {
        if (begin < buffer.first || end > buffer.second) continue;
        last = {buffer.first, buffer.second};
        return nullptr;
    }
    return "no buffer holds these bytes";
}
}  // namespace check

extern "C" __attribute__((visibility("default"))) const char* card_touch(const void* at, size_t bytes, int) {
    uintptr_t begin = (uintptr_t)at, end = begin + bytes;
    check::accesses++;
    if (begin >= check::last.begin && end <= check::last.end) return nullptr;
    return check::find(begin, end);
}

namespace check {
static std::string from_base64(const std::string& text) {
    static const std::string ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    std::string out;
    unsigned word = 0, bits = 0;
    for (size_t at = 0, end; at < text.size(); at = end + 1) {
        end = std::min(text.find('\n', at), text.size());
        if (text.compare(at, 2, "//") == 0) continue;
        for (size_t i = at; i < end; i++) {
            size_t digit = ALPHABET.find(text[i]);
            if (digit == std::string::npos) continue;
            word = word << 6 | (unsigned)digit, bits += 6;
            if (bits >= 8) out += (char)(word >> (bits -= 8));
        }
    }
    return out;
}

Loaded load(const std::string& image) {
    std::string elf = image.compare(0, 4, "\177ELF") == 0 ? image : from_base64(image);
    int file = memfd_create("module", 0);
    if (write(file, elf.data(), elf.size()) != (ssize_t)elf.size()) abort();
    void* library = dlopen(("/proc/self/fd/" + std::to_string(file)).c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library) fprintf(stderr, "%s\n", dlerror()), exit(1);
    /* The file stays open: another of the same number would be taken for this library. */
    Loaded module;
    module.entries = ((CardEntries)dlsym(library, "card_entries"))(&module.count);
    ((CardShared)dlsym(library, "card_shared"))(&module.shared, &module.shared_len);
    return module;
}

Loaded compile(const std::string& text, std::string* log) {
    static void* library = dlopen("libnvrtc.so.13", RTLD_NOW);
    if (!library) fprintf(stderr, "%s\n", dlerror()), exit(1);
    auto create = (int (*)(void**, const char*, const char*, int, const char* const*, const char* const*))dlsym(library, "nvrtcCreateProgram");
    auto make = (int (*)(void*, int, const char* const*))dlsym(library, "nvrtcCompileProgram");
    auto size_of = [&](const char* name) { return (int (*)(void*, size_t*))dlsym(library, name); };
    auto bytes_of = [&](const char* name) { return (int (*)(void*, char*))dlsym(library, name); };
    void* program;
    const char* options[] = {"--gpu-architecture=compute_89", "--std=c++17"};
    if (create(&program, text.c_str(), "a.cu", 0, nullptr, nullptr)) abort();
    int result = make(program, 2, options);
    size_t size = 0;
    if (log) {
        size_of("nvrtcGetProgramLogSize")(program, &size);
        log->resize(size);
        bytes_of("nvrtcGetProgramLog")(program, &(*log)[0]);
        *log = std::to_string(result) + " " + *log;
        if (result) return {};
    }
    if (result) fprintf(stderr, "nvrtc: %d\n", result), exit(1);
    size_of("nvrtcGetPTXSize")(program, &size);
    std::string image(size, 0);
    bytes_of("nvrtcGetPTX")(program, &image[0]);
    return load(image);
}

Loaded compile_file(const std::string& path) {
    std::string out = "/tmp/card-check-" + std::to_string((long)getpid()) + ".ptx";
    std::string command = "nvcc --ptx -arch=sm_89 -std=c++17 -o " + out + " " + path;
    if (system(command.c_str())) exit(1);
    std::ifstream file(out, std::ios::binary);
    std::string image(std::istreambuf_iterator<char>(file), {});
    unlink(out.c_str());
    return load(image);
}

std::string run(const Loaded& module, const char* name, Shape shape, std::vector<const void*> parameters) {
    for (size_t i = 0; i < module.count; i++) {
        const CardEntry& entry = module.entries[i];
        if (strcmp(entry.name, name)) continue;
        if (entry.count != parameters.size()) return "has " + std::to_string(entry.count) + " parameters";
        card::Launch launch = {&entry, const_cast<void* const*>((void**)parameters.data()), {shape.grid[0], shape.grid[1], shape.grid[2]},
                               {shape.block[0], shape.block[1], shape.block[2]}, shape.shared, module.shared, module.shared_len, shape.order};
        const char* wrong = card::card_run(launch);
        return wrong ? wrong : "";
    }
    return "no such kernel";
}

void expect(bool right, const std::string& what) {
    checks++;
    if (right) return;
    failures++;
    fprintf(stderr, "FAILED: %s\n", what.c_str());
}

int report() {
    fprintf(stderr, "%zu checks, %zu failed\n", checks, failures);
    return failures != 0;
}
}  // namespace check

/* Loads modules: an ELF shared object, or a text that holds one. */
#include "module.hpp"

#include <dlfcn.h>
#include <elf.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <fstream>
#include <iterator>
#include <set>
#include <sstream>
#include <unordered_set>

#include "context.hpp"
#include "count.hpp"

namespace card {
/* Of sm_89: shared memory of a block unless the function asks for more. */
static const unsigned SHARED_DEFAULT = 48 << 10;

static std::vector<std::unique_ptr<Module>>& modules = *new std::vector<std::unique_ptr<Module>>;
static std::unordered_set<Function*>& functions = *new std::unordered_set<Function*>;
static std::unordered_map<const CardEntry*, std::vector<std::string>>& names_by_entry = *new std::unordered_map<const CardEntry*, std::vector<std::string>>;
static std::unordered_map<std::string, std::unique_ptr<Code>>& loaded = *new std::unordered_map<std::string, std::unique_ptr<Code>>;

Function* find_function(CUfunction handle) {
    Function* function = reinterpret_cast<Function*>(handle);
    return functions.count(function) && function->module->loaded ? function : nullptr;
}

static int value_of(char digit) {
    if (digit >= 'A' && digit <= 'Z') return digit - 'A';
    if (digit >= 'a' && digit <= 'z') return digit - 'a' + 26;
    if (digit >= '0' && digit <= '9') return digit - '0' + 52;
    return digit == '+' ? 62 : digit == '/' ? 63 : -1;
}

static std::string decode_base64(const char* text) {
    std::string out;
    uint32_t bits = 0;
    int have = 0;
    for (const char* line = text; *line;) {
        const char* end = strchrnul(line, '\n');
        bool comment = line[0] == '/' && line[1] == '/';
        for (const char* at = line; !comment && at < end; at++) {
            int value = value_of(*at);
            if (value < 0) continue;
            bits = bits << 6 | static_cast<uint32_t>(value);
            if ((have += 6) < 8) continue;
            have -= 8;
            out += static_cast<char>(bits >> have);
        }
        line = *end ? end + 1 : end;
    }
    return out;
}

/* Where the section headers of an ELF end, which linkers write last; 0 where it is no shared object of this machine's. */
static size_t length_of_elf(const char* image) {
    Elf64_Ehdr header;
    bool whole = copy_readable(&header, image, sizeof header) && header.e_ident[EI_CLASS] == ELFCLASS64 && header.e_type == ET_DYN &&
                 header.e_ehsize == sizeof header && header.e_phentsize == sizeof(Elf64_Phdr);
    if (!whole) return 0;
    size_t end = header.e_shoff + size_t{header.e_shnum} * header.e_shentsize;
    for (unsigned i = 0; i < header.e_phnum; i++) {
        Elf64_Phdr segment;
        memcpy(&segment, image + header.e_phoff + i * header.e_phentsize, sizeof segment);
        end = std::max<size_t>(end, segment.p_offset + segment.p_filesz);
    }
    return end;
}

static std::unique_ptr<Code> open_code(const std::string& elf) {
    int file = memfd_create("card-module", MFD_CLOEXEC);
    bool wrote = file >= 0 && write(file, elf.data(), elf.size()) == static_cast<ssize_t>(elf.size());
    void* handle = wrote ? dlopen(words("/proc/self/fd/%d", file), RTLD_NOW | RTLD_LOCAL) : nullptr;
    /* The file stays open: the loader knows a library by its name, and the next one must have another number in it. */
    if (!handle) {
        fprintf(stderr, "card: a module cannot be loaded: %s\n", wrote ? dlerror() : strerror(errno));
        return nullptr;
    }
    auto entries = reinterpret_cast<CardEntries>(dlsym(handle, "card_entries"));
    auto shared = reinterpret_cast<CardShared>(dlsym(handle, "card_shared"));
    if (!entries || !shared) {
        fprintf(stderr, "card: a module has no card_entries or no card_shared\n");
        return nullptr;
    }
    auto code = std::make_unique<Code>();
    code->entries = entries(&code->count);
    shared(&code->static_shared, &code->static_len);
    for (size_t i = 0; i < code->count; i++) code->index[code->entries[i].name] = i;
    auto all_names = static_cast<const char* const*>(dlsym(handle, "card_parameter_names"));
    for (size_t i = 0; all_names && i < code->count; i++) {
        std::vector<std::string>& names = names_by_entry[&code->entries[i]];
        std::istringstream text(all_names[i]);
        for (std::string name; std::getline(text, name, ',');) names.push_back(name);
    }
    return code;
}

const std::vector<std::string>& parameter_names(const CardEntry& entry) { return names_by_entry[&entry]; }

static CUresult load(CUmodule* handle, const char* image) {
    bool is_elf = !memcmp(image, ELFMAG, SELFMAG), is_text = !strncmp(image, CARD_TEXT_HEADER, strlen(CARD_TEXT_HEADER));
    if (!is_elf && !is_text) {
        fprintf(stderr, "card: a module was not made by the compiler of tests/card: \"%.40s...\"\n", image);
        return CUDA_ERROR_INVALID_PTX;
    }
    std::string elf = is_elf ? std::string(image, length_of_elf(image)) : decode_base64(image);
    if (elf.empty()) return CUDA_ERROR_INVALID_IMAGE;
    std::unique_ptr<Code>& code = loaded[elf];
    if (!code) code = open_code(elf);
    if (!code) return CUDA_ERROR_INVALID_IMAGE;
    auto module = std::make_unique<Module>();
    module->code = code.get();
    module->functions.reserve(code->count);
    for (size_t i = 0; i < code->count; i++) {
        const CardEntry* entry = &code->entries[i];
        module->functions.push_back({module.get(), entry, SHARED_DEFAULT, &counts.launches[entry->name]});
        functions.insert(&module->functions.back());
    }
    *handle = reinterpret_cast<CUmodule>(module.get());
    modules.push_back(std::move(module));
    counts.modules++;
    return CUDA_SUCCESS;
}

static Module* find_module(CUmodule handle) {
    for (const auto& module : modules) {
        if (module.get() == reinterpret_cast<Module*>(handle) && module->loaded) return module.get();
    }
    return nullptr;
}
}  // namespace card

using namespace card;

CARD_API CUresult cuModuleLoadData(CUmodule* handle, const void* image) {
    ENTER("cuModuleLoadData");
    return load(handle, static_cast<const char*>(image));
}

CARD_API CUresult cuModuleLoad(CUmodule* handle, const char* path) {
    ENTER("cuModuleLoad");
    std::ifstream file(path, std::ios::binary);
    if (!file) return CUDA_ERROR_FILE_NOT_FOUND;
    std::string image((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    return load(handle, image.c_str());
}

CARD_API CUresult cuModuleUnload(CUmodule handle) {
    ENTER("cuModuleUnload");
    Module* module = find_module(handle);
    if (!module) return refuse("cuModuleUnload: the module is not loaded", CUDA_ERROR_INVALID_HANDLE);
    module->loaded = false;
    return CUDA_SUCCESS;
}

CARD_API CUresult cuModuleGetFunction(CUfunction* handle, CUmodule module_handle, const char* name) {
    ENTER("cuModuleGetFunction");
    Module* module = find_module(module_handle);
    if (!module) return refuse("cuModuleGetFunction: the module is not loaded", CUDA_ERROR_INVALID_HANDLE);
    auto found = module->code->index.find(name);
    if (found == module->code->index.end()) return CUDA_ERROR_NOT_FOUND;
    *handle = reinterpret_cast<CUfunction>(&module->functions[found->second]);
    return CUDA_SUCCESS;
}

CARD_API CUresult cuModuleGetGlobal_v2(CUdeviceptr*, size_t*, CUmodule, const char*) {
    ENTER("cuModuleGetGlobal");
    return CUDA_ERROR_NOT_FOUND;
}

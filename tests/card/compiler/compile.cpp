#include "compile.hpp"

#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <set>

#include "../module.hpp"
#include "source.hpp"
#include "tools.hpp"

namespace card {
namespace {
typedef std::vector<std::string> Words;

void append(Words& to, const Words& more) { to.insert(to.end(), more.begin(), more.end()); }

/* What chooses the compiler and its target. */
Words base_words() {
    const char* chosen = getenv("CARD_CXX");
    Words words = {chosen && *chosen ? chosen : "c++", "-std=c++17", "-fPIC", "-w", "-U_FORTIFY_SOURCE"};
#ifdef __x86_64__
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2")) words.push_back("-march=x86-64-v3");
#endif
    return words;
}

Words code_words() {
    static const char* const FLAGS[] = {
#include "../../../kernels/src/emulator/flags.hpp"
    };
    Words words = base_words();
    for (const char* flag : FLAGS) words.push_back(flag);
    return words;
}

bool preprocess(Scratch& scratch, const Request& request, bool for_device, std::string& out, std::string& log) {
    std::string source = scratch.in("in.cu"), result = scratch.in("in.ii");
    write_file(source, "# 1 \"" + request.name + "\"\n" + request.text);
    Words words = base_words();
    append(words, {"-E", "-x", "c++", "-D__CUDACC__=1", "-D__CUDACC_VER_MAJOR__=13", "-D__CUDACC_VER_MINOR__=0", "-D__CUDACC_VER_BUILD__=0"});
    if (for_device) words.push_back("-D__CUDA_ARCH__=" + std::to_string(request.arch));
    if (request.runtime) words.push_back("-D__CUDACC_RTC__=1");
    append(words, request.language);
    if (!request.folder.empty()) append(words, {"-iquote", request.folder});
    append(words, {"-I" + toolkit() + "/include", "-include", "card/device.hpp", "-include", "card/registry.hpp", source, "-o", result});
    if (run_program(words, scratch.in("log"), log) != 0) return false;
    out = read_file(result);
    /* The file's place is another one each time, and what is kept is found by this text. */
    for (size_t at; (at = out.find(source)) != std::string::npos;) out.replace(at, source.size(), request.name);
    return true;
}

/* The table of entries, in which the compiler describes each by its type. */
std::string table_of(const Source& source) {
    std::string text = "\n# 1 \"the table of kernels\"\n"
                       "extern \"C\" __attribute__((visibility(\"default\"), no_sanitize(\"thread\")))\n"
                       "const CardEntry* card_entries(size_t* count) {\n"
                       "    static const CardEntry entries[] = {\n";
    for (const SourceEntry& entry : source.entries) {
        std::string threads = entry.max_threads.empty() ? "1024" : "(unsigned)(" + entry.max_threads + ")";
        text += "        card::Kernel<&::" + entry.name + ">::entry(\"" + entry.name + "\", " + threads + "),\n";
    }
    text += "        {}};\n    *count = sizeof entries / sizeof *entries - 1;\n    return entries;\n}\n"
            "extern \"C\" {\nextern __attribute__((visibility(\"default\"), used)) const char* const card_parameter_names[] = {\n";
    for (const SourceEntry& entry : source.entries) {
        text += "    \"";
        for (const std::string& name : entry.parameters) text += (name == entry.parameters[0] ? "" : ",") + name;
        text += "\",\n";
    }
    return text + "    nullptr};\n}\n";
}

/* Where the outcome of this compilation is kept, between processes; empty for nowhere. */
std::string place_in_cache(const Request& request, const std::string& origin) {
    const char* card = getenv("CARD_DIR");
    if (!request.runtime || !card || !*card) return "";
    std::string folder = std::string(card) + "/nvrtc";
    mkdir(card, 0700);
    mkdir(folder.c_str(), 0700);
    return folder + "/" + std::to_string(std::hash<std::string>()(origin));
}

/* In one step, for other processes may look. */
void keep(const std::string& path, const std::string& bytes) {
    std::string fresh = path + "." + std::to_string((long)getpid());
    write_file(fresh, bytes);
    rename(fresh.c_str(), path.c_str());
}

bool build(Scratch& scratch, const std::string& source, std::string& elf, std::string& log) {
    std::string text = scratch.in("out.ii"), object = scratch.in("out.o"), library = scratch.in("out.so"), said = scratch.in("log");
    std::string driver = toolkit() + "/lib64/libcuda.so.1";
    write_file(text, source);
    Words words = code_words();
    append(words, {"-x", "c++-cpp-output", "-c", text, "-o", object});
    if (run_program(words, said, log) != 0) return false;
    /* Without -fsanitize, which would bring the sanitizer's own runtime. */
    words = base_words();
    append(words, {"-shared", "-nostartfiles", object, "-Wl,-z,now,-s", "-o", library});
    if (exists(driver)) words.push_back(driver);
    if (run_program(words, said, log) != 0) return false;
    elf = read_file(library);
    return true;
}
}  // namespace

std::string toolchain() {
    Scratch scratch;
    Words words = code_words();
    std::string text;
    run_program({words[0], "--version"}, scratch.in("log"), text);
    for (const std::string& word : words) text += word + "\n";
    std::set<std::string> files = {own_path()};
    for (const auto& entry : std::filesystem::recursive_directory_iterator(toolkit() + "/include")) {
        if (entry.is_regular_file()) files.insert(entry.path());
    }
    for (const std::string& file : files) text += file + " " + std::to_string(std::hash<std::string>()(read_file(file))) + "\n";
    return text;
}

Module compile(const Request& request) {
    Module module;
    module.arch = request.arch;
    Scratch scratch;
    std::string preprocessed;
    if (!preprocess(scratch, request, true, preprocessed, module.log)) return module;
    Source source = translate(preprocessed);
    if (!source.error.empty()) {
        module.log += request.name + ": error: " + source.error + "\n";
        return module;
    }
    for (const SourceEntry& entry : source.entries) module.names.push_back(entry.name);
    source.text += table_of(source);
    std::string origin = toolchain() + source.text, kept = place_in_cache(request, origin);
    /* Compared whole: what is found is what would be compiled. */
    if (!kept.empty() && exists(kept + ".so") && exists(kept + ".ii") && read_file(kept + ".ii") == origin) {
        module.elf = read_file(kept + ".so");
        module.ok = true;
        return module;
    }
    module.ok = build(scratch, source.text, module.elf, module.log);
    if (module.ok && !kept.empty()) {
        keep(kept + ".so", module.elf);
        keep(kept + ".ii", origin);
    }
    return module;
}

std::string as_text(const Module& module) {
    std::string text = CARD_TEXT_HEADER "\n//   .target sm_" + std::to_string(module.arch / 10) + "\n";
    for (const std::string& name : module.names) text += "//   .entry " + name + "\n";
    /* A line that begins with two slashes would be a comment. */
    return text + to_base64(module.elf, 120, " ");
}

bool compile_refusals(const Request& request, const std::string& object, std::string& log) {
    Scratch scratch;
    std::string preprocessed, text = scratch.in("refusals.cpp");
    if (!preprocess(scratch, request, false, preprocessed, log)) return false;
    std::string functions = "#include \"card_refusal.h\"\nextern \"C\" {\n";
    for (const std::string& name : translate(preprocessed).host_entries)
        functions += "void " + name + "() { card_refuse_entry(\"" + name + "\"); }\n";
    write_file(text, functions + "}\n");
    Words words = base_words();
    append(words, {"-O1", "-c", "-I" + toolkit() + "/include", text, "-o", object});
    return run_program(words, scratch.in("log"), log) == 0;
}
}  // namespace card

/* nvcc, as far as the build scripts of candle and our tests call it. */
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <set>
#include <stdexcept>

#include "compile.hpp"
#include "tools.hpp"

namespace {
enum Task { TO_TEXT, TO_ELF, TO_OBJECT, TO_LIBRARY };

struct Arguments {
    Task task = TO_OBJECT;
    std::string output, folder;
    std::vector<std::string> inputs;
    card::Request request;
};

const char VERSION[] =
    "nvcc: a stand-in for the NVIDIA (R) Cuda compiler driver, for an ordinary CPU\n"
    "Cuda compilation tools, release 13.0, V13.0.0\n";
/* Options that change nothing here: with a value after them, and without or with it in the same word. */
const std::set<std::string> IGNORED_PAIRS = {"-Xcompiler", "-Xptxas", "-Xlinker", "-ccbin", "--default-stream", "-default-stream", "-maxrregcount"};
const std::set<std::string> IGNORED = {"--expt-relaxed-constexpr", "--expt-extended-lambda", "-allow-unsupported-compiler", "-O0", "-O1", "-O2",
                                       "-O3", "-w", "-v", "-lineinfo", "-g", "--use_fast_math"};

bool begins_with(const std::string& word, const char* begin) { return word.compare(0, strlen(begin), begin) == 0; }

/* 890, of sm_89, compute_89 or "arch=compute_89,code=sm_89". */
int arch_of(const std::string& word) {
    size_t at = word.find_last_of('_');
    int number = at == std::string::npos ? 0 : atoi(word.c_str() + at + 1);
    if (number < 50) throw std::runtime_error("no architecture is called " + word);
    return number * 10;
}

Arguments parse(const std::vector<std::string>& words) {
    Arguments out;
    size_t i = 0;
    auto value = [&](const char* begin) {
        if (words[i].size() > strlen(begin)) return words[i].substr(strlen(begin));
        if (++i == words.size()) throw std::runtime_error(std::string(begin) + " needs a value");
        return words[i];
    };
    for (; i < words.size(); i++) {
        const std::string& word = words[i];
        if (word == "--ptx" || word == "-ptx") out.task = TO_TEXT;
        else if (word == "--cubin" || word == "-cubin") out.task = TO_ELF;
        else if (word == "-c" || word == "--compile") out.task = TO_OBJECT;
        else if (word == "--lib" || word == "-lib") out.task = TO_LIBRARY;
        else if (begins_with(word, "--output-directory=")) out.folder = value("--output-directory=");
        else if (word == "--output-directory" || word == "-odir") out.folder = value(word.c_str());
        else if (word == "-o" || word == "--output-file") out.output = value(word.c_str());
        else if (begins_with(word, "-gencode=")) out.request.arch = arch_of(value("-gencode="));
        else if (begins_with(word, "-arch=")) out.request.arch = arch_of(value("-arch="));
        else if (begins_with(word, "--gpu-architecture=")) out.request.arch = arch_of(value("--gpu-architecture="));
        else if (word == "-gencode" || word == "-arch" || word == "--gpu-architecture") out.request.arch = arch_of(value(word.c_str()));
        else if (begins_with(word, "-std=") || begins_with(word, "--std=") || begins_with(word, "--threads")) continue;
        else if (begins_with(word, "-I") || begins_with(word, "-D") || begins_with(word, "-U"))
            out.request.language.push_back(word.substr(0, 2) + value(word.substr(0, 2).c_str()));
        else if (word == "-include") out.request.language.insert(out.request.language.end(), {word, value("-include")});
        else if (IGNORED_PAIRS.count(word)) value(word.c_str());
        else if (IGNORED.count(word)) continue;
        else if (begins_with(word, "-")) throw std::runtime_error("the option " + word + " is not one that this stand-in knows");
        else out.inputs.push_back(word);
    }
    return out;
}

/* The file that an input becomes. */
std::string output_of(const Arguments& arguments, const std::string& input, const char* ending) {
    if (!arguments.output.empty()) return arguments.output;
    size_t slash = input.find_last_of('/'), dot = input.find_last_of('.');
    std::string stem = input.substr(slash == std::string::npos ? 0 : slash + 1);
    if (dot != std::string::npos && (slash == std::string::npos || dot > slash)) stem.resize(stem.find_last_of('.'));
    return (arguments.folder.empty() ? "" : arguments.folder + "/") + stem + ending;
}

bool compile_file(const Arguments& arguments, const std::string& input) {
    card::Request request = arguments.request;
    request.text = card::read_file(input);
    request.name = input;
    size_t slash = input.find_last_of('/');
    request.folder = slash == std::string::npos ? "." : input.substr(0, slash);
    std::string log;
    bool ok;
    if (arguments.task == TO_OBJECT) {
        ok = card::compile_refusals(request, output_of(arguments, input, ".o"), log);
    } else {
        card::Module module = card::compile(request);
        ok = module.ok, log = module.log;
        bool as_text = arguments.task == TO_TEXT;
        if (ok) card::write_file(output_of(arguments, input, as_text ? ".ptx" : ".cubin"), as_text ? card::as_text(module) : module.elf);
    }
    fputs(log.c_str(), stderr);
    return ok;
}

bool make_library(const Arguments& arguments) {
    card::Scratch scratch;
    std::string log;
    std::vector<std::string> words = {"ar", "crs", output_of(arguments, "a", ".a")};
    words.insert(words.end(), arguments.inputs.begin(), arguments.inputs.end());
    remove(words[2].c_str());
    bool ok = card::run_program(words, scratch.in("log"), log) == 0;
    fputs(log.c_str(), stderr);
    return ok;
}
}  // namespace

int main(int count, char** words) try {
    std::vector<std::string> all(words + 1, words + count);
    for (const std::string& word : all) {
        if (word == "--version" || word == "-V") return puts(VERSION) < 0;
        if (word == "--list-gpu-code" || word == "--list-gpu-arch") return puts("sm_80\nsm_86\nsm_89\nsm_90") < 0;
    }
    Arguments arguments = parse(all);
    if (arguments.inputs.empty()) throw std::runtime_error("no input");
    if (arguments.task == TO_LIBRARY) return !make_library(arguments);
    for (const std::string& input : arguments.inputs)
        if (!compile_file(arguments, input)) return 1;
    return 0;
} catch (const std::exception& error) {
    fprintf(stderr, "nvcc (stand-in): %s\n", error.what());
    return 1;
}

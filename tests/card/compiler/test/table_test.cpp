/* The dry mode's table names kernels of ours and their parameters: each must be there, and every kernel must be in it. */
#include <dirent.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <set>

#include "../../driver/dry.hpp"
#include "../source.hpp"

using namespace card;

struct Found {
    std::string file;
    SourceEntry entry;
    std::vector<CardParameter> parameters;
    CardEntry described;
};
static std::vector<Found> kernels;
static std::set<std::string> faults;

static void complain(const std::string& what) {
    if (faults.insert(what).second) fprintf(stderr, "%s\n", what.c_str());
}

/* What the table needs of the driver. */
namespace card {
const char* words(const char* format, ...) {
    static char text[1000];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    return text;
}
void complain_of_table(const char* what) { complain(what); }
const std::vector<std::string>& parameter_names(const CardEntry& entry) {
    auto same = [&](const Found& kernel) { return kernel.entry.name == entry.name; };
    return std::find_if(kernels.begin(), kernels.end(), same)->entry.parameters;
}
}  // namespace card

static Found* find_kernel(const char* name) {
    auto same = [&](const Found& kernel) { return kernel.entry.name == name; };
    auto found = std::find_if(kernels.begin(), kernels.end(), same);
    return found == kernels.end() ? nullptr : &*found;
}

/* Translation wants preprocessed text. */
static std::string preprocess(const std::string& path) {
    const char* compiler = getenv("CARD_CXX");
    FILE* out = popen((std::string(compiler ? compiler : "c++") + " -E -P -x c++ '" + path + "'").c_str(), "r");
    std::string text;
    char part[4096];
    for (size_t count; out && (count = fread(part, 1, sizeof part, out)) > 0;) text.append(part, count);
    if (!out || pclose(out) != 0) complain(path + " cannot be preprocessed");
    return text;
}

static void read_kernels(const std::string& folder) {
    DIR* opened = opendir(folder.c_str());
    for (dirent* file; opened && (file = readdir(opened));) {
        std::string name = file->d_name;
        if (name.size() < 4 || name.substr(name.size() - 3) != ".cu") continue;
        Source source = translate(preprocess(folder + "/" + name));
        for (const SourceEntry& entry : source.entries) kernels.push_back({name, entry, {}, {}});
    }
    if (opened) closedir(opened);
    if (kernels.empty()) complain("no kernels in " + folder);
    /* Parameters of any type: only where they are matters here. */
    for (Found& kernel : kernels) {
        for (uint32_t i = 0; i < kernel.entry.parameters.size(); i++) kernel.parameters.push_back({24 * i, 24, CARD_BUFFER, 4, 0, CARD_FLOAT});
        kernel.described = {kernel.entry.name.c_str(), 1024, static_cast<uint32_t>(kernel.parameters.size()), kernel.parameters.data(), nullptr};
    }
}

/* Every kernel's row, and every row's kernel. */
static void check_rows() {
    for (const KernelRow& row : kernel_rows()) {
        Found* kernel = find_kernel(row.kernel);
        if (!kernel) complain(std::string("tests/card/driver/dry_table.cpp has the kernel ") + row.kernel + ", which no file of kernels/src/cuda has: rename its row in kernel_rows, or remove it");
        else kernel_writes(kernel->described, 0);
    }
    for (const Found& kernel : kernels) {
        auto same = [&](const KernelRow& row) { return kernel.entry.name == row.kernel; };
        if (std::any_of(kernel_rows().begin(), kernel_rows().end(), same)) continue;
        std::string all;
        for (const std::string& name : kernel.entry.parameters) all += (all.empty() ? "" : ", ") + name;
        complain("kernels/src/cuda/" + kernel.file + " has the kernel " + kernel.entry.name + ", which tests/card/driver/dry_table.cpp lacks: add {\"" + kernel.entry.name +
                 "\", {\"...\"}} to kernel_rows with those of its parameters that it writes, of " + all + "; else a dry run takes each of its buffers for an output");
    }
}

/* What each invention looks at, by asking it for every output. */
static void check_inventions() {
    for (const char* name : invented_kernels()) {
        Found* kernel = find_kernel(name);
        if (!kernel) {
            complain(std::string("tests/card/driver/dry_table.cpp invents what the kernel ") + name + " writes, which no file of kernels/src/cuda has: rename its row in INVENTIONS, or remove it");
            continue;
        }
        Origin origin;
        origin.entry = &kernel->described;
        origin.arguments.reset(new unsigned char[24 * kernel->parameters.size() + 24](), std::default_delete<unsigned char[]>());
        for (origin.parameter = 0; origin.parameter < static_cast<int>(kernel->parameters.size()); origin.parameter++) {
            if (kernel_writes(kernel->described, origin.parameter)) find_invention(origin);
        }
    }
}

int main(int, char** arguments) {
    read_kernels(arguments[1]);
    check_rows();
    check_inventions();
    fprintf(stderr, "%zu kernels beside the dry mode's table, %zu faults\n", kernels.size(), faults.size());
    return !faults.empty();
}

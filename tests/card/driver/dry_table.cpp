/* The kernels of this repository in a dry run: which of their parameters they write, and what the host finds there. */
#include <cmath>
#include <cstring>
#include <unordered_map>

#include "dry.hpp"

namespace card {
/* The passes over its matrix that a transport problem is said to take, and the Newton steps among them. */
static const double SOLVER_PASSES = 12, NEWTON_STEPS = 3;

const std::vector<KernelRow>& kernel_rows() {
    static const std::vector<KernelRow> rows = {
        {"attention", {"out", "logsumexp"}},
        {"attention_along", {"along"}},
        {"attention_to_queries", {"to_q"}},
        {"attention_to_keys", {"parts"}},
        {"attention_join", {"to_k", "to_v"}},
        {"attention_mma_64", {"out", "logsumexp"}},
        {"attention_mma_128", {"out", "logsumexp"}},
        {"attention_to_queries_mma_64", {"to_q"}},
        {"attention_to_queries_mma_128", {"to_q"}},
        {"attention_to_keys_mma_64", {"parts"}},
        {"attention_to_keys_mma_128", {"parts"}},
        /* Of a table, the buffers that its records describe: a dry run, which has no records, checks and invents nothing of those. */
        {"adamw", {"parameters", "firsts", "seconds"}},
        {"adamw_8bit", {"parameters", "firsts", "first_scales", "seconds", "second_scales"}},
        {"cast_many", {"to"}},
        {"squares", {"parts"}},
        {"sums_of_parts", {"sums"}},
        {"rms_norm", {"out"}},
        {"rms_norm_and_copy", {"out", "copy"}},
        {"rms_norm_gradient", {"out"}},
        {"rms_norm_terms", {"out"}},
        {"rope", {"out"}},
        {"split_heads", {"q", "k", "v"}},
        {"join_heads", {"y"}},
        {"swiglu", {"out"}},
        {"swiglu_gradient", {"out"}},
        {"dequantize_nested", {"out"}},
        {"dequantize_plain", {"out"}},
        {"dequantize_three", {"out"}},
        {"select_rows", {"statistics", "ids", "values", "masses"}},
        {"draw_rows", {"ids", "values"}},
        {"sample_rows", {"ids"}},
        {"head_parts", {"out"}},
        {"head_factors", {"parts", "values"}},
        {"head_gradient", {"gradient"}},
        {"sinkhorn_rows", {"plan", "found", "work"}},
        {"sinkhorn_step", {"plan", "found", "work"}},
        {"sharp_rows", {"gradient", "work"}},
        {"sharp_step", {"met", "work"}},
        {"convert", {"out"}},
        {"block_totals", {"out"}},
        {"reverse", {"out"}},
        {"exchange", {"out"}},
        {"multiply_16", {"out"}},
        {"four_matrices", {"out"}},
    };
    return rows;
}

/* Where a parameter is; -1, and a complaint, where the kernel has none of that name. */
static int position(const CardEntry& entry, const char* name) {
    const std::vector<std::string>& names = parameter_names(entry);
    std::string all = names.empty() ? "none: an older compiler of the card's made this module, which is to be compiled again" : "";
    for (size_t i = 0; i < names.size(); i++) {
        if (names[i] == name) return static_cast<int>(i);
        all += (i ? ", " : "") + names[i];
    }
    complain_of_table(words("tests/card/driver/dry_table.cpp says that the kernel %s has a parameter %s, and it has %s: name there what it is called now",
                            entry.name, name, all.c_str()));
    return -1;
}

/* Without a row, or with one that is not the kernel's, whatever is no pointer to const. */
static std::vector<bool> find_written(const CardEntry& entry) {
    std::vector<bool> any(entry.count), written(entry.count);
    for (uint32_t i = 0; i < entry.count; i++) any[i] = !entry.parameters[i].readonly || is_table(entry.parameters[i]);
    for (const KernelRow& row : kernel_rows()) {
        if (strcmp(row.kernel, entry.name) != 0) continue;
        for (const char* name : row.written) {
            int at = position(entry, name);
            if (at < 0 || at >= static_cast<int>(entry.count)) return any;
            written[at] = true;
        }
        return written;
    }
    return any;
}

bool kernel_writes(const CardEntry& entry, int parameter) {
    static std::unordered_map<const CardEntry*, std::vector<bool>>& known = *new std::unordered_map<const CardEntry*, std::vector<bool>>;
    auto found = known.find(&entry);
    if (found == known.end()) found = known.emplace(&entry, find_written(entry)).first;
    return found->second[parameter];
}

namespace {
/* A number that the launch was given. */
int64_t argument(const Origin& origin, const char* name) {
    int64_t value = 0;
    int i = position(*origin.entry, name);
    if (i >= 0) memcpy(&value, origin.arguments.get() + origin.entry->parameters[i].offset, std::min(origin.entry->parameters[i].size, 8u));
    return std::max<int64_t>(value, 1);
}

/* A length that the launch was given with a buffer. */
int64_t length(const Origin& origin, const char* name) {
    int64_t value = 0;
    int i = position(*origin.entry, name);
    if (i >= 0) memcpy(&value, origin.arguments.get() + origin.entry->parameters[i].offset + 8, 8);
    return value;
}

bool is_of(const Origin& origin, const char* name) { return position(*origin.entry, name) == origin.parameter; }

/* select.cu: the K first ids, slightly falling logits, and sums that leave as much again to the rest of the row. */
Invention of_select_rows(const Origin& origin) {
    uint64_t k = argument(origin, "k"), width = 3 + length(origin, "rates");
    double sum = 2.0 * static_cast<double>(k) + 1;
    if (is_of(origin, "statistics")) return {"f32", [=](uint64_t i) { return i % width == 0 ? 0 : i % width == 1 ? -1 : i % width == 2 ? 1 : sum; }};
    if (is_of(origin, "ids")) return {"u32", [=](uint64_t i) { return static_cast<double>(i % k); }};
    if (is_of(origin, "values")) return {"f32", [=](uint64_t i) { return -0.001 * static_cast<double>(i % k); }};
    return {"f32", [](uint64_t) { return 1.0; }};
}

/* The ids after the K first, all different. */
Invention of_draw_rows(const Origin& origin) {
    int64_t k = argument(origin, "k") - 1, draws = argument(origin, "draws");
    if (is_of(origin, "ids")) return {"u32", [=](uint64_t i) { return static_cast<double>(k + 1 + static_cast<int64_t>(i) % draws); }};
    return {"f32", [=](uint64_t i) { return -0.001 * static_cast<double>(k + 1 + static_cast<int64_t>(i) % draws); }};
}

/* Another id for each row. */
Invention of_sample_rows(const Origin& origin) {
    if (!is_of(origin, "ids")) return {};
    return {"u32", [](uint64_t i) { return static_cast<double>(i); }};
}

/* sinkhorn.cu: solved, with the marginals met. */
Invention of_sinkhorn_step(const Origin& origin) {
    if (!is_of(origin, "found")) return {};
    const uint64_t facts = 7, n = argument(origin, "n"), m = argument(origin, "m");
    double most = static_cast<double>(argument(origin, "most"));
    return {"f64", [=](uint64_t i) {
                uint64_t at = i % (facts + 2 * (n + m));
                const double of_problem[] = {0, std::min(SOLVER_PASSES, most), NEWTON_STEPS, 0, 0, 0.25, 0.5};
                if (at < facts) return of_problem[at];
                at -= facts;
                return at < n + m ? 0.0 : at - (n + m) < n ? 1.0 / static_cast<double>(n) : 1.0 / static_cast<double>(m);
            }};
}

/* Whether its equations were solved. */
Invention of_sharp_step(const Origin& origin) {
    if (!is_of(origin, "met")) return {};
    return {"f64", [](uint64_t) { return 1.0; }};
}
}  // namespace

static const struct {
    const char* kernel;
    Invention (*find)(const Origin&);
} INVENTIONS[] = {{"select_rows", of_select_rows}, {"draw_rows", of_draw_rows}, {"sample_rows", of_sample_rows}, {"sinkhorn_step", of_sinkhorn_step}, {"sharp_step", of_sharp_step}};

Invention find_invention(const Origin& origin) {
    for (const auto& row : INVENTIONS) {
        if (!strcmp(row.kernel, origin.entry->name)) return row.find(origin);
    }
    return {};
}

std::vector<const char*> invented_kernels() {
    std::vector<const char*> kernels;
    for (const auto& row : INVENTIONS) kernels.push_back(row.kernel);
    return kernels;
}
}  // namespace card

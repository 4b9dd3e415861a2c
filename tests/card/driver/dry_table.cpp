/* The kernels of this repository in a dry run: which of their parameters they write, and what the host finds there. */
#include <cmath>
#include <cstring>

#include "dry.hpp"

namespace card {
/* The passes over its matrix that a transport problem is said to take, and the Newton steps among them. */
static const double SOLVER_PASSES = 12, NEWTON_STEPS = 3;

static const struct {
    const char* kernel;
    std::vector<int> written;
} KERNELS[] = {
    {"attention", {5, 6}},
    {"attention_along", {2}},
    {"attention_to_queries", {8}},
    {"attention_to_keys", {8}},
    {"attention_join", {1, 2}},
    {"attention_mma_64", {5, 6}},
    {"attention_mma_128", {5, 6}},
    {"attention_to_queries_mma_64", {8}},
    {"attention_to_queries_mma_128", {8}},
    {"attention_to_keys_mma_64", {8}},
    {"attention_to_keys_mma_128", {8}},
    {"adamw", {4, 5, 6}},
    {"adamw_8bit", {7, 8, 9, 10, 11}},
    {"squares", {1}},
    {"sums_of_parts", {1}},
    {"rms_norm", {2}},
    {"rms_norm_gradient", {3}},
    {"rope", {3}},
    {"swiglu", {2}},
    {"swiglu_gradient", {3}},
    {"dequantize_nested", {10}},
    {"dequantize_plain", {6}},
    {"select_rows", {2, 3, 4, 5}},
    {"draw_rows", {5, 6}},
    {"head_parts", {2}},
    {"head_gradient", {4}},
    {"sinkhorn", {3, 4, 5}},
    {"sharp_gradient", {2, 3, 4}},
};

bool kernel_writes(const CardEntry& entry, int parameter) {
    for (const auto& kernel : KERNELS) {
        if (strcmp(kernel.kernel, entry.name) != 0) continue;
        for (int written : kernel.written) {
            if (written == parameter) return true;
        }
        return false;
    }
    return !entry.parameters[parameter].readonly;
}

namespace {
/* A number that the launch was given. */
int64_t argument(const Origin& origin, uint32_t i) {
    int64_t value = 0;
    if (i < origin.entry->count) memcpy(&value, origin.arguments.get() + origin.entry->parameters[i].offset, origin.entry->parameters[i].size);
    return std::max<int64_t>(value, 1);
}

/* A length that the launch was given with a buffer. */
int64_t length(const Origin& origin, uint32_t i) {
    int64_t value = 0;
    memcpy(&value, origin.arguments.get() + origin.entry->parameters[i].offset + 8, 8);
    return value;
}

/* select.cu: the K first ids, slightly falling logits, and sums that leave as much again to the rest of the row. */
Invention of_select_rows(const Origin& origin) {
    uint64_t k = argument(origin, 8), width = 3 + length(origin, 1);
    double sum = 2.0 * static_cast<double>(k) + 1;
    switch (origin.parameter) {
        case 2: return {"f32", [=](uint64_t i) { return i % width == 0 ? 0 : i % width == 1 ? -1 : i % width == 2 ? 1 : sum; }};
        case 3: return {"u32", [=](uint64_t i) { return static_cast<double>(i % k); }};
        case 4: return {"f32", [=](uint64_t i) { return -0.001 * static_cast<double>(i % k); }};
        default: return {"f32", [](uint64_t) { return 1.0; }};
    }
}

/* The ids after the K first, all different. */
Invention of_draw_rows(const Origin& origin) {
    int64_t k = argument(origin, 9) - 1, draws = argument(origin, 10);
    if (origin.parameter == 5) return {"u32", [=](uint64_t i) { return static_cast<double>(k + 1 + static_cast<int64_t>(i) % draws); }};
    return {"f32", [=](uint64_t i) { return -0.001 * static_cast<double>(k + 1 + static_cast<int64_t>(i) % draws); }};
}

/* head.cu: the kept logits and the label's, the largest of the rest, and both its sums. */
Invention of_head_parts(const Origin& origin) {
    uint64_t width = argument(origin, 4);
    return {"f32", [=](uint64_t i) {
                uint64_t column = i % (width + 4);
                return column <= width ? -0.001 * static_cast<double>(column) : column == width + 1 ? -1 : 10.0 + static_cast<double>(column - width);
            }};
}

/* sinkhorn.cu: solved, with the marginals met. */
Invention of_sinkhorn(const Origin& origin) {
    if (origin.parameter != 4) return {};
    const uint64_t facts = 7, n = argument(origin, 6), m = argument(origin, 7);
    double most = static_cast<double>(argument(origin, 10));
    return {"f64", [=](uint64_t i) {
                uint64_t at = i % (facts + 2 * (n + m));
                const double of_problem[] = {0, std::min(SOLVER_PASSES, most), NEWTON_STEPS, 0, 0, 0.25, 0.5};
                if (at < facts) return of_problem[at];
                at -= facts;
                return at < n + m ? 0.0 : at - (n + m) < n ? 1.0 / static_cast<double>(n) : 1.0 / static_cast<double>(m);
            }};
}

/* Whether its equations were solved. */
Invention of_sharp_gradient(const Origin& origin) {
    if (origin.parameter != 3) return {};
    return {"f64", [](uint64_t) { return 1.0; }};
}
}  // namespace

Invention find_invention(const Origin& origin) {
    static const struct {
        const char* kernel;
        Invention (*find)(const Origin&);
    } table[] = {{"select_rows", of_select_rows}, {"draw_rows", of_draw_rows}, {"head_parts", of_head_parts}, {"sinkhorn", of_sinkhorn}, {"sharp_gradient", of_sharp_gradient}};
    for (const auto& row : table) {
        if (!strcmp(row.kernel, origin.entry->name)) return row.find(origin);
    }
    return {};
}
}  // namespace card

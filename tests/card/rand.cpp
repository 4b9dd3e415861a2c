/* libcurand: pseudorandom numbers by Philox, from the seed and a position alone. Not the numbers of cuRAND's default generator. */
#include <cmath>
#include <cstring>

#include "library.hpp"

#define CARD_API extern "C" __attribute__((visibility("default")))

namespace {
enum Status { SUCCESS = 0, NOT_INITIALIZED = 101, TYPE_ERROR = 103, LENGTH_NOT_MULTIPLE = 105, LAUNCH_FAILURE = 201 };

struct Generator {
    void* stream;
    uint64_t seed, position;
};

enum Kind { UNIFORM, NORMAL };

struct Work {
    void* to;
    size_t count, width;
    Kind kind;
    double mean, deviation;
    uint64_t seed, position;
};

/* Four 32-bit numbers for a counter: Philox 4x32 with ten rounds (Salmon et al., 2011). */
void philox(uint64_t key, uint64_t counter, uint32_t out[4]) {
    uint32_t x[4] = {static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32), 0, 0};
    uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
    for (int round = 0; round < 10; round++, k0 += 0x9e3779b9u, k1 += 0xbb67ae85u) {
        uint64_t a = uint64_t{0xd2511f53u} * x[0], b = uint64_t{0xcd9e8d57u} * x[2];
        uint32_t next[4] = {static_cast<uint32_t>(b >> 32) ^ x[1] ^ k0, static_cast<uint32_t>(b), static_cast<uint32_t>(a >> 32) ^ x[3] ^ k1,
                            static_cast<uint32_t>(a)};
        memcpy(x, next, sizeof x);
    }
    memcpy(out, x, sizeof x);
}

/* In (0, 1], as cuRAND's. */
double uniform(uint32_t high, uint32_t low, bool wide) {
    if (!wide) return (static_cast<double>(high) + 1) / 4294967296.0;
    uint64_t bits = (uint64_t{high} << 32 | low) >> 11;
    return (static_cast<double>(bits) + 1) / 9007199254740992.0;
}

void run(void* data) {
    const Work& work = *static_cast<Work*>(data);
    bool wide = work.width == 8;
    for (size_t i = 0; i < work.count; i++) {
        uint32_t x[4];
        philox(work.seed, work.position + i, x);
        double value = uniform(x[0], x[1], wide);
        if (work.kind == NORMAL) {
            /* Box and Muller. */
            double radius = std::sqrt(-2 * std::log(value)), angle = 2 * M_PI * uniform(x[2], x[3], wide);
            value = work.mean + work.deviation * radius * std::cos(angle);
        }
        if (wide) static_cast<double*>(work.to)[i] = value;
        else static_cast<float*>(work.to)[i] = static_cast<float>(value);
    }
}

void drop(void* data) { delete static_cast<Work*>(data); }

int generate(Generator* generator, const char* name, void* to, size_t count, size_t width, Kind kind, double mean, double deviation) {
    if (!generator) return NOT_INITIALIZED;
    /* Pairs come out of a transformation, so cuRAND wants an even number of them. */
    if (kind == NORMAL && count % 2) return LENGTH_NOT_MULTIPLE;
    if (count == 0) return SUCCESS;
    CardUse use{to, count * width, 1, count * width, true};
    CardWork work = {};
    work.name = name;
    work.uses = &use;
    work.use_count = 1;
    work.type = width == 8 ? "f64" : "f32";
    work.run = run;
    work.drop = drop;
    work.data = new Work{to, count, width, kind, mean, deviation, generator->seed, generator->position};
    generator->position += count;
    return card_enqueue(generator->stream, &work) == 0 ? SUCCESS : LAUNCH_FAILURE;
}
}  // namespace

CARD_API int curandCreateGenerator(Generator** generator, int type) {
    /* Pseudorandom kinds are from 100 to 199. */
    if (type < 100 || type >= 200) return TYPE_ERROR;
    *generator = new Generator{nullptr, 0, 0};
    return SUCCESS;
}

CARD_API int curandDestroyGenerator(Generator* generator) {
    if (!generator) return NOT_INITIALIZED;
    delete generator;
    return SUCCESS;
}

CARD_API int curandSetStream(Generator* generator, void* stream) {
    if (!generator) return NOT_INITIALIZED;
    generator->stream = stream;
    return SUCCESS;
}

CARD_API int curandSetPseudoRandomGeneratorSeed(Generator* generator, unsigned long long seed) {
    if (!generator) return NOT_INITIALIZED;
    generator->seed = seed;
    generator->position = 0;
    return SUCCESS;
}

CARD_API int curandSetGeneratorOffset(Generator* generator, unsigned long long offset) {
    if (!generator) return NOT_INITIALIZED;
    generator->position = offset;
    return SUCCESS;
}

CARD_API int curandGenerateUniform(Generator* generator, float* to, size_t count) {
    return generate(generator, "curandGenerateUniform", to, count, 4, UNIFORM, 0, 1);
}

CARD_API int curandGenerateUniformDouble(Generator* generator, double* to, size_t count) {
    return generate(generator, "curandGenerateUniformDouble", to, count, 8, UNIFORM, 0, 1);
}

CARD_API int curandGenerateNormal(Generator* generator, float* to, size_t count, float mean, float deviation) {
    return generate(generator, "curandGenerateNormal", to, count, 4, NORMAL, mean, deviation);
}

CARD_API int curandGenerateNormalDouble(Generator* generator, double* to, size_t count, double mean, double deviation) {
    return generate(generator, "curandGenerateNormalDouble", to, count, 8, NORMAL, mean, deviation);
}

/* What comes after the kernels' text: how a function is found by its index and given its arguments, each checked first. */
namespace emulator {
enum Kind { FLOATS = 0, BUFFER = 1, LONG = 2, INT = 3, FLOAT = 4 };

struct Argument {
    int kind;
    int dtype;
    void* data;
    i64 len;
    i64 integer;
    float number;
};

template <class T> struct Parameter;
template <> struct Parameter<Floats> {
    static bool takes(const Argument& a) { return a.kind == FLOATS; }
    static Floats of(const Argument& a) { return {a.data, a.len, a.dtype}; }
};
template <> struct Parameter<i64> {
    static bool takes(const Argument& a) { return a.kind == LONG; }
    static i64 of(const Argument& a) { return a.integer; }
};
template <> struct Parameter<int> {
    static bool takes(const Argument& a) { return a.kind == INT; }
    static int of(const Argument& a) { return (int)a.integer; }
};
template <> struct Parameter<float> {
    static bool takes(const Argument& a) { return a.kind == FLOAT; }
    static float of(const Argument& a) { return a.number; }
};
template <class T> int code_of();
template <> int code_of<float>() { return F32; }
template <> int code_of<u8>() { return U8; }
template <> int code_of<u32>() { return U32; }
template <> int code_of<i64>() { return I64; }
template <> int code_of<double>() { return F64; }
template <class T> struct Parameter<Buffer<T>> {
    static bool takes(const Argument& a) { return a.kind == BUFFER && a.dtype == code_of<T>(); }
    static Buffer<T> of(const Argument& a) { return {(T*)a.data, a.len}; }
};

static const Argument* arguments;

template <auto function> struct Kernel;
template <class... T, void (*function)(T...)> struct Kernel<function> {
    template <size_t... i> static bool takes(std::index_sequence<i...>) { return (Parameter<T>::takes(arguments[i]) && ...); }
    template <size_t... i> static void call(std::index_sequence<i...>) { function(Parameter<T>::of(arguments[i])...); }
    static bool accepts(size_t count) { return count == sizeof...(T) && takes(std::index_sequence_for<T...>()); }
    static void run() { call(std::index_sequence_for<T...>()); }
};

struct Entry {
    bool (*accepts)(size_t);
    void (*run)();
};

/* Of the list of entries, which is written after this text. */
static Entry entry_at(size_t function);
}  // namespace emulator
#define ENTRY(name) {emulator::Kernel<&::name>::accepts, emulator::Kernel<&::name>::run}

extern "C" void emulate(size_t function, const unsigned* grid, unsigned threads, unsigned shared, int reverse, const emulator::Argument* given,
                        size_t count, char* error, size_t error_len) {
    emulator::arguments = given;
    emulator::Entry entry = emulator::entry_at(function);
    if (!entry.accepts(count)) {
        snprintf(error, error_len, "%zu arguments that are not of its parameters' types", count);
        return;
    }
    emulator::run_grid({grid[0], grid[1], grid[2]}, threads, shared, reverse != 0, entry.run, error, error_len);
}

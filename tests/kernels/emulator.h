// Runs CUDA kernels on the CPU, one GPU thread after the other, to check their indexing, masks and
// reductions without a GPU. It shows neither their speed nor how nvcc compiles them.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#define HPCGNN_EMULATED
#define __global__ static
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct uint2 {
    unsigned x, y;
};
struct uint4 {
    unsigned x, y, z, w;
};
struct Index {
    unsigned x, y, z;
};
extern Index threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

// Returns the value passed by thread `from_lane` of this warp; all threads of the mask must call it.
uint64_t exchange(unsigned mask, uint64_t bits, int from_lane);
int lane();
void synchronise();

// Runs x * y blocks of threads that each call body(given); returns an error, or null.
const char* run(void (*body)(void**), void** given, unsigned x, unsigned y, unsigned threads,
                unsigned seed);

template <int... I>
struct Numbers {};
template <int N, int... I>
struct UpTo : UpTo<N - 1, N - 1, I...> {};
template <int... I>
struct UpTo<0, I...> {
    typedef Numbers<I...> type;
};
template <class T>
struct Plain {
    typedef T type;
};
template <class T>
struct Plain<const T> {
    typedef T type;
};

// A kernel that takes its arguments as an array of addresses.
template <class... P>
struct Caller {
    static inline void (*kernel)(P...);

    template <int... I>
    static void call(void** given, Numbers<I...>) {
        kernel(*static_cast<typename Plain<P>::type*>(given[I])...);
    }
    static void body(void** given) { call(given, typename UpTo<sizeof...(P)>::type()); }
};

template <class... P>
const char* launch(void (*kernel)(P...), unsigned x, unsigned y, unsigned threads, unsigned seed,
                   void** given) {
    Caller<P...>::kernel = kernel;
    return run(Caller<P...>::body, given, x, y, threads, seed);
}

}  // namespace emulator

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int other) {
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    bits = emulator::exchange(mask, bits, emulator::lane() ^ other);
    memcpy(&value, &bits, sizeof value);
    return value;
}
template <class T>
T __shfl_sync(unsigned mask, T value, int from) {
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    bits = emulator::exchange(mask, bits, from);
    memcpy(&value, &bits, sizeof value);
    return value;
}
inline void __syncwarp() { emulator::exchange(0xffffffffu, 0, emulator::lane()); }
inline void __syncthreads() { emulator::synchronise(); }
template <class T>
T __ldg(const T* from) {
    return *from;
}
inline int min(int x, int y) { return x < y ? x : y; }
template <class To, class From>
To same_bits(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
inline int __float_as_int(float value) { return same_bits<int>(value); }
inline long long __double_as_longlong(double value) { return same_bits<long long>(value); }
inline double __longlong_as_double(long long bits) { return same_bits<double>(bits); }
inline float __int_as_float(int bits) { return same_bits<float>(bits); }
inline float __fmul_rn(float x, float y) { return x * y; }
inline double __dmul_rn(double x, double y) { return x * y; }
inline float __expf(float x) { return expf(x); }
inline long long __float2ll_rn(float x) { return llrintf(x); }
inline long long __double2ll_rn(double x) { return llrint(x); }
inline unsigned long long atomicAdd(unsigned long long* to, unsigned long long value) {
    const unsigned long long before = *to;
    *to += value;
    return before;
}
template <class T>
T atomicMax(T* to, T value) {
    const T before = *to;
    *to = before > value ? before : value;
    return before;
}

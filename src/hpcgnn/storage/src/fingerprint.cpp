// splitmix64 (Steele, Lea, Flood 2014) over arrays: the terms of fingerprints.
#include <cstdint>
#include <cstring>

#define EXPORT extern "C" __attribute__((visibility("default")))
#define INLINE inline __attribute__((always_inline))
#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__)
#define WITH_AVX2 __attribute__((target_clones("avx2", "default")))  // nearly twice as fast
#else
#define WITH_AVX2
#endif

namespace {

INLINE uint64_t mixed(uint64_t x) {
    x += 0x9E3779B97F4A7C15;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
    return x ^ (x >> 31);
}

template <class T>
INLINE uint64_t sum(const char* values, int64_t n, uint64_t first) {
    uint64_t total = 0;
    for (int64_t k = 0; k < n; k++) {
        T value;  // the array need not be aligned
        std::memcpy(&value, values + k * sizeof(T), sizeof(T));
        total += mixed(mixed(first + k) ^ static_cast<uint64_t>(static_cast<int64_t>(value)));
    }
    return total;
}

}  // namespace

// x [n] in place: a bijection that spreads every bit.
EXPORT void hpcgnn_mix(uint64_t* x, int64_t n) {
    for (int64_t k = 0; k < n; k++) x[k] = mixed(x[k]);
}

// The sum of mixed(mixed(first + k) ^ value k) over values [n] of `bytes` bytes each, taken as
// integers with a sign where `has_sign`.
EXPORT WITH_AVX2 uint64_t hpcgnn_fingerprint(const char* values, int64_t bytes, int64_t has_sign,
                                             int64_t n, uint64_t first) {
    if (bytes == 8) return sum<int64_t>(values, n, first);
    if (bytes == 4)
        return has_sign ? sum<int32_t>(values, n, first) : sum<uint32_t>(values, n, first);
    if (bytes == 2)
        return has_sign ? sum<int16_t>(values, n, first) : sum<uint16_t>(values, n, first);
    return has_sign ? sum<int8_t>(values, n, first) : sum<uint8_t>(values, n, first);
}

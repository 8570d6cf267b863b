// Edges that are two ends of 4 bytes, source and destination, adjacent in memory.
#include <algorithm>
#include <cstdint>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

template <class T>
int64_t mark(const T* nodes, int64_t n, uint8_t* there) {
    int64_t found = 0;
    for (int64_t k = 0; k < n; k++) {
        found += 1 - there[nodes[k]];
        there[nodes[k]] = 1;
    }
    return found;
}

}  // namespace

// Store the ends [n], every `step`-th number of `sources` and `destinations`, cut to 4 bytes, and
// the lowest and the highest source, then those of the destinations in `bounds` [4]; n > 0.
EXPORT void hpcgnn_pack(const int64_t* sources, const int64_t* destinations, int64_t step,
                        int64_t n, int32_t* ends, int64_t* bounds) {
    int64_t low_s = sources[0], high_s = low_s, low_d = destinations[0], high_d = low_d;
    for (int64_t k = 0; k < n; k++) {
        int64_t s = sources[k * step], d = destinations[k * step];
        low_s = std::min(low_s, s);
        high_s = std::max(high_s, s);
        low_d = std::min(low_d, d);
        high_d = std::max(high_d, d);
        ends[2 * k] = static_cast<int32_t>(s);
        ends[2 * k + 1] = static_cast<int32_t>(d);
    }
    bounds[0] = low_s;
    bounds[1] = high_s;
    bounds[2] = low_d;
    bounds[3] = high_d;
}

// Set there[node] to 1 for each of the nodes [n], of 8 bytes if `wide`, else of 4; return how many
// of these were 0 before.
EXPORT int64_t hpcgnn_mark(const void* nodes, int64_t wide, int64_t n, uint8_t* there) {
    return wide ? mark(static_cast<const int64_t*>(nodes), n, there)
                : mark(static_cast<const int32_t*>(nodes), n, there);
}

// Store the sources of edges [n] in ascending order of their destinations, and for the nodes from
// `first` on the number of edges into each in `counts`, which are 0 before.
EXPORT void hpcgnn_unpack(const int32_t* ends, int64_t n, int64_t first, int32_t* sources,
                          int64_t* counts) {
    int64_t start = 0;
    for (int64_t k = 0; k < n; k++) {
        sources[k] = ends[2 * k];
        if (k + 1 == n || ends[2 * k + 1] != ends[2 * k + 3]) {
            counts[ends[2 * k + 1] - first] = k + 1 - start;
            start = k + 1;
        }
    }
}

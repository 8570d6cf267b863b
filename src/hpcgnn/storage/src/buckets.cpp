// The first step of sorting numbers: by their leading bits, piece by piece within the cache.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

int64_t bucket_of(int64_t number, int64_t shift, int64_t buckets) {
    return std::min(static_cast<int64_t>(static_cast<uint64_t>(number) >> shift), buckets - 1);
}

}  // namespace

// Order each piece of `size` of the numbers [n] by bucket, number >> shift or the last one. Bucket
// b of piece p is then at starts[p, b] .. starts[p, b + 1] in the piece; `room` [size] is overwritten.
EXPORT void hpcgnn_scatter(int64_t* numbers, int64_t n, int64_t size, int64_t shift,
                           int64_t buckets, int64_t* room, int32_t* starts) {
    std::vector<int32_t> next(buckets);
    for (int64_t first = 0; first < n; first += size, starts += buckets + 1) {
        int64_t* piece = numbers + first;
        int64_t count = std::min(size, n - first);
        std::fill(starts, starts + buckets + 1, 0);
        for (int64_t k = 0; k < count; k++) starts[bucket_of(piece[k], shift, buckets) + 1]++;
        for (int64_t b = 0; b < buckets; b++) {
            next[b] = starts[b];
            starts[b + 1] += starts[b];
        }
        for (int64_t k = 0; k < count; k++) {
            room[next[bucket_of(piece[k], shift, buckets)]++] = piece[k];
        }
        std::memcpy(piece, room, count * sizeof(int64_t));
    }
}

// Copy the numbers of one bucket from all pieces to `out`.
EXPORT void hpcgnn_gather(const int64_t* numbers, int64_t pieces, int64_t size, int64_t buckets,
                          const int32_t* starts, int64_t bucket, int64_t* out) {
    for (int64_t p = 0; p < pieces; p++, starts += buckets + 1, numbers += size) {
        int64_t count = starts[bucket + 1] - starts[bucket];
        if (count == 0) continue;
        std::memcpy(out, numbers + starts[bucket], count * sizeof(int64_t));
        out += count;
    }
}

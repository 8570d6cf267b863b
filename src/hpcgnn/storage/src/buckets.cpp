// Sorting of numbers in two steps: by their leading bits, piece by piece within the cache, then each
// bucket of equal leading bits, also within the cache.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

constexpr int DIGIT = 11;    // bits by which numbers are distributed at a time
constexpr int64_t FEW = 256;  // numbers that are sorted faster by comparing them

int64_t bucket_of(int64_t number, int64_t shift, int64_t buckets) {
    return std::min(static_cast<int64_t>(static_cast<uint64_t>(number) >> shift), buckets - 1);
}

// Copy the numbers of one bucket from all pieces to `out`; return their number.
int64_t gather(const int64_t* numbers, int64_t pieces, int64_t size, int64_t buckets,
               const int32_t* starts, int64_t bucket, int64_t* out) {
    int64_t* end = out;
    for (int64_t p = 0; p < pieces; p++, starts += buckets + 1, numbers += size) {
        int64_t count = starts[bucket + 1] - starts[bucket];
        if (count == 0) continue;
        std::memcpy(end, numbers + starts[bucket], count * sizeof(int64_t));
        end += count;
    }
    return end - out;
}

// Copy numbers [n] to `out` in the stable order of the DIGIT bits above `low`.
void distribute(const int64_t* numbers, int64_t n, int low, int64_t* out) {
    constexpr uint64_t mask = (1 << DIGIT) - 1;
    uint32_t next[1 << DIGIT] = {};
    for (int64_t k = 0; k < n; k++) next[static_cast<uint64_t>(numbers[k]) >> low & mask]++;
    uint32_t before = 0;
    for (uint32_t& entry : next) {
        uint32_t count = entry;
        entry = before;
        before += count;
    }
    for (int64_t k = 0; k < n; k++) {
        out[next[static_cast<uint64_t>(numbers[k]) >> low & mask]++] = numbers[k];
    }
}

// Sort `numbers` [n], none negative, into `out`; `numbers` are overwritten.
void sort(int64_t* numbers, int64_t n, int64_t* out) {
    uint64_t varying = 0;
    for (int64_t k = 0; k < n; k++) varying |= static_cast<uint64_t>(numbers[k] ^ numbers[0]);
    int lows[64 / DIGIT + 1], passes = 0;  // digits that differ at all
    while (n > FEW && varying != 0) {
        int low = __builtin_ctzll(varying);
        varying &= low + DIGIT < 64 ? ~uint64_t{0} << (low + DIGIT) : 0;
        lows[passes++] = low;
    }
    if (passes % 2 == 0) std::memcpy(out, numbers, n * sizeof(int64_t));
    if (n <= FEW) std::sort(out, out + n);
    int64_t* from = passes % 2 == 0 ? out : numbers;
    int64_t* to = passes % 2 == 0 ? numbers : out;
    for (int pass = 0; pass < passes; pass++) {
        distribute(from, n, lows[pass], to);
        std::swap(from, to);
    }
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

// Write the numbers of the buckets first .. last - 1 from all pieces to `out`, in ascending order.
// `room` takes the numbers of the largest of these buckets.
EXPORT void hpcgnn_sort_buckets(const int64_t* numbers, int64_t pieces, int64_t size,
                                int64_t buckets, const int32_t* starts, int64_t first,
                                int64_t last, int64_t* room, int64_t* out) {
    for (int64_t bucket = first; bucket < last; bucket++) {
        int64_t n = gather(numbers, pieces, size, buckets, starts, bucket, room);
        sort(room, n, out);
        out += n;
    }
}

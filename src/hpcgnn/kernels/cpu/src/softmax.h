// The running softmax of a row and the sum weighted by it, for the scores of GAT and GATv2.
#pragma once

#include "gat.h"
#include "tiles.h"

namespace HPCGNN_ISA {

// weight = exp(weight - row_max) for `count` edges; returns its sum over edges.
template <typename T, int P>
HPCGNN_INLINE Vec<T, P> exponentials(T* weight, int count, Vec<T, P> row_max) {
    constexpr int V = FLAT<T, P>;
    const Vec<T, V> row_maxs = repeat<T, P, V>(row_max);
    store<T, V>(weight + count * P, Vec<T, V>{} - T(__builtin_inf()));
    Vec<T, V> row_sum{};
    for (int at = 0; at < count * P; at += V) {
        const Vec<T, V> value = exponential<T, V>(load<T, V>(weight + at) - row_maxs);
        store<T, V>(weight + at, value);
        row_sum += value;
    }
    return sum<T, V, P>(row_sum);
}

// The offset of scores: the largest, or 0 if all are -infinity and have no weight.
template <typename T, int P>
HPCGNN_INLINE Vec<T, P> base_of(Vec<T, P> row_max) {
    return row_max == -T(__builtin_inf()) ? Vec<T, P>{} : row_max;
}

// The running softmax of a row with more than LONGEST edges: parts of the row with their own
// softmax, combined in doubles.
template <typename T, int P>
class JoinedSoftmax {
  public:
    JoinedSoftmax(Heads heads, int64_t channels)
        : heads_(heads), channels_(channels), low_(heads.first * channels),
          high_(low_ + heads.count * channels) {}

    // The row's state from other blocks counts as its first part.
    void begin(Vec<T, P> row_max, Vec<T, P> row_sum, const T* out) {
        if (part_.size() == 0) part_.add_zeros(high_), sum_.add_zeros(high_);
        for (int h = 0; h < P; h++) row_max_[h] = -__builtin_inf(), row_sum_[h] = 0;
        memset(sum_.data(), 0, high_ * sizeof(double));
        memcpy(part_.data() + low_, out + low_, (high_ - low_) * sizeof(T));
        add(row_max, row_sum);
    }

    // Return the place of the next part's sum, set to zeros.
    HPCGNN_INLINE T* part() { return part_.data(); }

    void add(Vec<T, P> part_max, Vec<T, P> part_sum) {
        T row_maxs[P], row_sums[P];
        store<T, P>(row_maxs, part_max);
        store<T, P>(row_sums, part_sum);
        for (int64_t h = 0; h < heads_.count; h++) {
            const double row_max = row_maxs[h] > row_max_[h] ? row_maxs[h] : row_max_[h];
            const double base = base_of<double, 1>(row_max);
            const double before = exponential<double, 1>(row_max_[h] - base);
            const double now = exponential<double, 1>(row_maxs[h] - base);
            row_max_[h] = row_max;
            row_sum_[h] = row_sum_[h] * before + row_sums[h] * now;
            for (int64_t c = low_ + h * channels_; c < low_ + (h + 1) * channels_; c++) {
                sum_[c] = sum_[c] * before + part_[c] * now;
                part_[c] = 0;
            }
        }
    }

    void end(Vec<T, P>& row_max, Vec<T, P>& row_sum, T* out) const {
        T row_maxs[P] = {}, row_sums[P] = {};
        for (int64_t h = 0; h < heads_.count; h++) {
            row_maxs[h] = static_cast<T>(row_max_[h]);
            row_sums[h] = static_cast<T>(row_sum_[h]);
        }
        for (int64_t c = low_; c < high_; c++) out[c] = static_cast<T>(sum_[c]);
        row_max = load<T, P>(row_maxs);
        row_sum = load<T, P>(row_sums);
    }

  private:
    Heads heads_;
    int64_t channels_, low_, high_;
    double row_max_[P] = {}, row_sum_[P] = {};
    Buffer<T> part_;
    Buffer<double> sum_;
};

// A row's state so far, updated in place.
struct RunningSoftmax {
    Matrix row_max, row_sum, out;
};

// Row k's edges, at most MOST at a time: score(from, columns, weight, count, best) writes the scores
// of `count` edges from `from` on and returns the maximum of them and `best`, sum(chunk) sums.
// `start` replaces the row of `out`, unless it is null or the row is long.
template <typename T, int P, int MOST, typename Score, typename Sum>
HPCGNN_INLINE void attend_row(const Edges& edges, int64_t k, const RunningSoftmax& softmax,
                              Heads heads, const Matrix& gathered, const EdgeMask& mask,
                              JoinedSoftmax<T, P>& joined, const void* start, const Score& score,
                              const Sum& sum) {
    alignas(64) T weight[MOST * P + FLAT<T, P>], scale[P];
    int64_t columns[MOST];
    const int64_t row = local_row(edges, k);
    Vec<T, P> row_max = load_heads<T, P>(softmax.row_max, row, heads);
    Vec<T, P> row_sum = load_heads<T, P>(softmax.row_sum, row, heads);
    T* out = row_of<T>(softmax.out, row);
    const bool is_long = edges.end[k] - edges.begin[k] > LONGEST;
    if (is_long) joined.begin(row_max, row_sum, out), start = nullptr;
    for_each_part(edges.begin[k], edges.end[k], [&](int64_t begin, int64_t end) {
        if (is_long) row_max = Vec<T, P>{} - T(__builtin_inf()), row_sum = Vec<T, P>{};
        for (int64_t from = begin; from < end; from += MOST) {
            const int64_t left = end - from;
            const int count = left < MOST ? static_cast<int>(left) : MOST;
            const Vec<T, P> best = score(from, columns, weight, count, row_max);
            const Vec<T, P> base = base_of<T, P>(best);
            const Vec<T, P> rescale = exponential<T, P>(row_max - base);
            store<T, P>(scale, rescale);
            row_max = best;
            row_sum = row_sum * rescale + exponentials<T, P>(weight, count, base);
            mask.apply<T, P>(weight, columns, count, row, heads.first);
            sum(SumChunk<T>{P, count, columns, weight, scale, gathered,
                            is_long ? joined.part() : out, start});
            start = nullptr;
        }
        if (is_long) joined.add(row_max, row_sum);
    });
    if (is_long) joined.end(row_max, row_sum, out);
    store_heads<T, P>(softmax.row_max, row, heads, row_max);
    store_heads<T, P>(softmax.row_sum, row, heads, row_sum);
}

}  // namespace HPCGNN_ISA

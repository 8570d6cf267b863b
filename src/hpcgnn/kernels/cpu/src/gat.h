// What both directions of attention share: scores of a row's edges, their dropout, groups of heads.
//
// Up to GROUP heads are worked on at a time, padded to a power of two P. Scores of up to CHUNK edges
// lie side by side, P lanes for each edge.
#pragma once

#include "../../random.h"
#include "schedule.h"

namespace HPCGNN_ISA {

constexpr int GROUP = 8;
constexpr int CHUNK = 64;
constexpr int SCORES_AHEAD = 32;  // edges between fetching what their scores need and using it

// Heads first .. first + count - 1.
struct Heads {
    int64_t first, count;
};

template <typename T, int P>
HPCGNN_INLINE Vec<T, P> load_heads(const Matrix& matrix, int64_t row, Heads heads) {
    const T* from = row_of<T>(matrix, row) + heads.first;
    if (heads.count == P) return load<T, P>(from);
    T lanes[P] = {};
    for (int64_t h = 0; h < heads.count; h++) lanes[h] = from[h];
    return load<T, P>(lanes);
}

template <typename T, int P>
HPCGNN_INLINE void store_heads(const Matrix& matrix, int64_t row, Heads heads, Vec<T, P> value) {
    T lanes[P];
    store<T, P>(lanes, value);
    T* to = row_of<T>(matrix, row) + heads.first;
    for (int64_t h = 0; h < heads.count; h++) to[h] = lanes[h];
}

// A thread's own matrix, `offset` numbers from the first thread's; none where there is none.
template <typename T>
HPCGNN_INLINE Matrix part_of(const Matrix& first, int64_t offset) {
    return first.data ? Matrix{row_of<T>(first, 0) + offset, first.stride} : first;
}

// The same P lanes again and again.
template <typename T, int P, int V>
HPCGNN_INLINE Vec<T, V> repeat(Vec<T, P> value) {
    T lanes[V];
    for (int at = 0; at < V; at += P) store<T, P>(lanes + at, value);
    return load<T, V>(lanes);
}

template <typename T, int P>
constexpr int FLAT = P > LANES<T> ? P : LANES<T>;

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

// What scores are counted from: the largest, or 0 where all are -infinity and count nothing.
template <typename T, int P>
HPCGNN_INLINE Vec<T, P> base_of(Vec<T, P> row_max) {
    return row_max == -T(__builtin_inf()) ? Vec<T, P>{} : row_max;
}

// The running softmax of a row with more than LONGEST edges: parts of the row that have a softmax of
// their own each, joined in doubles.
template <typename T, int P>
class JoinedSoftmax {
  public:
    JoinedSoftmax(Heads heads, int64_t channels)
        : heads_(heads), channels_(channels), low_(heads.first * channels),
          high_(low_ + heads.count * channels) {}

    // What the row has from other blocks counts as its first part.
    void begin(Vec<T, P> row_max, Vec<T, P> row_sum, const T* out) {
        if (part_.size() == 0) part_.add_zeros(high_), sum_.add_zeros(high_);
        for (int h = 0; h < P; h++) row_max_[h] = -__builtin_inf(), row_sum_[h] = 0;
        memset(sum_.data(), 0, high_ * sizeof(double));
        memcpy(part_.data() + low_, out + low_, (high_ - low_) * sizeof(T));
        add(row_max, row_sum);
    }

    // Where the next part's sum goes: zeros.
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
    double row_max_[P], row_sum_[P];
    Buffer<T> part_;
    Buffer<double> sum_;
};

// The vectors that edge features are multiplied with, transposed: one row of P lanes per feature.
template <typename T, int P>
class EdgeTerm {
  public:
    EdgeTerm(const Edges& edges, const Matrix& edge_vector, Heads heads)
        : features_(edge_vector.data ? edges.features : nullptr), width_(edges.feature_width) {
        if (!features_) return;
        lanes_.add_zeros(width_ * P);
        for (int64_t h = 0; h < heads.count; h++)
            for (int64_t d = 0; d < width_; d++)
                lanes_[d * P + h] = row_of<T>(edge_vector, heads.first + h)[d];
    }

    HPCGNN_INLINE Vec<T, P> of(int64_t edge) const {
        Vec<T, P> term{};
        if (features_)
            for (int64_t d = 0; d < width_; d++)
                term += static_cast<T>(features_[edge * width_ + d]) * load<T, P>(lanes_.data() + d * P);
        return term;
    }

  private:
    const float* features_;
    int64_t width_;
    Buffer<T> lanes_;
};

// Sums over edges of (gradient of the score) * (edge features), for one thread.
template <typename T, int P>
class TermGradient {
  public:
    TermGradient(const Edges& edges, const Matrix& grad, int64_t offset, Heads heads)
        : features_(grad.data ? edges.features : nullptr), width_(edges.feature_width),
          grad_(part_of<T>(grad, offset)), heads_(heads), sums_(1, 0, width_ * P) {}

    ~TermGradient() {
        if (!features_) return;
        Buffer<T> lanes(width_ * P);
        sums_.add_to(Matrix{lanes.data(), 0});
        for (int64_t h = 0; h < heads_.count; h++)
            for (int64_t d = 0; d < width_; d++)
                row_of<T>(grad_, heads_.first + h)[d] += lanes[d * P + h];
    }
    TermGradient(const TermGradient&) = delete;

    HPCGNN_INLINE void add(int64_t edge, Vec<T, P> gradient) {
        if (!features_) return;
        T* lanes = row_of<T>(sums_.part(), 0);
        for (int64_t d = 0; d < width_; d++, lanes += P) {
            const T feature = static_cast<T>(features_[edge * width_ + d]);
            store<T, P>(lanes, load<T, P>(lanes) + feature * gradient);
        }
        sums_.count(1);
    }

  private:
    const float* features_;
    int64_t width_;
    Matrix grad_;
    Heads heads_;
    LongSum<T> sums_;
};

// Multiplies the weights of a row's edges by mask / (1 - p).
class EdgeMask {
  public:
    explicit EdgeMask(const Dropout* dropout) : dropout_(dropout) {
        if (!dropout) return;
        const Stream& stream = dropout->stream;
        key_ = hpcgnn_stream(stream.seed, stream.epoch, stream.layer);
        threshold_ = hpcgnn_threshold(dropout->p);
        scale_ = 1 / (1 - dropout->p);
    }

    template <typename T, int P>
    HPCGNN_INLINE void apply(T* weight, const int64_t* columns, int count, int64_t row,
                             int64_t first_head) const {
        if (!dropout_) return;
        uint32_t low[CHUNK * P], high[CHUNK * P];
        const bool reversed = dropout_->reversed;
        const uint64_t row_id = dropout_->row_ids[row];
        const uint64_t row_state = reversed ? hpcgnn_node_state(key_, row_id)
                                            : hpcgnn_destination_state(key_, row_id);
        for (int i = 0; i < count; i++) {
            const uint64_t id = dropout_->column_ids[columns[i]];
            const uint64_t state =
                row_state + (reversed ? hpcgnn_destination_state(key_, id) : hpcgnn_node_state(key_, id));
            for (int h = 0; h < P; h++) {
                low[i * P + h] = static_cast<uint32_t>(state);
                high[i * P + h] = static_cast<uint32_t>(state >> 32);
            }
        }
        const T scale = static_cast<T>(scale_);
        const uint32_t threshold = threshold_, head = static_cast<uint32_t>(first_head);
#pragma omp simd
        for (int at = 0; at < count * P; at++) {
            uint32_t bits;
            HPCGNN_RANDOM_BITS(bits, low[at], high[at], head + static_cast<uint32_t>(at % P));
            weight[at] = bits >= threshold ? weight[at] * scale : T(0);
        }
    }

  private:
    const Dropout* dropout_;
    uint64_t key_ = 0;
    uint32_t threshold_ = 0;
    double scale_ = 1;
};

// Calls body(heads, padded) for groups of heads; `padded` carries the power of two P.
template <int P>
struct Padded {
    static constexpr int LANES = P;
};

template <typename Body>
inline void for_each_group(int64_t num_heads, const Body& body) {
    for (int64_t first = 0; first < num_heads; first += GROUP) {
        const int64_t left = num_heads - first, count = left < GROUP ? left : GROUP;
        const Heads heads{first, count};
        if (count == 1)
            body(heads, Padded<1>{});
        else if (count == 2)
            body(heads, Padded<2>{});
        else if (count <= 4)
            body(heads, Padded<4>{});
        else
            body(heads, Padded<8>{});
    }
}

template <typename T, int P>
HPCGNN_INLINE Vec<T, P> leaky(Vec<T, P> value, T slope) {
    return value > 0 ? value : slope * value;
}

}  // namespace HPCGNN_ISA

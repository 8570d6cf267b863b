// Code shared by both directions of attention: scores of a row's edges, dropout, groups of heads.
//
// Up to GROUP heads are processed together, padded to a power of two P. Scores of up to CHUNK edges
// are adjacent, with P lanes for each edge.
#pragma once

#include "../../random.h"
#include "schedule.h"

namespace HPCGNN_ISA {

constexpr int GROUP = 8;
constexpr int CHUNK = 64;
constexpr int SCORES_AHEAD = 32;  // edges between prefetching and using inputs of scores

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

// A thread's own matrix, `offset` numbers after the first thread's; null if that is null.
template <typename T>
HPCGNN_INLINE Matrix part_of(const Matrix& first, int64_t offset) {
    return first.data ? Matrix{row_of<T>(first, 0) + offset, first.stride} : first;
}

// The same P lanes, repeated.
template <typename T, int P, int V>
HPCGNN_INLINE Vec<T, V> repeat(Vec<T, P> value) {
    T lanes[V];
    for (int at = 0; at < V; at += P) store<T, P>(lanes + at, value);
    return load<T, V>(lanes);
}

template <typename T, int P>
constexpr int FLAT = P > LANES<T> ? P : LANES<T>;

// The vectors that edge features are multiplied by, transposed: one row of P lanes per feature.
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
        const uint32_t threshold = threshold_;
        const uint32_t head = static_cast<uint32_t>(dropout_->first_head + first_head);
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

// Attention, forward: scores, running softmax and weighted sum of a block in one pass.
#include "attention.h"

namespace HPCGNN_ISA {
namespace {

struct Forward {
    Matrix z, s, t, top, total, out, edge_vector;
    int64_t num_heads, channels;
    double slope;
    const Dropout* dropout;
};

// to = scale * to + sum over edges of weight * z[column], for one tile.
template <typename T, typename Tile>
struct Add {
    static void run(const Chunk<T>& chunk, Lookahead& cursor, int64_t channels, int64_t lane,
                    int64_t column, int64_t last_) {
        constexpr int N = Tile::N, U = Tile::U, M = Tile::M;
        const int64_t width = Tile::EXACT ? U * N : channels;
        const int64_t last = Tile::EXACT ? (U - 1) * N : last_;
        const auto at = [&](int m, int u) { return m * width + (u == U - 1 ? last : u * N); };
        const T* source = static_cast<const T*>(chunk.gathered.data) + column;
        const int64_t stride = chunk.gathered.stride, lanes = chunk.lanes;
        T* to = chunk.to + column;
        Lookahead ahead = cursor;
        Vec<T, N> sum[M][U];
        for (int m = 0; m < M; m++)
            for (int u = 0; u < U; u++)
                sum[m][u] = load<T, N>(to + at(m, u)) * chunk.scale[lane + m];
        for (int64_t i = 0; i < chunk.count; i++) {
            const T* next = source + ahead.next() * stride;
            if (Tile::EXACT)
                prefetch<M * U * N * sizeof(T)>(next);
            else
                for (int m = 0; m < M; m++) prefetch<U * N * sizeof(T)>(next + m * width);
            const T* from = source + chunk.columns[i] * stride;
            const T* weight = chunk.weight + i * lanes + lane;
            for (int m = 0; m < M; m++)
                for (int u = 0; u < U; u++) sum[m][u] += weight[m] * load<T, N>(from + at(m, u));
        }
        cursor = ahead;
        for (int m = 0; m < M; m++)
            for (int u = 0; u < U; u++) store<T, N>(to + at(m, u), sum[m][u]);
    }
};
template <typename T>
struct Add<T, void> {
    static constexpr int MAX = MAX_VECTORS;
};

// weight = exp(weight - top) for `count` edges; returns its sum over edges.
template <typename T, int P>
HPCGNN_INLINE Vec<T, P> exponentials(T* weight, int count, Vec<T, P> top) {
    constexpr int V = FLAT<T, P>;
    const Vec<T, V> tops = repeat<T, P, V>(top);
    store<T, V>(weight + count * P, Vec<T, V>{} - T(__builtin_inf()));
    Vec<T, V> total{};
    for (int at = 0; at < count * P; at += V) {
        const Vec<T, V> value = exponential<T, V>(load<T, V>(weight + at) - tops);
        store<T, V>(weight + at, value);
        total += value;
    }
    return sum<T, V, P>(total);
}

template <typename T, int P>
void attend(const Edges& edges, const Forward& f, Heads heads, int64_t first, int64_t last) {
    const EdgeTerm<T, P> term(edges, f.edge_vector, heads);
    const EdgeMask mask(f.dropout);
    const TileJobs<T, Add> jobs(heads, f.channels);
    const T slope = static_cast<T>(f.slope);
    alignas(64) T weight[CHUNK * P + FLAT<T, P>], scale[P];
    int64_t columns[CHUNK];
    Lookahead ahead(edges, first, last);
    ahead.skip(edges_ahead(f.num_heads * f.channels * sizeof(T)));
    for (int64_t k = first; k < last; k++) {
        if (edges.begin[k] == edges.end[k]) continue;
        const int64_t row = local_row(edges, k);
        const Vec<T, P> t = load_heads<T, P>(f.t, row, heads);
        Vec<T, P> top = load_heads<T, P>(f.top, row, heads);
        Vec<T, P> total = load_heads<T, P>(f.total, row, heads);
        for (int64_t from = edges.begin[k]; from < edges.end[k]; from += CHUNK) {
            const int64_t left = edges.end[k] - from;
            const int count = left < CHUNK ? static_cast<int>(left) : CHUNK;
            Vec<T, P> best = top;
            for (int i = 0; i < count; i++) {
                columns[i] = edges.columns[from + i] - edges.column_offset;
                const Vec<T, P> l = load_heads<T, P>(f.s, columns[i], heads) + t + term.of(from + i);
                const Vec<T, P> u = leaky<T, P>(l, slope);
                store<T, P>(weight + i * P, u);
                best = u > best ? u : best;
            }
            const Vec<T, P> rescale = exponential<T, P>(top - best);
            store<T, P>(scale, rescale);
            top = best;
            total = total * rescale + exponentials<T, P>(weight, count, top);
            mask.apply<T, P>(weight, columns, count, row, heads.first);
            const Chunk<T> chunk{P,    count, columns, weight, nullptr, f.z, nullptr,
                                 row_of<T>(f.out, row), scale};
            jobs.run(chunk, ahead);
        }
        store_heads<T, P>(f.top, row, heads, top);
        store_heads<T, P>(f.total, row, heads, total);
    }
}

template <typename T>
void attention_forward(const Edges& edges, const Forward& f) {
    for_each_piece(edges, [&](int64_t, int64_t first, int64_t last) {
        for_each_group(f.num_heads, [&](Heads heads, auto padded) {
            attend<T, decltype(padded)::LANES>(edges, f, heads, first, last);
        });
    });
}

}  // namespace
}  // namespace HPCGNN_ISA

HPCGNN_EXPORT(attention_forward)(const Edges* edges, int64_t is_double, Matrix z, Matrix s, Matrix t,
                                 Matrix top, Matrix total, Matrix out, Matrix edge_vector,
                                 int64_t num_heads, int64_t channels, double slope,
                                 const Dropout* dropout) {
    const HPCGNN_ISA::Forward f{z,   s,           t,         top,      total, out,
                                edge_vector, num_heads, channels, slope, dropout};
    if (is_double)
        HPCGNN_ISA::attention_forward<double>(*edges, f);
    else
        HPCGNN_ISA::attention_forward<float>(*edges, f);
}

// Attention, backward, at the source's owner: rows are sources j, columns their destinations i.
#include "gat.h"
#include "tiles.h"

namespace HPCGNN_ISA {
namespace {

struct Backward {
    Matrix g, t, lse, d, z, s, grad_z, grad_s, grad_t, edge_vector, grad_edge_vector;
    int64_t num_heads, channels;
    int64_t grad_t_step;            // doubles between two threads' partial sums
    int64_t grad_edge_vector_step;  // likewise
    double slope;
    const Dropout* dropout;
    bool self_loops;  // each row also has an edge to itself, which comes first
    bool adds;   // to the content of grad_z; otherwise it is overwritten
};

// The inputs of one pass over a chunk of a row's edges; rows of g and z are stored as S.
template <typename T, typename S>
struct BackwardChunk {
    int64_t lanes;           // P
    int64_t count;           // edges
    const int64_t* columns;  // count
    const T* weight;         // count x P
    T* dot;                  // count x P
    Matrix gathered;         // g
    const S* own;            // this row of z
    T* to;                   // this row of grad_z
    bool adds;
};

// to += sum over edges of weight * g[column], and dot += <g[column], own>, for one tile.
template <typename T, typename S, typename Tile>
struct AddAndDot {
    static void run(const BackwardChunk<T, S>& chunk, Lookahead& cursor, int64_t channels,
                    int64_t lane, int64_t column, int64_t last) {
        constexpr int N = Tile::N, U = Tile::U, M = Tile::M;
        const Columns<Tile> at(channels, last);
        const S* source = static_cast<const S*>(chunk.gathered.data) + column;
        const int64_t stride = chunk.gathered.stride, lanes = chunk.lanes;
        T* to = chunk.to + column;
        Lookahead ahead = cursor;
        Vec<T, N> grad[M][U] = {}, own[M][U];
        for (int m = 0; m < M; m++) {
            for (int u = 0; u < U; u++) own[m][u] = load_as<T, N, S>(chunk.own + column + at(m, u));
            if (!Tile::EXACT) own[m][U - 1] = without_first<T, N>(own[m][U - 1], at.shared());
        }
        for (int64_t i = 0; i < chunk.count; i++) {
            at.prefetch_tile(source + ahead.next() * stride);
            const S* from = source + chunk.columns[i] * stride;
            const T* weight = chunk.weight + i * lanes + lane;
            Vec<T, N> dot[M];
            for (int m = 0; m < M; m++) {
                dot[m] = Vec<T, N>{};
                for (int u = 0; u < U; u++) {
                    const Vec<T, N> g = load_as<T, N, S>(from + at(m, u));
                    grad[m][u] += weight[m] * g;
                    dot[m] += own[m][u] * g;
                }
            }
            add_sums<T, N, M>(chunk.dot + i * lanes + lane, dot);
        }
        cursor = ahead;
        for (int m = 0; m < M; m++) {
            if (chunk.adds)
                for (int u = 0; u < U; u++) grad[m][u] += load<T, N>(to + at(m, u));
            for (int u = 0; u < U; u++) store<T, N>(to + at(m, u), grad[m][u]);
        }
    }
};
template <typename T, typename S>
struct AddAndDot<T, S, void> {
    using Chunk = BackwardChunk<T, S>;
    static constexpr int MAX = sizeof(T) == 4 ? MAX_VECTORS / 2 : 4;
};

template <typename S>
struct Stored {
    template <typename T, typename Tile>
    using Loop = AddAndDot<T, S, Tile>;
};

template <typename T, typename S, int P>
void attend_backward(const Edges& edges, const Backward& b, Heads heads, int64_t piece,
                     int64_t first, int64_t last) {
    constexpr int V = FLAT<T, P>;
    const EdgeTerm<T, P> term(edges, b.edge_vector, heads);
    const EdgeMask mask(b.dropout);
    const TileJobs<T, Stored<S>::template Loop> jobs(heads, b.channels);
    const T slope = static_cast<T>(b.slope);
    const Matrix grad_t = part_of<double>(b.grad_t, piece * b.grad_t_step);
    const int64_t low = heads.first * b.channels;
    LongSum<T> long_z(1, low, low + heads.count * b.channels);
    TermGradient<T, P> term_gradient(edges, b.grad_edge_vector, piece * b.grad_edge_vector_step, heads);
    alignas(64) T raw[CHUNK * P + V], weight[CHUNK * P + V], dot[CHUNK * P + V];
    alignas(64) T d[CHUNK * P + V], side[CHUNK * P + V];
    int64_t columns[CHUNK];
    Lookahead ahead(edges, first, last);
    ahead.skip(edges_ahead(b.num_heads * b.channels * sizeof(S)));
    Lookahead scores_ahead(edges, first, last);
    scores_ahead.skip(SCORES_AHEAD);
    for (int64_t k = first; k < last; k++) {
        const int64_t row = local_row(edges, k), total = edges.end[k] - edges.begin[k];
        const bool is_long = total > LONGEST;
        T* own = row_of<T>(b.grad_z, row);
        bool adds = b.adds;
        if (!adds && !b.self_loops && (total == 0 || is_long)) {
            for (int64_t c = low; c < low + heads.count * b.channels; c++) own[c] = 0;
            adds = true;
        }
        if (total == 0 && !b.self_loops) continue;
        const Vec<T, P> s = load_heads<T, P>(b.s, row, heads);
        Vec<double, P> total_s = convert<double, T, P>(load_heads<T, P>(b.grad_s, row, heads));
        const auto score = [&](int i, int64_t column, Vec<T, P> edge_term)
                               __attribute__((always_inline)) {
            columns[i] = column;
            const Vec<T, P> t = load_heads<T, P>(b.t, column, heads);
            const Vec<T, P> l = s + t + edge_term;
            const Vec<T, P> lse = load_heads<T, P>(b.lse, column, heads);
            store<T, P>(raw + i * P, leaky<T, P>(l, slope) - lse);
            store<T, P>(side + i * P, l > 0 ? Vec<T, P>{} + T(1) : Vec<T, P>{} + slope);
            store<T, P>(d + i * P, load_heads<T, P>(b.d, column, heads));
        };
        const auto weigh = [&](int count, T* to, Lookahead& cursor) {
            for (int at = 0; at < count * P; at += V) {
                const Vec<T, V> a = exponential<T, V>(load<T, V>(raw + at));
                store<T, V>(raw + at, a);
                store<T, V>(weight + at, a);
                store<T, V>(dot + at, Vec<T, V>{});
            }
            mask.apply<T, P>(weight, columns, count, row, heads.first);
            jobs.run({P, count, columns, weight, dot, b.g, row_of<S>(b.z, row), to, adds}, cursor);
            adds = true;
        };
        const auto slope_of = [&](int i) __attribute__((always_inline)) {
            const int at = i * P;
            const Vec<T, P> plus = load<T, P>(weight + at) * load<T, P>(dot + at);
            const Vec<T, P> minus = load<T, P>(raw + at) * load<T, P>(d + at);
            const Vec<T, P> dl = (plus - minus) * load<T, P>(side + at);
            if (grad_t.data)
                store_heads<double, P>(grad_t, columns[i], heads,
                                       load_heads<double, P>(grad_t, columns[i], heads) +
                                           convert<double, T, P>(dl));
            return dl;
        };
        if (b.self_loops) {
            Lookahead unused = ahead;
            score(0, row, Vec<T, P>{});
            weigh(1, own, unused);
            total_s += convert<double, T, P>(slope_of(0));
        }
        T* to = is_long ? row_of<T>(long_z.part(), 0) : own;
        for_each_part(edges.begin[k], edges.end[k], [&](int64_t begin, int64_t end) {
            Vec<T, P> grad_s{};
            for (int64_t from = begin; from < end; from += CHUNK) {
                const int64_t left = end - from;
                const int count = left < CHUNK ? static_cast<int>(left) : CHUNK;
                for (int i = 0; i < count; i++) {
                    const int64_t next = scores_ahead.next();
                    prefetch<1>(row_of<T>(b.t, next) + heads.first);
                    prefetch<1>(row_of<T>(b.lse, next) + heads.first);
                    prefetch<1>(row_of<T>(b.d, next) + heads.first);
                    if (grad_t.data) prefetch<1>(row_of<double>(grad_t, next) + heads.first);
                    score(i, edges.columns[from + i] - edges.column_offset, term.of(from + i));
                }
                weigh(count, to, ahead);
                for (int i = 0; i < count; i++) {
                    const Vec<T, P> dl = slope_of(i);
                    grad_s += dl;
                    term_gradient.add(from + i, dl);
                }
            }
            total_s += convert<double, T, P>(grad_s);
            if (is_long) long_z.settle();
        });
        if (is_long) long_z.add_to(Matrix{own, 0});
        store_heads<T, P>(b.grad_s, row, heads, convert<T, double, P>(total_s));
    }
}

template <typename T, typename S>
void gat_backward(const Edges& edges, const Backward& b) {
    for_each_piece(edges, [&](int64_t piece, int64_t first, int64_t last) {
        for_each_group(b.num_heads, [&](Heads heads, auto padded) {
            attend_backward<T, S, decltype(padded)::LANES>(edges, b, heads, piece, first, last);
        });
    });
}

}  // namespace
}  // namespace HPCGNN_ISA

// `grad_t` holds doubles.
HPCGNN_EXPORT(gat_backward)(const Edges* edges, int64_t kind, Matrix g, Matrix t,
                                  Matrix lse, Matrix d, Matrix z, Matrix s, Matrix grad_z,
                                  Matrix grad_s, Matrix grad_t, int64_t grad_t_step,
                                  Matrix edge_vector, Matrix grad_edge_vector,
                                  int64_t grad_edge_vector_step, int64_t num_heads,
                                  int64_t channels, double slope, const Dropout* dropout,
                                  int64_t self_loops, int64_t adds) {
    const HPCGNN_ISA::Backward b{g, t, lse, d, z, s, grad_z, grad_s, grad_t, edge_vector,
                                 grad_edge_vector, num_heads, channels, grad_t_step,
                                 grad_edge_vector_step, slope, dropout,
                                 self_loops != 0, adds != 0};
    if (kind == DOUBLE)
        HPCGNN_ISA::gat_backward<double, double>(*edges, b);
    else if (kind == BFLOAT16)
        HPCGNN_ISA::gat_backward<float, HPCGNN_ISA::Bfloat16>(*edges, b);
    else
        HPCGNN_ISA::gat_backward<float, float>(*edges, b);
}

// Dense products of tall matrices in float: rows times weights, and sums of rows' outer products.
//
// A tile of the result stays in registers during the loop over the summed dimension. Its rows don't
// depend on the number of rows or of threads, to the bit.
#include "product.h"

namespace HPCGNN_ISA {
namespace {

constexpr int64_t DEEP = 192;  // products that a tile sums at a time
constexpr int64_t LONG = 192;  // rows whose outer products it sums at a time

// c[r] = base + acc[r] for the first `rows` of R rows of `width` numbers, at most U * N. The base is
// c[r] itself (`adds`), otherwise `start`, or 0 if that is null.
template <int R, int U>
HPCGNN_INLINE void write_tile(const Lanes (&acc)[R][U], float* c, int64_t stride, int64_t rows,
                              int64_t width, bool adds, const float* start) {
    for (int r = 0; r < R && r < rows; r++, c += stride)
        write_row<U>(acc[r], c, width, adds ? c : start);
}

// acc[r] += sum over k of a[r][k] * panel[k].
template <int R, int U>
HPCGNN_INLINE void add_products(const float* a, int64_t row_step, int64_t deep_step,
                                const float* panel, int64_t deep, Lanes (&acc)[R][U]) {
    for (int64_t k = 0; k < deep; k++, panel += PANEL, a += deep_step) {
        Lanes b[U];
        for (int u = 0; u < U; u++) b[u] = load<float, N>(panel + u * N);
        for (int r = 0; r < R; r++)
            for (int u = 0; u < U; u++) acc[r][u] += a[r * row_step] * b[u];
    }
}

struct Strip {
    const float* panel;  // deep x PANEL
    int64_t deep, width;
    bool adds;           // to the content of the result
    const float* start;  // otherwise the base of each row of it; null: zeros
    bool fetches;        // rows ahead: no other tile has loaded them yet
};

template <int U>
void rows_by_panel(Matrix x, int64_t rows, Matrix out, Strip strip) {
    for (int64_t row = 0; row < rows; row += ROWS) {
        const float* a = row_of<float>(x, row);
        float* c = row_of<float>(out, row);
        const int64_t count = smaller(ROWS, rows - row);
        for (int64_t r = 0; r < count; r++) {
            for (int u = 0; u < U; u++) __builtin_prefetch(c + r * out.stride + u * N, 1, 3);
            if (strip.fetches && row + ROWS + r < rows)
                prefetch_row(a + (ROWS + r) * x.stride, strip.deep);
        }
        if (count == ROWS) {
            Lanes acc[ROWS][U] = {};
            add_products<ROWS, U>(a, x.stride, 1, strip.panel, strip.deep, acc);
            write_tile<ROWS, U>(acc, c, out.stride, ROWS, strip.width, strip.adds,
                                strip.start);
            continue;
        }
        for (int64_t r = 0; r < count; r++, a += x.stride, c += out.stride) {
            Lanes acc[1][U] = {};
            add_products<1, U>(a, 0, 1, strip.panel, strip.deep, acc);
            write_tile<1, U>(acc, c, out.stride, 1, strip.width, strip.adds, strip.start);
        }
    }
}

template <int U>
void rows_by_panel_of(int vectors, Matrix x, int64_t rows, Matrix out, Strip strip) {
    if constexpr (U > 0) {
        if (vectors == U)
            rows_by_panel<U>(x, rows, out, strip);
        else
            rows_by_panel_of<U - 1>(vectors, x, rows, out, strip);
    }
}

// A band of rows in float: x itself, or a copy.
Matrix band_of(Matrix x, bool is_bf16, int64_t row, int64_t rows, int64_t deep, float* copy) {
    if (!is_bf16) return {row_of<float>(x, row), x.stride};
    for (int64_t r = 0; r < rows; r++) {
        const Bfloat16* from = row_of<Bfloat16>(x, row + r);
        float* to = copy + r * deep;
        int64_t j = 0;
        for (; j + N <= deep; j += N) store<float, N>(to + j, load_as<float, N>(from + j));
        for (; j < deep; j++) to[j] = load_as<float, 1>(from + j);
    }
    return {copy, deep};
}

void product(Matrix x, bool is_bf16, const float* packed, Matrix out, int64_t first, int64_t last,
             int64_t deep, int64_t width, bool adds, const float* start) {
    Buffer<float> copy(is_bf16 ? BAND * deep : 0);
    for (int64_t row = first; row < last; row += BAND) {
        const float* panel = packed;
        const int64_t rows = smaller(BAND, last - row);
        const Matrix band = band_of(x, is_bf16, row, rows, deep, copy.data());
        for (int64_t k = 0; k < deep; k += DEEP) {
            const int64_t part = smaller(DEEP, deep - k);
            for (int64_t j = 0; j < width; j += PANEL, panel += part * PANEL) {
                const int64_t columns = smaller(PANEL, width - j);
                rows_by_panel_of<VECTORS>(static_cast<int>((columns + N - 1) / N),
                                          {row_of<float>(band, 0) + k, band.stride}, rows,
                                          {row_of<float>(out, row) + j, out.stride},
                                          {panel, part, columns, adds || k > 0,
                                           start ? start + j : nullptr, j == 0});
            }
        }
    }
}

// Columns first .. last - 1 of `rows` rows, packed by WIDTH adjacent columns, row after row, with
// zeros beyond the last.
template <int WIDTH, typename S>
void pack_columns(Matrix x, int64_t rows, int64_t first, int64_t last, float* to) {
    for (int64_t j = first; j < last; j += WIDTH)
        for (int64_t row = 0; row < rows; row++, to += WIDTH) {
            const S* from = row_of<S>(x, row) + j;
            if (j + WIDTH > last)
                for (int64_t i = 0; i < WIDTH; i++)
                    to[i] = j + i < last ? load_as<float, 1>(from + i) : 0;
            else if constexpr (sizeof(S) == sizeof(float))
                memcpy(to, from, WIDTH * sizeof(float));
            else
                for (int64_t i = 0; i < WIDTH; i += 4)
                    store<float, 4>(to + i, load_as<float, 4>(from + i));
        }
}

template <int WIDTH>
void pack_columns(Matrix x, bool is_bf16, int64_t row, int64_t rows, int64_t first, int64_t last,
                  float* to) {
    if (is_bf16)
        pack_columns<WIDTH, Bfloat16>({row_of<Bfloat16>(x, row), x.stride}, rows, first, last, to);
    else
        pack_columns<WIDTH, float>({row_of<float>(x, row), x.stride}, rows, first, last, to);
}

// Rows low .. high - 1 of out: columns of a.
void outer_products(Matrix a, bool a_is_bf16, Matrix b, bool b_is_bf16, Matrix out, int64_t count,
                    int64_t low, int64_t high, int64_t width) {
    const int64_t tall = (high - low + ROWS - 1) / ROWS * ROWS;
    Buffer<float> packed_a(LONG * tall), packed_b(LONG * ((width + PANEL - 1) / PANEL * PANEL));
    for (int64_t row = 0; row < count; row += LONG) {
        const int64_t rows = smaller(LONG, count - row);
        pack_columns<ROWS>(a, a_is_bf16, row, rows, low, high, packed_a.data());
        pack_columns<PANEL>(b, b_is_bf16, row, rows, 0, width, packed_b.data());
        for (int64_t j = 0; j < width; j += PANEL)
            for (int64_t i = low; i < high; i += ROWS) {
                const int64_t tile_rows = smaller(ROWS, high - i), left = smaller(PANEL, width - j);
                float* c = row_of<float>(out, i) + j;
                for (int64_t r = 0; r < tile_rows; r++) prefetch_row(c + r * out.stride, left);
                Lanes acc[ROWS][VECTORS] = {};
                add_products<ROWS, VECTORS>(packed_a.data() + (i - low) * rows, 1, ROWS,
                                            packed_b.data() + j * rows, rows, acc);
                write_tile<ROWS, VECTORS>(acc, c, out.stride, tile_rows, left, true, nullptr);
            }
    }
}

}  // namespace
}  // namespace HPCGNN_ISA

// The number of adjacent columns in packed weights, and the number of consecutive rows of them.
HPCGNN_EXPORT(packing)(int64_t* panel, int64_t* deep) {
    *panel = HPCGNN_ISA::PANEL;
    *deep = HPCGNN_ISA::DEEP;
}

// out[row] = base + x[row] W for rows 0 .. rows - 1; W is deep x width, packed. The base is out's
// content (`adds`), otherwise `start`, or 0 if that is null. x may be bfloat16.
HPCGNN_EXPORT(product)(Matrix x, int64_t x_is_bf16, const float* packed, Matrix out, int64_t rows,
                       int64_t deep, int64_t width, int64_t adds, const float* start,
                       int64_t threads) {
    HPCGNN_ISA::for_each_range(rows, threads, [&](int64_t first, int64_t last) {
        HPCGNN_ISA::product(x, x_is_bf16, packed, out, first, last, deep, width, adds, start);
    });
}

// out += a^T b: count x height, count x width, height x width; a and b may be bfloat16.
HPCGNN_EXPORT(outer_products)(Matrix a, int64_t a_is_bf16, Matrix b, int64_t b_is_bf16, Matrix out,
                              int64_t count, int64_t height, int64_t width, int64_t threads) {
    using namespace HPCGNN_ISA;
    for_each_range((height + ROWS - 1) / ROWS, threads, [&](int64_t first, int64_t last) {
        outer_products(a, a_is_bf16, b, b_is_bf16, out, count, first * ROWS,
                       smaller(last * ROWS, height), width);
    });
}

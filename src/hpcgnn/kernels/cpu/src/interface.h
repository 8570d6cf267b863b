// Structs passed from Python to the kernels. library.py mirrors them.
#pragma once

#include <stdint.h>

// The build compiles every kernel once per instruction set, with a namespace and exported names
// of its own, so that the linker can't mix them up.
#ifndef HPCGNN_ISA
#define HPCGNN_ISA baseline
#define HPCGNN_VECTOR_BYTES 16
#endif

#define HPCGNN_JOIN2(a, b) hpcgnn_##a##_##b
#define HPCGNN_JOIN(a, b) HPCGNN_JOIN2(a, b)
#define HPCGNN_EXPORT(name) \
    extern "C" __attribute__((visibility("default"))) void HPCGNN_JOIN(name, HPCGNN_ISA)

// Rows `first .. last - 1` of a block of edges; row k is local row rows[k] (k itself where rows is
// null), owns edges begin[k] .. end[k] - 1, and edge e reads row columns[e] - column_offset.
struct Edges {
    const int32_t* rows;
    const int64_t* begin;
    const int64_t* end;
    const int32_t* columns;
    int64_t column_offset;
    int64_t num_columns;
    int64_t first;
    int64_t last;
    const float* weight;      // null: all 1
    const int32_t* relation;  // may be null
    const float* features;    // may be null; feature_width per edge
    int64_t feature_width;
    int64_t threads;
};

// The number type of a call. BFLOAT16: gathered rows are bfloat16, everything else is float.
enum Kind { FLOAT = 0, DOUBLE = 1, BFLOAT16 = 2 };

// Rows of `stride` elements, of the type given by the call's `kind` (or of the type named).
struct Matrix {
    void* data;
    int64_t stride;
};

struct Stream {
    uint64_t seed, epoch, layer;
};

// Attention dropout. Rows and columns are this block's; ids determine the mask, so a reversed block
// has the roles of source and destination exchanged (`reversed`).
struct Dropout {
    double p;
    Stream stream;
    const int64_t* row_ids;
    const int64_t* column_ids;
    int64_t reversed;
    int64_t first_head;  // index of the first current head among all heads of the layer
};

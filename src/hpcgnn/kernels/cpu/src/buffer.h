// Memory that grows with its content, and sums that stay exact over very many edges.
//
// It uses no C++ library, whose templates, compiled once per instruction set, would be merged.
#pragma once

#include <stdlib.h>
#include <string.h>

#include "simd.h"

namespace HPCGNN_ISA {

// Plain numbers, in order.
template <typename T>
class Buffer {
  public:
    Buffer() = default;
    explicit Buffer(int64_t size) { add_zeros(size); }
    ~Buffer() { free(data_); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;

    T* data() { return data_; }
    const T* data() const { return data_; }
    int64_t size() const { return size_; }
    HPCGNN_INLINE T& operator[](int64_t i) { return data_[i]; }
    HPCGNN_INLINE const T& operator[](int64_t i) const { return data_[i]; }

    void add(const T& value) {
        reserve(size_ + 1);
        data_[size_++] = value;
    }

    void add_zeros(int64_t count) {
        if (count <= 0) return;
        reserve(size_ + count);
        memset(static_cast<void*>(data_ + size_), 0, count * sizeof(T));
        size_ += count;
    }

  private:
    void reserve(int64_t size) {
        if (size <= capacity_) return;
#ifdef __SANITIZE_ADDRESS__
        capacity_ = size;  // so that access beyond the last number is detected
#else
        capacity_ = size < 2 * capacity_ ? 2 * capacity_ : size;
#endif
        data_ = static_cast<T*>(realloc(static_cast<void*>(data_), capacity_ * sizeof(T)));
        if (!data_) abort();
    }

    T* data_ = nullptr;
    int64_t size_ = 0, capacity_ = 0;
};

// A running sum of T loses more with every number added, and stops growing where it is 1 / epsilon
// times as large. So sums over this many edges are accumulated in doubles.
constexpr int64_t LONGEST = 128;

// Columns low .. high - 1 of rows to which many edges are added: to `part` in T first, and after
// every LONGEST edges from there to doubles.
template <typename T>
class LongSum {
  public:
    LongSum(int64_t rows, int64_t low, int64_t high) : rows_(rows), low_(low), high_(high) {}

    // Return where to add.
    HPCGNN_INLINE Matrix part() {
        if (part_.size() == 0) part_.add_zeros(rows_ * high_), total_.add_zeros(rows_ * high_);
        return Matrix{part_.data(), high_};
    }

    // Count edges that were added to `part`.
    HPCGNN_INLINE void count(int64_t edges) {
        if ((edges_ += edges) >= LONGEST) settle();
    }

    // total = total * scale + part; part = 0.
    void settle(double scale = 1) {
        edges_ = 0;
        for (int64_t at = 0; at < part_.size(); at += high_)
            for (int64_t c = at + low_; c < at + high_; c++) {
                total_[c] = total_[c] * scale + part_[c];
                part_[c] = 0;
            }
    }

    // to += total; total = 0.
    void add_to(Matrix to) {
        settle();
        for (int64_t row = 0; row * high_ < part_.size(); row++)
            for (int64_t c = low_; c < high_; c++) {
                T& sum = row_of<T>(to, row)[c];
                double& total = total_[row * high_ + c];
                sum = static_cast<T>(sum + total);
                total = 0;
            }
    }

  private:
    int64_t rows_, low_, high_, edges_ = 0;
    Buffer<T> part_;
    Buffer<double> total_;
};

}  // namespace HPCGNN_ISA

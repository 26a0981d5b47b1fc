// C = A B or C += A B for the small blocks of attention, which stay in the first-level cache.
#pragma once

#include <cstddef>

#include "simd.h"

namespace matmul {

using simd::Floats;
using simd::LANES;

// A matrix seen through strides: element (row, column) is at data[row * row_stride + column * column_stride].
struct Strided {
  const float* data;
  ptrdiff_t row_stride, column_stride;
};

template <int ROWS, int VECTORS>
inline __attribute__((always_inline)) void block(ptrdiff_t depth, Strided a, const float* b, ptrdiff_t b_stride, float* c,
                                                 ptrdiff_t c_stride, bool accumulate) {
  Floats sums[ROWS][VECTORS];
  for (int row = 0; row < ROWS; row++)
    for (int i = 0; i < VECTORS; i++)
      sums[row][i] = accumulate ? simd::load(c + row * c_stride + i * LANES) : simd::broadcast(0.0f);
#pragma GCC unroll 1
  for (ptrdiff_t inner = 0; inner < depth; inner++) {
    Floats values[VECTORS];
#pragma GCC unroll 4
    for (int i = 0; i < VECTORS; i++) values[i] = simd::load(b + inner * b_stride + i * LANES);
#pragma GCC unroll 8
    for (int row = 0; row < ROWS; row++) {
      const Floats factor = simd::broadcast(a.data[row * a.row_stride + inner * a.column_stride]);
#pragma GCC unroll 4
      for (int i = 0; i < VECTORS; i++) sums[row][i] = simd::multiply_add(factor, values[i], sums[row][i]);
    }
  }
  for (int row = 0; row < ROWS; row++)
    for (int i = 0; i < VECTORS; i++) simd::store(c + row * c_stride + i * LANES, sums[row][i]);
}

template <int ROWS>
inline void rows(ptrdiff_t columns, ptrdiff_t depth, Strided a, const float* b, ptrdiff_t b_stride, float* c,
                 ptrdiff_t c_stride, bool accumulate) {
  ptrdiff_t column = 0;
  constexpr int WIDE = simd::MATMUL_VECTORS;
  for (; column + WIDE * LANES <= columns; column += WIDE * LANES)
    block<ROWS, WIDE>(depth, a, b + column, b_stride, c + column, c_stride, accumulate);
  for (; column < columns; column += LANES)
    block<ROWS, 1>(depth, a, b + column, b_stride, c + column, c_stride, accumulate);
}

// C (num_rows x columns) from A (num_rows x depth) and B (depth x columns); columns is a multiple of LANES, the rows of B and C
// are contiguous, and their strides may be negative.
inline void multiply(ptrdiff_t num_rows, ptrdiff_t columns, ptrdiff_t depth, Strided a, const float* b, ptrdiff_t b_stride,
                     float* c, ptrdiff_t c_stride, bool accumulate) {
  constexpr int MOST = simd::MATMUL_ROWS;
  for (; num_rows >= MOST; num_rows -= MOST, a.data += MOST * a.row_stride, c += MOST * c_stride)
    rows<MOST>(columns, depth, a, b, b_stride, c, c_stride, accumulate);
  for (; num_rows > 0; num_rows--, a.data += a.row_stride, c += c_stride)
    rows<1>(columns, depth, a, b, b_stride, c, c_stride, accumulate);
}

}  // namespace matmul

// Tensors as Python hands them over, scratch memory, and keys packed for matrix products.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>

#include "matmul.h"
#include "simd.h"

namespace cope {

using matmul::multiply;
using simd::broadcast;
using simd::Floats;
using simd::Ints;
using simd::LANES;
using simd::load;
using simd::store;

constexpr int STRIP = 64;                // queries worked on together; their tile of logits fits the first-level cache
constexpr int PANEL = 64;                // keys to a panel
constexpr int FORWARD_TILE = 2 * PANEL;  // keys between two updates of the running maximum
constexpr float MINUS_INFINITY = -std::numeric_limits<float>::infinity();
constexpr float LOWEST = -3e38f;  // start of a running maximum: finite, since infinity - infinity is NaN

inline int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// (batch, heads, time, size); strides in floats, the last dimension contiguous. data is null where a tensor is not there.
struct Tensor {
  float* data;
  int64_t batch_stride, head_stride, time_stride;
};

// Everything one call works on; operator.py's ctypes.Structure mirrors it. head_dim and value_dim are multiples of 16.
struct Arguments {
  int64_t batch, num_heads, num_key_heads, num_queries, num_keys, head_dim, value_dim, num_positions, num_threads, seed;
  float logit_scale;  // s above
  float table_scale;  // what multiplies q . e
  float dropout;
  Tensor q, k, v, gate_keys, output, grad_output, dq, dk, dv, dgate_keys;
  float* table;             // (num_positions, head_dim)
  float* relative;          // (num_keys, head_dim), by distance
  float* bias;              // (num_keys) for each head, by distance
  int64_t bias_head_stride; // 0 if one serves all heads
  float* key_mask;          // (batch, num_keys in whole panels): 0 for a key that no query sees; the last key first; may be null
  float* log_sum_exp;       // (batch, heads, query)
  float *dtable, *drelative;
  float* dbias;  // (batch, heads, num_keys)
};

// The rows of one head, the last token first.
struct Rows {
  float* first;
  ptrdiff_t stride;
  float* operator[](int64_t row) const { return first + row * stride; }
};

inline Rows from_the_end(const Tensor& tensor, int64_t batch, int64_t head, int64_t count) {
  if (tensor.data == nullptr) return {nullptr, 0};
  return {tensor.data + batch * tensor.batch_stride + head * tensor.head_stride + (count - 1) * tensor.time_stride,
          -tensor.time_stride};
}

// Uninitialised floats on a cache line's boundary.
class Buffer {
  float* data = nullptr;

 public:
  explicit Buffer(int64_t count) {
    if (count == 0) return;
    data = static_cast<float*>(std::aligned_alloc(64, round_up(count * int64_t(sizeof(float)), 64)));
    if (data == nullptr) throw std::bad_alloc();
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { std::free(data); }
  operator float*() const { return data; }
};

inline void clear(float* to, int64_t count) { std::memset(to, 0, count * sizeof(float)); }

inline void add(const float* from, float* to, int64_t count, float scale) {
  for (int64_t i = 0; i < count; i++) to[i] += scale * from[i];
}

// Rows (count x size) -> panels of (size x PANEL), transposed; columns beyond the last row are 0.
inline void pack_panels(Rows rows, int64_t count, int64_t size, float* panels) {
  for (int64_t start = 0; start < round_up(count, PANEL); start += LANES) {
    float* to = panels + start / PANEL * PANEL * size + start % PANEL;
    for (int64_t column = 0; column < size; column += LANES) {
      Floats block[LANES];
      for (int row = 0; row < LANES; row++)
        block[row] = start + row < count ? load(rows[start + row] + column) : broadcast(0.0f);
      simd::transpose(block);
      for (int row = 0; row < LANES; row++) store(to + (column + row) * PANEL, block[row]);
    }
  }
}

}  // namespace cope

// Contextual positions of a row's keys, in fixed point, and where they lie in the table (Equations 3 to 5).
#pragma once

#include "tensors.h"

namespace cope {

// Positions as integers with a number of bits of fraction.
struct FixedPoint {
  int bits;
  float one;      // 1.0, as a float
  int32_t limit;  // the last position; 0 without a table, so that every row has reached it from the start

  explicit FixedPoint(int64_t num_positions) {
    // A vector's gates are added to a position before it is clamped.
    bits = 24;
    while ((num_positions + LANES) << bits > int64_t(1) << 31) bits--;
    one = float(int32_t(1) << bits);
    limit = num_positions == 0 ? 0 : int32_t((num_positions - 1) << bits);
  }
};

// One query's view of the table: z[m], and slopes[m] = (z[m + 1] - z[m]) for each unit of fixed point. Both go on for LANES
// entries beyond the last position, at z's last value.
struct RowTable {
  const float *z, *slopes;
  float last;
};

// The positions of N vectors of keys, clamped; `reached` is the position so far, in every lane. A NaN among the gates counts as 1
// here, so that every position lies in the table, and stays in `gates`, from where it goes into the logits.
template <int N>
inline __attribute__((always_inline)) void count_positions(const float* gate_logits, const FixedPoint& fixed, Ints& reached,
                                                           Floats (&gates)[N], Ints (&positions)[N]) {
  const Floats one = broadcast(fixed.one);
  const Ints limit = broadcast(fixed.limit);
#pragma GCC unroll 4
  for (int i = 0; i < N; i++) {
    gates[i] = simd::sigmoid(load(gate_logits + i * LANES));
    positions[i] = simd::running_sum(simd::to_ints(simd::minimum(gates[i] * one, one)));
  }
#pragma GCC unroll 4
  for (int i = 0; i < N; i++) {
    positions[i] = positions[i] + reached;
    reached = simd::minimum(simd::spread_last(positions[i]), limit);
    positions[i] = simd::minimum(positions[i], limit);
  }
}

// Where a vector's positions are in the table: from the entry `base`, `index` further on, and `weight` (fixed point) above that.
struct Place {
  int32_t base;
  Ints floors, index;
  Floats weight;

  Place(Ints positions, const FixedPoint& fixed)
      : floors(simd::shift_right(positions, fixed.bits)), weight(simd::to_floats(positions & broadcast((1 << fixed.bits) - 1))) {
    base = simd::first(floors);
    index = floors - broadcast(base);
  }
};

}  // namespace cope

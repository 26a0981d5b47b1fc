// Contextual positions of a row's keys, in fixed point, and where they lie in the table (Equations 3 to 5).
#pragma once

#include "tensors.h"

namespace cope {

// A position is a whole number and, from there, an integer with 24 bits of fraction: the fraction keeps its bits however many
// positions there are. The integer holds 127 at most, and is brought back below 16 before gates are added to it.
constexpr int FRACTION_BITS = 24;
constexpr int32_t ONE = int32_t(1) << FRACTION_BITS;
constexpr int32_t MOST = 127;

// Equal gates are rounded alike: with more keys than this, what rounding took from a lane's gates is given back to its next ones.
// A position is then off by a unit for each lane at most; without, by half a unit for each key, which is less than float32 sums lose.
constexpr int64_t MANY_KEYS = 1024;

// The position that a row's walk has reached.
struct Reached {
  Ints above;         // what lies above `whole`, in every lane
  Floats lost;        // what rounding took from each lane's gates so far
  bool returns_lost;  // to the next ones
  int32_t whole;      // 0 until a row is far from its query
  int32_t last;       // the last position; 0 without a table, so that every row has reached it from the start
  int32_t limit;      // the last position as `above` holds it, or MOST if it is further away

  Reached() = default;
  Reached(int64_t num_positions, int64_t num_keys)
      : above(broadcast(int32_t(0))),
        lost(broadcast(0.0f)),
        returns_lost(num_keys > MANY_KEYS),
        whole(0),
        last(num_positions == 0 ? 0 : int32_t(num_positions - 1)) {
    set_limit();
  }

  bool below_last() const { return simd::first(above) < limit; }
  int64_t floor() const { return whole + (simd::first(above) >> FRACTION_BITS); }

  // Makes room for the gates of four vectors.
  void rebase() {
    const int32_t steps = simd::first(above) >> FRACTION_BITS;
    if (steps < 16) return;
    above = above - broadcast(steps << FRACTION_BITS);
    whole += steps;
    set_limit();
  }

 private:
  void set_limit() { limit = std::min(last - whole, MOST) << FRACTION_BITS; }
};

// One query's view of the table: z[m], and slopes[m] = (z[m + 1] - z[m]) for each unit of fixed point. Both go on for LANES
// entries beyond the last position, at z's last value.
struct RowTable {
  const float *z, *slopes;
  float last;
};

// The positions of N vectors of keys above `reached.whole`, clamped. A NaN among the gates counts as 1 here, so that every position
// lies in the table, and stays in `gates`, from where it goes into the logits.
template <int N>
inline __attribute__((always_inline)) void count_positions(const float* gate_logits, Reached& reached, Floats (&gates)[N],
                                                           Ints (&positions)[N]) {
  static_assert(N * LANES + 16 < MOST, "N vectors of gates fit above a position");
  reached.rebase();
  const Floats one = broadcast(float(ONE));
  const Ints limit = broadcast(reached.limit);
  Floats exact[N];
#pragma GCC unroll 4
  for (int i = 0; i < N; i++) {
    gates[i] = simd::sigmoid(load(gate_logits + i * LANES));
    exact[i] = simd::minimum(gates[i] * one, one);
    positions[i] = simd::to_ints(exact[i]);
  }
  if (reached.returns_lost)
    for (int i = 0; i < N; i++) {
      positions[i] = simd::to_ints(simd::minimum(simd::maximum(exact[i] + reached.lost, broadcast(0.0f)), one));
      reached.lost = exact[i] - simd::to_floats(positions[i]) + reached.lost;
    }
#pragma GCC unroll 4
  for (int i = 0; i < N; i++) positions[i] = simd::running_sum(positions[i]);
#pragma GCC unroll 4
  for (int i = 0; i < N; i++) {
    positions[i] = positions[i] + reached.above;
    reached.above = simd::minimum(simd::spread_last(positions[i]), limit);
    positions[i] = simd::minimum(positions[i], limit);
  }
}

// Where a vector's positions are in the table: from the entry `base`, `index` further on, and `weight` (of ONE) above that.
struct Place {
  int32_t base;
  Ints floors, index;
  Floats weight;

  Place(Ints positions, int32_t whole)
      : floors(simd::shift_right(positions, FRACTION_BITS)), weight(simd::to_floats(positions & broadcast(ONE - 1))) {
    const int32_t first = simd::first(floors);
    base = whole + first;
    index = floors - broadcast(first);
  }
};

}  // namespace cope

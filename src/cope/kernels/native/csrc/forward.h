// The forward pass: the walk over the keys, with the softmax online.
#pragma once

#include <cmath>

#include "strip.h"

namespace cope {

// Adds the contextual term to N vectors of a row's logits.
template <int N>
inline __attribute__((always_inline)) void place(float* logits, const float* gate_logits, const RowTable& table,
                                                 Reached& reached, Floats& highest) {
  Floats gates[N];
  Ints positions[N];
  count_positions<N>(gate_logits, reached, gates, positions);
#pragma GCC unroll 4
  for (int i = 0; i < N; i++) {
    const Place at(positions[i], reached.whole);
    const Floats below = look_up(table.z + at.base, at.index), slope = look_up(table.slopes + at.base, at.index);
    Floats logit = simd::multiply_add(gates[i], broadcast(0.0f), load(logits + i * LANES) + below);  // a gate's NaN
    logit = simd::multiply_add(at.weight, slope, logit);
    store(logits + i * LANES, logit);
    highest = simd::maximum(highest, logit);
  }
}

// Walks one row of a tile; returns its highest logit.
inline float walk(float* logits, const float* gate_logits, int64_t from, int64_t end, const RowTable& table,
                  Reached& reached) {
  Floats highest = broadcast(LOWEST);
  int64_t c = from;
  // Four vectors at a time: the steps of one hide the latency of the others'.
  while (c < end && reached.below_last()) {
    if (end - c >= 4 * LANES) {
      place<4>(logits + c, gate_logits + c, table, reached, highest);
      c += 4 * LANES;
    } else {
      place<1>(logits + c, gate_logits + c, table, reached, highest);
      c += LANES;
    }
  }
  const Floats last = broadcast(table.last);
  for (; c < end; c += LANES) {
    const Floats logit = load(logits + c) + last;
    store(logits + c, logit);
    highest = simd::maximum(highest, logit);
  }
  return simd::highest(highest);
}

// Every `step`-th strip of a head from `first` on.
inline void forward_head(const Shared& shared, const Head& head, int64_t first, int64_t step, Strip& strip, float* tile, float* gate_tile,
                  float* sums) {
  const Arguments& call = shared.call;
  const int64_t size = call.value_dim;
  const Rows output = from_the_end(call.output, head.batch, head.head, call.num_queries);
  float* log_sum_exp = call.log_sum_exp + ((head.batch * call.num_heads + head.head) + 1) * call.num_queries - 1;
  for (int64_t start = first * STRIP; start < call.num_queries; start += step * STRIP) {
    strip.begin(head, start);
    float highest[STRIP], total[STRIP];
    Reached reached[STRIP];
    for (int64_t r = 0; r < strip.count; r++) {
      highest[r] = LOWEST;
      total[r] = 0;
      reached[r] = Reached(call.num_positions, call.num_keys);
    }
    clear(sums, strip.count * size);
    for (int64_t tile_start = start; tile_start < call.num_keys; tile_start += FORWARD_TILE) {
      const int64_t columns = std::min<int64_t>(FORWARD_TILE, call.num_keys - tile_start), end = round_up(columns, LANES);
      strip.logits(head, tile_start, columns, tile, gate_tile, FORWARD_TILE);
      for (int64_t r = 0; r < strip.count; r++) {
        float* row = tile + r * FORWARD_TILE;
        const int64_t from = strip.first_column(r, tile_start);
        const float tile_highest =
            walk(row, gate_tile + r * FORWARD_TILE, from, end, strip.table(r), reached[r]);
        if (tile_highest > highest[r]) {
          const float rescale = std::exp(highest[r] - tile_highest);
          highest[r] = tile_highest;
          total[r] *= rescale;
          for (int64_t c = 0; c < size; c += LANES)
            store(sums + r * size + c, broadcast(rescale) * load(sums + r * size + c));
        }
        const Floats top = broadcast(highest[r]);
        Floats row_total = broadcast(0.0f);
        for (int64_t c = from; c < end; c += LANES) {
          const Floats weight = simd::exponential(load(row + c) - top);
          row_total = row_total + weight;
          store(row + c, weight);
        }
        total[r] += simd::sum(row_total);
        if (call.dropout > 0) drop(call, head, start + r, tile_start, row, from, end);
      }
      // sums += weights . values; only the diagonal's panel has columns to leave out.
      const int64_t rows_at_once = tile_start == start ? LANES : strip.count;
      for (int64_t r = 0; r < strip.count; r += rows_at_once) {
        const int64_t from = strip.first_column(r, tile_start);
        multiply(std::min(rows_at_once, strip.count - r), size, columns - from, {tile + r * FORWARD_TILE + from, FORWARD_TILE, 1},
                 head.v[tile_start + from], head.v.stride, sums + r * size, size, true);
      }
    }
    for (int64_t r = 0; r < strip.count; r++) {
      const bool saw_none = total[r] == 0;  // all its keys are masked
      const Floats share = broadcast(saw_none ? 0.0f : 1.0f / total[r]);
      for (int64_t c = 0; c < size; c += LANES) store(output[start + r] + c, share * load(sums + r * size + c));
      log_sum_exp[-(start + r)] = saw_none ? -MINUS_INFINITY : highest[r] + std::log(total[r]);
    }
  }
}

// Scratch memory of one thread's forward passes, and the strip it works on.
struct ForwardScratch {
  Buffer key_panels, gate_key_panels, bias, tile, gate_tile, sums;
  Strip strip;

  explicit ForwardScratch(const Shared& shared)
      : key_panels(round_up(shared.call.num_keys, PANEL) * shared.call.head_dim),
        gate_key_panels(shared.call.gate_keys.data == nullptr ? 0 : round_up(shared.call.num_keys, PANEL) * shared.call.head_dim),
        bias(shared.call.bias == nullptr ? 0 : round_up(shared.call.num_keys, PANEL) + 2 * PANEL),
        tile(STRIP * FORWARD_TILE),
        gate_tile(shared.separate_gates ? STRIP * FORWARD_TILE : 0),
        sums(STRIP * shared.call.value_dim),
        strip(shared) {}
};

}  // namespace cope

// The backward pass: two sweeps over the keys of each strip (see attention.cpp).
#pragma once

#include <vector>

#include "strip.h"

namespace cope {

// What a row carries through the first sweep of the backward pass.
struct RowSweep {
  Reached reached;
  Floats ds_sum, weighted_sum;  // running sums of ds and ds w over the keys below the last position, in every lane
  float ds_at_last;             // the sum of ds over the keys at the last position, walked without look-ups
  float log_sum_exp, output_product;  // D = do . o
};

// The tiles of one panel, (query, key) each, stride PANEL; or a place in each of them.
struct PanelTiles {
  float *logits, *da, *u, *gates;  // which become a, ds, u and the gates' g (1 - g), then their gradients
  const float* gate_logits;        // the tile of logits or of gates, wherever they were put

  PanelTiles operator+(int64_t offset) const {
    return {logits + offset, da + offset, u + offset, gates + offset, gate_logits + offset};
  }
};

template <int N>
inline __attribute__((always_inline)) void differentiate(const PanelTiles& at, const RowTable& table, RowSweep& row,
                                                         float* ds_sums, float* weighted_sums) {
  const Floats log_sum_exp = broadcast(row.log_sum_exp), output_product = broadcast(row.output_product), one = broadcast(1.0f);
  Floats gates[N], ds[N], weighted[N];
  Ints positions[N];
  count_positions<N>(at.gate_logits, row.reached, gates, positions);
  const int32_t whole = row.reached.whole;
#pragma GCC unroll 4
  for (int i = 0; i < N; i++) {
    const Place where(positions[i], whole);
    const Floats below = look_up(table.z + where.base, where.index), slope = look_up(table.slopes + where.base, where.index);
    Floats logit = simd::multiply_add(gates[i], broadcast(0.0f), load(at.logits + i * LANES) - log_sum_exp + below);
    const Floats a = simd::exponential(simd::multiply_add(where.weight, slope, logit));
    ds[i] = a * (load(at.da + i * LANES) - output_product);
    weighted[i] = ds[i] * where.weight;
    store(at.logits + i * LANES, a);
    store(at.da + i * LANES, ds[i]);
    store(at.u + i * LANES, ds[i] * slope);
    // The slope is for a unit of fixed point, so a gate's gradient is in such units too.
    store(at.gates + i * LANES, broadcast(float(ONE)) * gates[i] * (one - gates[i]));
  }
#pragma GCC unroll 4
  for (int i = 0; i < N; i++) {
    ds[i] = simd::running_sum(ds[i]);
    weighted[i] = simd::running_sum(weighted[i]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < N; i++) {
    const Place where(positions[i], whole);
    const simd::RunEnds runs(where.floors);
    const Floats ds_sum = ds[i] + row.ds_sum, weighted_sum = weighted[i] + row.weighted_sum;
    // Entries stored beyond the last run's are written over, by the next vector or when the row is finished.
    store(ds_sums + where.base, runs.pack(ds_sum));
    store(weighted_sums + where.base, runs.pack(weighted_sum));
    row.ds_sum = simd::spread_last(ds_sum);
    row.weighted_sum = simd::spread_last(weighted_sum);
  }
}

// First sweep over one row of a panel, away from the query; returns the column where the gates ceased to matter.
inline int64_t sweep_away(const PanelTiles& tiles, int64_t from, int64_t end, const RowTable& table, RowSweep& row,
                          float* ds_sums, float* weighted_sums) {
  int64_t c = from;
  while (c < end && row.reached.below_last()) {
    if (end - c >= 4 * LANES) {
      differentiate<4>(tiles + c, table, row, ds_sums, weighted_sums);
      c += 4 * LANES;
    } else {
      differentiate<1>(tiles + c, table, row, ds_sums, weighted_sums);
      c += LANES;
    }
  }
  const int64_t gates_end = c;
  const Floats shift = broadcast(table.last - row.log_sum_exp), output_product = broadcast(row.output_product);
  Floats ds_at_last = broadcast(0.0f);
  for (; c < end; c += LANES) {
    const Floats a = simd::exponential(load(tiles.logits + c) + shift);
    const Floats ds = a * (load(tiles.da + c) - output_product);
    store(tiles.logits + c, a);
    store(tiles.da + c, ds);
    ds_at_last = ds_at_last + ds;
  }
  if (gates_end < end) row.ds_at_last += simd::sum(ds_at_last);
  return gates_end;
}

// Second sweep over one row of a panel, back towards the query: dl += (sum of u from the key on) g (1 - g). Keys before column
// `seen` come after the query: their gates are not 0 to the last bit, but their gradients are.
inline float sweep_back(const float* u, float* gates, float* dl, bool separate, int64_t from, int64_t seen, int64_t gates_end, int64_t end,
                 float beyond) {
  Floats sum = broadcast(beyond);
  if (separate)
    for (int64_t c = gates_end; c < end; c += LANES) store(gates + c, broadcast(0.0f));
  for (int64_t c = gates_end - LANES; c >= from; c -= LANES) {
    const Floats gate_gradient = simd::remaining_sum(load(u + c)) + sum;
    sum = simd::spread_first(gate_gradient);
    if (separate) store(gates + c, gate_gradient * load(gates + c));
    else store(dl + c, simd::multiply_add(gate_gradient, load(gates + c), load(dl + c)));
  }
  float* changed = (separate ? gates : dl) + from;
  if (seen > from)
    store(changed, select_below(simd::lane_index(), broadcast(int32_t(seen - from)), broadcast(0.0f), load(changed)));
  return simd::first(sum);
}

// A row's gradient of z from the running sums stored at the end of each run of equal floors.
inline void finish_row(const RowSweep& row, int64_t num_entries, bool reaches_last, float* ds_sums, float* weighted_sums,
                       float* dz) {
  // In both, entry -1 and -2 are 0. Floors beyond the last one met add nothing.
  const float ds_total = simd::first(row.ds_sum), weighted_total = simd::first(row.weighted_sum);
  const int64_t end = round_up(num_entries, LANES);
  for (int64_t m = row.reached.floor() + 1; m < end; m++) {
    ds_sums[m] = ds_total;
    weighted_sums[m] = weighted_total;
  }
  const Floats unit = broadcast(1.0f / float(ONE));
  for (int64_t m = 0; m < end; m += LANES) {
    const Floats ds = load(ds_sums + m) - load(ds_sums + m - 1);
    const Floats weighted = load(weighted_sums + m) - load(weighted_sums + m - 1);
    const Floats weighted_below = load(weighted_sums + m - 1) - load(weighted_sums + m - 2);
    store(dz + m, simd::multiply_add(unit, weighted_below - weighted, ds));
  }
  if (reaches_last) dz[num_entries - 1] += row.ds_at_last;
}

// Scratch memory of one thread's backward passes, and the strip it works on.
struct BackwardScratch {
  const int64_t num_panels;
  Buffer key_panels, gate_key_panels, bias, value_panels, logits, da, u, gates, grad_output, dqueries, dz, ds_sums, weighted_sums,
      dproducts;
  // Of one head of keys, added to the call's in the order of heads, so that results do not depend on the number of threads.
  Buffer dtable, drelative, dbias;
  std::vector<uint8_t> gates_end;  // of each panel's rows
  Strip strip;

  explicit BackwardScratch(const Shared& shared)
      : num_panels((shared.call.num_keys + PANEL - 1) / PANEL),
        key_panels(num_panels * PANEL * shared.call.head_dim),
        gate_key_panels(shared.call.gate_keys.data == nullptr ? 0 : num_panels * PANEL * shared.call.head_dim),
        bias(shared.call.bias == nullptr ? 0 : (num_panels + 2) * PANEL),
        value_panels(num_panels * PANEL * shared.call.value_dim),
        logits(num_panels * STRIP * PANEL),
        da(num_panels * STRIP * PANEL),
        u(shared.call.num_positions == 0 ? 0 : num_panels * STRIP * PANEL),
        gates(shared.call.num_positions == 0 ? 0 : num_panels * STRIP * PANEL),
        grad_output(STRIP * shared.call.value_dim),
        dqueries(STRIP * shared.call.head_dim),
        dz(STRIP * shared.z_stride),
        ds_sums(STRIP * shared.sums_stride),
        weighted_sums(STRIP * shared.sums_stride),
        dproducts(STRIP * shared.products_stride),
        dtable(shared.call.num_positions * shared.call.head_dim),
        drelative(shared.call.relative == nullptr ? 0 : shared.call.num_keys * shared.call.head_dim),
        dbias(shared.call.bias == nullptr ? 0 : (num_panels + 2) * PANEL),
        gates_end(num_panels * STRIP),
        strip(shared) {}

  PanelTiles tiles(const Shared& shared, int64_t panel) const {
    const int64_t offset = panel * STRIP * PANEL;
    if (shared.call.num_positions == 0) return {logits + offset, da + offset, nullptr, nullptr, nullptr};
    return {logits + offset, da + offset, u + offset, gates + offset, (shared.separate_gates ? gates : logits) + offset};
  }
};

// The first sweep of a strip: every panel's a, ds and u, the gates' g (1 - g), and the running sums for the table's gradient.
inline void away_from_queries(const Shared& shared, const Head& head, BackwardScratch& scratch, RowSweep (&rows)[STRIP]) {
  const Arguments& call = shared.call;
  const Strip& strip = scratch.strip;
  for (int64_t tile_start = strip.start, panel = 0; tile_start < call.num_keys; tile_start += PANEL, panel++) {
    const int64_t columns = std::min<int64_t>(PANEL, call.num_keys - tile_start), end = round_up(columns, LANES);
    const PanelTiles tiles = scratch.tiles(shared, panel);
    strip.logits(head, tile_start, columns, tiles.logits, shared.separate_gates ? tiles.gates : tiles.logits, PANEL);
    strip.product(scratch.value_panels, call.value_dim, scratch.grad_output, tile_start, columns, tiles.da, PANEL);
    for (int64_t r = 0; r < strip.count; r++) {
      const PanelTiles row_tiles = tiles + r * PANEL;
      const int64_t from = strip.first_column(r, tile_start), query = strip.start + r;
      if (call.dropout > 0) drop(call, head, query, tile_start, row_tiles.da, from, end);
      scratch.gates_end[panel * STRIP + r] = uint8_t(sweep_away(
          row_tiles, from, end, strip.table(r), rows[r], scratch.ds_sums + r * shared.sums_stride + LANES,
          scratch.weighted_sums + r * shared.sums_stride + LANES));
      if (call.dropout > 0) drop(call, head, query, tile_start, row_tiles.logits, from, end);
      // By distance; keys that the query does not see have ds = 0, and the margins take those.
      const int64_t offset = PANEL + tile_start - query;
      if (call.relative != nullptr)
        for (int64_t c = from; c < end; c += LANES)
          store(scratch.dproducts + r * shared.products_stride + offset + c, load(row_tiles.da + c));
      if (call.bias != nullptr)
        for (int64_t c = from; c < end; c += LANES)
          store(scratch.dbias + offset + c, load(scratch.dbias + offset + c) + load(row_tiles.da + c));
    }
  }
}

// The second sweep: the gates' gradients, then what every panel adds to the gradients of queries, keys and values.
inline void back_to_queries(const Shared& shared, const Head& head, BackwardScratch& scratch, Rows dk, Rows dv, Rows dgate_keys) {
  const Arguments& call = shared.call;
  const Strip& strip = scratch.strip;
  const int64_t d = call.head_dim;
  const bool own_keys = head.gate_key_panels != nullptr;
  float beyond[STRIP] = {};
  for (int64_t panel = (call.num_keys - strip.start - 1) / PANEL; panel >= 0; panel--) {
    const int64_t tile_start = strip.start + panel * PANEL;
    const int64_t columns = std::min<int64_t>(PANEL, call.num_keys - tile_start), end = round_up(columns, LANES);
    const PanelTiles tiles = scratch.tiles(shared, panel);
    bool any_gates = false;
    for (int64_t r = 0; call.num_positions > 0 && r < strip.count; r++) {
      const int64_t from = strip.first_column(r, tile_start), gates_end = scratch.gates_end[panel * STRIP + r];
      any_gates |= gates_end > from;
      beyond[r] = sweep_back(tiles.u + r * PANEL, tiles.gates + r * PANEL, tiles.da + r * PANEL, own_keys, from, panel == 0 ? r : 0,
                             gates_end, end, beyond[r]);
    }
    // On the diagonal, a block of LANES queries or keys at a time leaves out most of what is hidden.
    const bool diagonal = panel == 0;
    for (int64_t r = 0, step = diagonal ? LANES : strip.count; r < strip.count; r += step) {
      const int64_t from = diagonal ? r : 0, count = std::min(step, strip.count - r), offset = r * PANEL + from;
      float* dqueries = scratch.dqueries + r * d;
      multiply(count, d, columns - from, {tiles.da + offset, PANEL, 1}, head.k[tile_start + from], head.k.stride, dqueries, d, true);
      if (own_keys && any_gates)
        multiply(count, d, columns - from, {tiles.gates + offset, PANEL, 1}, head.gate_keys[tile_start + from],
                 head.gate_keys.stride, dqueries, d, true);
    }
    for (int64_t c = 0, step = diagonal ? LANES : columns; c < columns; c += step) {
      const int64_t count = std::min(step, columns - c), key = tile_start + c;
      const int64_t queries = diagonal ? std::min<int64_t>(c + LANES, strip.count) : strip.count;
      multiply(count, d, queries, {tiles.da + c, 1, PANEL}, strip.queries, d, dk[key], dk.stride, true);
      multiply(count, call.value_dim, queries, {tiles.logits + c, 1, PANEL}, scratch.grad_output, call.value_dim, dv[key], dv.stride,
               true);
      if (own_keys && any_gates)
        multiply(count, d, queries, {tiles.gates + c, 1, PANEL}, strip.queries, d, dgate_keys[key], dgate_keys.stride, true);
    }
  }
}

// With several heads to one head of keys, what they have in common is added up over them: its gradients are cleared for the first.
inline void backward_head(const Shared& shared, const Head& head, BackwardScratch& scratch, bool is_first_of_group) {
  const Arguments& call = shared.call;
  const int64_t d = call.head_dim, size = call.value_dim;
  const Rows output = from_the_end(call.output, head.batch, head.head, call.num_queries);
  const Rows grad_output = from_the_end(call.grad_output, head.batch, head.head, call.num_queries);
  const Rows dq = from_the_end(call.dq, head.batch, head.head, call.num_queries);
  const Rows dk = from_the_end(call.dk, head.batch, head.key_head, call.num_keys);
  const Rows dv = from_the_end(call.dv, head.batch, head.key_head, call.num_keys);
  const Rows dgate_keys = from_the_end(call.dgate_keys, head.batch, head.key_head, call.num_keys);
  const float* log_sum_exp = call.log_sum_exp + ((head.batch * call.num_heads + head.head) + 1) * call.num_queries - 1;
  pack_panels(head.v, call.num_keys, size, scratch.value_panels);
  if (is_first_of_group) {
    for (int64_t x = 0; x < call.num_keys; x++) {
      clear(dk[x], d);
      clear(dv[x], size);
      if (dgate_keys.first != nullptr) clear(dgate_keys[x], d);
    }
    clear(scratch.dtable, call.num_positions * d);
    if (call.relative != nullptr) clear(scratch.drelative, call.num_keys * d);
  }
  if (call.bias != nullptr) clear(scratch.dbias, (scratch.num_panels + 2) * PANEL);

  Strip& strip = scratch.strip;
  for (int64_t start = 0; start < call.num_queries; start += STRIP) {
    strip.begin(head, start);
    RowSweep rows[STRIP];
    for (int64_t r = 0; r < strip.count; r++) {
      Floats product = broadcast(0.0f);
      for (int64_t c = 0; c < size; c += LANES) {
        const Floats gradient = load(grad_output[start + r] + c);
        store(scratch.grad_output + r * size + c, gradient);
        product = simd::multiply_add(gradient, load(output[start + r] + c), product);
      }
      rows[r] = {Reached(call.num_positions, call.num_keys), broadcast(0.0f), broadcast(0.0f), 0.0f, log_sum_exp[-(start + r)], simd::sum(product)};
      // Entry 0 too: no key is at position 0 if the query's own gate is exactly 1.
      if (call.num_positions > 0) {
        clear(scratch.ds_sums + r * shared.sums_stride, 2 * LANES);
        clear(scratch.weighted_sums + r * shared.sums_stride, 2 * LANES);
      }
    }
    if (call.relative != nullptr) clear(scratch.dproducts, STRIP * shared.products_stride);
    clear(scratch.dqueries, strip.count * d);

    away_from_queries(shared, head, scratch, rows);
    back_to_queries(shared, head, scratch, dk, dv, dgate_keys);

    if (call.num_positions > 0) {
      const int64_t entries = strip.num_entries, stride = shared.z_stride;
      for (int64_t r = 0; r < strip.count; r++)
        finish_row(rows[r], entries, entries == call.num_positions,
                   scratch.ds_sums + r * shared.sums_stride + LANES, scratch.weighted_sums + r * shared.sums_stride + LANES,
                   scratch.dz + r * stride);
      multiply(strip.count, d, entries, {scratch.dz, stride, 1}, shared.scaled_table, d, scratch.dqueries, d, true);
      multiply(entries, d, strip.count, {scratch.dz, 1, stride}, strip.queries, d, scratch.dtable, d, true);
    }
    if (call.relative != nullptr) {
      const int64_t distances = call.num_keys - start, stride = shared.products_stride;
      multiply(strip.count, d, distances, {scratch.dproducts + PANEL, stride, 1}, call.relative, d, scratch.dqueries, d, true);
      multiply(distances, d, strip.count, {scratch.dproducts + PANEL, 1, stride}, strip.queries, d, scratch.drelative, d, true);
    }
    const Floats scale = broadcast(call.logit_scale);
    for (int64_t r = 0; r < strip.count; r++)
      for (int64_t c = 0; c < d; c += LANES) store(dq[start + r] + c, scale * load(scratch.dqueries + r * d + c));
  }
  if (call.bias != nullptr)
    std::memcpy(call.dbias + (head.batch * call.num_heads + head.head) * call.num_keys, scratch.dbias + PANEL,
                call.num_keys * sizeof(float));
}

}  // namespace cope

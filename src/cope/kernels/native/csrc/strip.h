// A strip of queries: its tables, its tiles of logits, and what all strips of a call share.
#pragma once

#include "positions.h"

namespace cope {

// What every strip of a call shares.
struct Shared {
  const Arguments& call;
  int64_t table_columns;    // num_positions, rounded up to whole vectors
  int64_t z_stride;         // of the tables of a strip's rows
  int64_t sums_stride;      // of the running sums for its gradient, with LANES entries of margin before entry 0
  int64_t products_stride;  // of q . r, by distance, with PANEL entries of margin on both sides
  bool separate_gates;      // whether the gates' logits need a tile of their own
  Buffer scaled_table, table_columns_packed, relative_panels;

  explicit Shared(const Arguments& arguments)
      : call(arguments),
        table_columns(round_up(arguments.num_positions, LANES)),
        z_stride(table_columns + 2 * LANES),
        sums_stride(table_columns + 4 * LANES),
        products_stride(arguments.relative == nullptr ? 0 : round_up(arguments.num_keys, PANEL) + 2 * PANEL),
        separate_gates(arguments.num_positions > 0 &&
                       (arguments.gate_keys.data != nullptr || arguments.relative != nullptr || arguments.bias != nullptr)),
        scaled_table(arguments.num_positions * arguments.head_dim),
        table_columns_packed(arguments.head_dim * table_columns),
        relative_panels(arguments.relative == nullptr ? 0 : round_up(arguments.num_keys, PANEL) * arguments.head_dim) {
    // Queries are multiplied with the logit's scale once; what the table's product lacks goes into the table.
    const float ratio = call.table_scale / call.logit_scale;
    clear(table_columns_packed, call.head_dim * table_columns);
    for (int64_t m = 0; m < call.num_positions; m++)
      for (int64_t c = 0; c < call.head_dim; c++) {
        scaled_table[m * call.head_dim + c] = ratio * call.table[m * call.head_dim + c];
        table_columns_packed[c * table_columns + m] = scaled_table[m * call.head_dim + c];
      }
    if (call.relative != nullptr) pack_panels({call.relative, call.head_dim}, call.num_keys, call.head_dim, relative_panels);
  }
};

// One head: its rows, and its keys packed for products with queries.
struct Head {
  int64_t batch, head, key_head;
  Rows q, k, v, gate_keys;
  const float *key_panels, *gate_key_panels;
  const float* bias;  // by distance, with PANEL entries of margin on both sides; null if there is none
  const float* key_mask;  // of the sequence; null if all keys are seen
  uint64_t dropout_seed;
};

inline uint64_t mix(uint64_t x) {  // splitmix64: every bit of the result depends on every bit of x
  x += 0x9e3779b97f4a7c15;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
  x = (x ^ x >> 27) * 0x94d049bb133111eb;
  return x ^ x >> 31;
}

// One strip of queries.
class Strip {
  const Shared& shared;
  Buffer z, slopes, products;

 public:
  Buffer queries;     // (query, head_dim), times the logit's scale
  int64_t start = 0;  // the first query
  int64_t count = 0;
  int64_t num_entries = 0;  // of the table that the strip can reach

  explicit Strip(const Shared& shared)
      : shared(shared),
        z(STRIP * shared.z_stride),
        slopes(STRIP * shared.z_stride),
        products(STRIP * shared.products_stride),
        queries(STRIP * shared.call.head_dim) {}

  void begin(const Head& head, int64_t first_query) {
    const Arguments& call = shared.call;
    const int64_t d = call.head_dim;
    start = first_query;
    count = std::min<int64_t>(STRIP, call.num_queries - start);
    const Floats scale = broadcast(call.logit_scale);
    for (int64_t r = 0; r < count; r++)
      for (int64_t c = 0; c < d; c += LANES) store(queries + r * d + c, scale * load(head.q[start + r] + c));

    if (call.num_positions > 0) {
      // A position is at most the number of keys, and a look-up reads one entry further.
      num_entries = std::min(call.num_positions, call.num_keys - start + 2);
      multiply(count, round_up(num_entries, LANES), d, {queries, d, 1}, shared.table_columns_packed, shared.table_columns, z,
               shared.z_stride, false);
      const Floats unit = broadcast(1.0f / float(ONE));
      for (int64_t r = 0; r < count; r++) {
        float *row = z + r * shared.z_stride, *row_slopes = slopes + r * shared.z_stride;
        const float last = row[num_entries - 1];
        const int64_t end = round_up(num_entries, LANES) + LANES;
        for (int64_t m = num_entries; m <= end; m++) row[m] = last;
        for (int64_t m = 0; m < end; m += LANES) store(row_slopes + m, unit * (load(row + m + 1) - load(row + m)));
      }
    }
    if (call.relative != nullptr) {
      const int64_t distances = call.num_keys - start;
      for (int64_t n = 0; n < distances; n += PANEL)
        multiply(count, PANEL, d, {queries, d, 1}, shared.relative_panels + n * d, PANEL, products + PANEL + n,
                 shared.products_stride, false);
      if (head.bias != nullptr)
        for (int64_t r = 0; r < count; r++) add(head.bias + PANEL, products + r * shared.products_stride + PANEL, distances, 1);
    }
  }

  RowTable table(int64_t row) const {
    if (num_entries == 0) return {nullptr, nullptr, 0.0f};
    const float* row_z = z + row * shared.z_stride;
    return {row_z, slopes + row * shared.z_stride, row_z[num_entries - 1]};
  }

  // The first column of a tile that a row's walk takes: whole vectors of keys after the query are left out.
  int64_t first_column(int64_t row, int64_t tile_start) const { return tile_start == start ? row / LANES * LANES : 0; }

  // to (query, key) = queries . panel, for the keys from tile_start; columns that no row of a block sees are not computed.
  void product(const float* panels, int64_t size, const float* rows, int64_t tile_start, int64_t columns, float* to,
               int64_t stride) const {
    for (int64_t offset = 0; offset < columns; offset += PANEL) {
      const float* panel = panels + (tile_start + offset) * size;
      const int64_t width = std::min<int64_t>(PANEL, round_up(columns - offset, LANES));
      const bool diagonal = tile_start + offset == start;
      const int64_t step = diagonal ? LANES : count;
      for (int64_t r = 0; r < count; r += step) {
        const int64_t skipped = diagonal ? r : 0;
        multiply(std::min(step, count - r), width - skipped, size, {rows + r * size, size, 1}, panel + skipped, PANEL,
                 to + r * stride + offset + skipped, stride, false);
      }
    }
  }

  // Logits without the contextual term, and what opens the gates: the same tile, unless they differ. Keys that a row does not see
  // are at minus infinity in both.
  void logits(const Head& head, int64_t tile_start, int64_t columns, float* tile, float* gate_tile, int64_t stride) const {
    const int64_t d = shared.call.head_dim;
    product(head.key_panels, d, queries, tile_start, columns, tile, stride);
    if (head.gate_key_panels != nullptr) product(head.gate_key_panels, d, queries, tile_start, columns, gate_tile, stride);
    const bool by_distance = products != nullptr || head.bias != nullptr;
    const int64_t end = round_up(columns, LANES);
    for (int64_t r = 0; r < count; r++) {
      float *row = tile + r * stride, *gate_row = gate_tile + r * stride;
      const int64_t from = first_column(r, tile_start);
      if (by_distance) {
        const float* term = products != nullptr ? products + r * shared.products_stride : head.bias;
        term += PANEL + tile_start - start - r;
        const bool copy = head.gate_key_panels == nullptr && gate_tile != tile;
        for (int64_t c = from; c < end; c += LANES) {
          const Floats content = load(row + c);
          if (copy) store(gate_row + c, content);
          store(row + c, content + load(term + c));
        }
      }
      if (head.key_mask != nullptr) {
        hide_masked(row, head.key_mask + tile_start, from, end);
        if (gate_tile != tile) hide_masked(gate_row, head.key_mask + tile_start, from, end);
      }
      hide(row, from, end, tile_start == start ? r : 0, columns);
      if (gate_tile != tile) hide(gate_row, from, end, tile_start == start ? r : 0, columns);
    }
  }

 private:
  // Minus infinity for keys that are masked, whatever stood there.
  static void hide_masked(float* row, const float* key_mask, int64_t from, int64_t end) {
    const Floats hidden = broadcast(MINUS_INFINITY);
    const Ints one = broadcast(int32_t(1));
    for (int64_t c = from; c < end; c += LANES)
      store(row + c, select_below(simd::to_ints(load(key_mask + c)), one, hidden, load(row + c)));
  }

  // Minus infinity outside the columns [seen, columns).
  static void hide(float* row, int64_t from, int64_t end, int64_t seen, int64_t columns) {
    const Floats hidden = broadcast(MINUS_INFINITY);
    for (int64_t c = from; c < seen; c += LANES)
      store(row + c, select_below(simd::lane_index(), broadcast(int32_t(seen - c)), hidden, load(row + c)));
    if (columns < end) {
      const int64_t c = end - LANES;
      store(row + c, select_below(simd::lane_index(), broadcast(int32_t(columns - c)), load(row + c), hidden));
    }
  }
};

// Dropout: row[c] *= 0 or 1 / (1 - dropout), by a random number that depends on seed, head, query and key alone.
inline void drop(const Arguments& call, const Head& head, int64_t query, int64_t first_key, float* row, int64_t from, int64_t end) {
  const Ints row_key = broadcast(int32_t(mix(head.dropout_seed + uint64_t(query))));
  const Ints threshold = broadcast(int32_t((1.0f - call.dropout) * 16777216.0f));
  const Floats kept = broadcast(1.0f / (1.0f - call.dropout)), dropped = broadcast(0.0f);
  for (int64_t c = from; c < end; c += LANES) {
    Ints x = (simd::lane_index() + broadcast(int32_t(first_key + c))) * broadcast(int32_t(0x9e3779b1)) ^ row_key;
    x = (x ^ shift_right(x, 16)) * broadcast(int32_t(0x85ebca6b));
    x = (x ^ shift_right(x, 13)) * broadcast(int32_t(0xc2b2ae35));
    x = shift_right(x ^ shift_right(x, 16), 8);
    store(row + c, select_below(x, threshold, kept, dropped) * load(row + c));
  }
}

template <class Scratch>
inline Head begin_head(const Shared& shared, int64_t index, const Scratch& scratch) {
  const Arguments& call = shared.call;
  const int64_t batch = index / call.num_heads, head = index % call.num_heads;
  const int64_t key_head = head * call.num_key_heads / call.num_heads;
  Head result{};
  result.batch = batch;
  result.head = head;
  result.key_head = key_head;
  result.q = from_the_end(call.q, batch, head, call.num_queries);
  result.k = from_the_end(call.k, batch, key_head, call.num_keys);
  result.v = from_the_end(call.v, batch, key_head, call.num_keys);
  result.gate_keys = from_the_end(call.gate_keys, batch, key_head, call.num_keys);
  pack_panels(result.k, call.num_keys, call.head_dim, scratch.key_panels);
  result.key_panels = scratch.key_panels;
  if (call.gate_keys.data != nullptr) {
    pack_panels(result.gate_keys, call.num_keys, call.head_dim, scratch.gate_key_panels);
    result.gate_key_panels = scratch.gate_key_panels;
  }
  if (call.bias != nullptr) {
    clear(scratch.bias, round_up(call.num_keys, PANEL) + 2 * PANEL);
    add(call.bias + head * call.bias_head_stride, scratch.bias + PANEL, call.num_keys, 1.0f);
    result.bias = scratch.bias;
  }
  if (call.key_mask != nullptr) result.key_mask = call.key_mask + batch * round_up(call.num_keys, PANEL);
  result.dropout_seed = mix(mix(uint64_t(call.seed)) + uint64_t(index));
  return result;
}

}  // namespace cope

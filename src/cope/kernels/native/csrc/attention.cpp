// CoPE attention for CPUs, forward and backward, exact and with memory that grows linearly with time.
//
// WHAT IT COMPUTES (arXiv 2405.18719; the same numbers as kernels/reference.py, which reads like the paper). For each query i and
// key j <= i, with s = 1 / sqrt(head_dim):
//
//     gate      g_ij = sigmoid(s q_i . k_j)                       Equation 3 (or with separate gate keys)
//     position  p_ij = g_ij + ... + g_ii, at most P - 1           Equation 4
//     logit     l_ij = s q_i . k_j + z_i[p_ij]                    Equations 5 and 6, z_i[m] = q_i . e[m], interpolated
//     output    o_i  = sum_j a_ij v_j,  a = softmax(l)
//
// TIME RUNS BACKWARDS IN HERE. Query 0 and key 0 are the last token; query i sees the keys x >= i, and walking to higher indexes
// walks from the query towards the past, the way positions are counted. The last query always stands at the last key, so a strip
// of queries [r, r + 64) meets the diagonal in the panel of keys [r, r + 64), whatever the two lengths. A tensor is turned round
// by pointing at its last row with a negative stride.
//
// THE WALK. A strip of 64 queries takes the keys a panel of 64 at a time. A small matrix product gives the strip's logits for the
// panel; then each row is walked, LANES keys at once, carrying the position reached so far:
//
//   - Positions are integers in fixed point, with 24 bits of fraction where at most 112 positions leave room for them. Integer sums
//     are exact, do not depend on their order and never fall; a gate is at most 1, so the floor rises by at most 1 a key. Hence the
//     floors of LANES neighbouring keys lie in a window of LANES entries of z: one load and one permutation look all of them up.
//   - Once a row has reached position P - 1 all further keys have it: no gate, no look-up, only z_i[P - 1].
//   - The softmax is online: a running maximum and sum rescale what was added up before. Only log(sum exp) is kept for backward.
//
// BACKWARD takes each strip in two sweeps, with the tiles of logits computed again. With D_i = do_i . o_i:
//
//   away from the query:   a = exp(l - log_sum_exp),  da = do . v,  ds = a (da - D),  and for the position's gradient
//                          u = ds (z[floor p + 1] - z[floor p])
//   back towards it:       p_ij holds the gates of all keys from j to i, so gate t is in every p_ij with j at or beyond t:
//                          dg_t = sum of u over the keys at or beyond t,   and   dl_t += dg_t g_t (1 - g_t)
//
// The table's gradient needs sums of ds and of ds w (w = the fraction of p) over the keys of equal floor. Floors only rise, so the
// running sums at the end of each run of equal floors are stored, at the floor's place, and differenced once a row: no scatter.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <thread>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "matmul.h"
#include "simd.h"

namespace {

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

int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// ------------------------------------------------------------------------------------------------------------------ tensors

// (batch, heads, time, size); strides in floats, the last dimension contiguous. data is null where a tensor is not there.
struct Tensor {
  float* data;
  int64_t batch_stride, head_stride, time_stride;
};

// Everything one call works on; operator.py's ctypes.Structure mirrors it. head_dim and value_dim are multiples of 16.
struct Arguments {
  int64_t batch, num_heads, num_queries, num_keys, head_dim, value_dim, num_positions, num_threads, seed;
  float logit_scale;  // s above
  float table_scale;  // what multiplies q . e
  float dropout;
  Tensor q, k, v, gate_keys, output, grad_output, dq, dk, dv, dgate_keys;
  float* table;             // (num_positions, head_dim)
  float* relative;          // (num_keys, head_dim), by distance
  float* bias;              // (num_keys) for each head, by distance
  int64_t bias_head_stride; // 0 if one serves all heads
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

Rows from_the_end(const Tensor& tensor, int64_t batch, int64_t head, int64_t count) {
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

void clear(float* to, int64_t count) { std::memset(to, 0, count * sizeof(float)); }

void add(const float* from, float* to, int64_t count, float scale) {
  for (int64_t i = 0; i < count; i++) to[i] += scale * from[i];
}

// Rows (count x size) -> panels of (size x PANEL), transposed; columns beyond the last row are 0.
void pack_panels(Rows rows, int64_t count, int64_t size, float* panels) {
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

// ---------------------------------------------------------------------------------------------------------------- positions

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

// -------------------------------------------------------------------------------------------------------------- a strip's tiles

// What every strip of a call shares.
struct Shared {
  const Arguments& call;
  FixedPoint fixed;
  int64_t table_columns;    // num_positions, rounded up to whole vectors
  int64_t z_stride;         // of the tables of a strip's rows
  int64_t sums_stride;      // of the running sums for its gradient, with LANES entries of margin before entry 0
  int64_t products_stride;  // of q . r, by distance, with PANEL entries of margin on both sides
  bool separate_gates;      // whether the gates' logits need a tile of their own
  Buffer scaled_table, table_columns_packed, relative_panels;

  explicit Shared(const Arguments& arguments)
      : call(arguments),
        fixed(arguments.num_positions),
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
  int64_t batch, head;
  Rows q, k, v, gate_keys;
  const float *key_panels, *gate_key_panels;
  const float* bias;  // by distance, with PANEL entries of margin on both sides; null if there is none
  uint64_t dropout_seed;
};

uint64_t mix(uint64_t x) {  // splitmix64: every bit of the result depends on every bit of x
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
      const Floats unit = broadcast(1.0f / shared.fixed.one);
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
      hide(row, from, end, tile_start == start ? r : 0, columns);
      if (gate_tile != tile) hide(gate_row, from, end, tile_start == start ? r : 0, columns);
    }
  }

 private:
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
void drop(const Arguments& call, const Head& head, int64_t query, int64_t first_key, float* row, int64_t from, int64_t end) {
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

// ------------------------------------------------------------------------------------------------------------------- forward

// Adds the contextual term to N vectors of a row's logits.
template <int N>
inline __attribute__((always_inline)) void place(float* logits, const float* gate_logits, const RowTable& table,
                                                 const FixedPoint& fixed, Ints& reached, Floats& highest) {
  Floats gates[N];
  Ints positions[N];
  count_positions<N>(gate_logits, fixed, reached, gates, positions);
#pragma GCC unroll 4
  for (int i = 0; i < N; i++) {
    const Place at(positions[i], fixed);
    const Floats below = look_up(table.z + at.base, at.index), slope = look_up(table.slopes + at.base, at.index);
    Floats logit = simd::multiply_add(gates[i], broadcast(0.0f), load(logits + i * LANES) + below);  // a gate's NaN
    logit = simd::multiply_add(at.weight, slope, logit);
    store(logits + i * LANES, logit);
    highest = simd::maximum(highest, logit);
  }
}

// Walks one row of a tile; returns its highest logit.
float walk(float* logits, const float* gate_logits, int64_t from, int64_t end, const RowTable& table, const FixedPoint& fixed,
           Ints& reached) {
  Floats highest = broadcast(LOWEST);
  int64_t c = from;
  // Four vectors at a time: the steps of one hide the latency of the others'.
  while (c < end && simd::first(reached) < fixed.limit) {
    if (end - c >= 4 * LANES) {
      place<4>(logits + c, gate_logits + c, table, fixed, reached, highest);
      c += 4 * LANES;
    } else {
      place<1>(logits + c, gate_logits + c, table, fixed, reached, highest);
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
void forward_head(const Shared& shared, const Head& head, int64_t first, int64_t step, Strip& strip, float* tile, float* gate_tile,
                  float* sums) {
  const Arguments& call = shared.call;
  const int64_t size = call.value_dim;
  const Rows output = from_the_end(call.output, head.batch, head.head, call.num_queries);
  float* log_sum_exp = call.log_sum_exp + ((head.batch * call.num_heads + head.head) + 1) * call.num_queries - 1;
  for (int64_t start = first * STRIP; start < call.num_queries; start += step * STRIP) {
    strip.begin(head, start);
    float highest[STRIP], total[STRIP];
    Ints reached[STRIP];
    for (int64_t r = 0; r < strip.count; r++) {
      highest[r] = LOWEST;
      total[r] = 0;
      reached[r] = broadcast(int32_t(0));
    }
    clear(sums, strip.count * size);
    for (int64_t tile_start = start; tile_start < call.num_keys; tile_start += FORWARD_TILE) {
      const int64_t columns = std::min<int64_t>(FORWARD_TILE, call.num_keys - tile_start), end = round_up(columns, LANES);
      strip.logits(head, tile_start, columns, tile, gate_tile, FORWARD_TILE);
      for (int64_t r = 0; r < strip.count; r++) {
        float* row = tile + r * FORWARD_TILE;
        const int64_t from = strip.first_column(r, tile_start);
        const float tile_highest =
            walk(row, gate_tile + r * FORWARD_TILE, from, end, strip.table(r), shared.fixed, reached[r]);
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
      const Floats share = broadcast(1.0f / total[r]);
      for (int64_t c = 0; c < size; c += LANES) store(output[start + r] + c, share * load(sums + r * size + c));
      log_sum_exp[-(start + r)] = highest[r] + std::log(total[r]);
    }
  }
}

// ------------------------------------------------------------------------------------------------------------------ backward

// What a row carries through the first sweep of the backward pass.
struct RowSweep {
  Ints reached;
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
inline __attribute__((always_inline)) void differentiate(const PanelTiles& at, const RowTable& table, const FixedPoint& fixed,
                                                         RowSweep& row, float* ds_sums, float* weighted_sums) {
  const Floats log_sum_exp = broadcast(row.log_sum_exp), output_product = broadcast(row.output_product), one = broadcast(1.0f);
  Floats gates[N], ds[N], weighted[N];
  Ints positions[N];
  count_positions<N>(at.gate_logits, fixed, row.reached, gates, positions);
#pragma GCC unroll 4
  for (int i = 0; i < N; i++) {
    const Place where(positions[i], fixed);
    const Floats below = look_up(table.z + where.base, where.index), slope = look_up(table.slopes + where.base, where.index);
    Floats logit = simd::multiply_add(gates[i], broadcast(0.0f), load(at.logits + i * LANES) - log_sum_exp + below);
    const Floats a = simd::exponential(simd::multiply_add(where.weight, slope, logit));
    ds[i] = a * (load(at.da + i * LANES) - output_product);
    weighted[i] = ds[i] * where.weight;
    store(at.logits + i * LANES, a);
    store(at.da + i * LANES, ds[i]);
    store(at.u + i * LANES, ds[i] * slope);
    // The slope is for a unit of fixed point, so a gate's gradient is in such units too.
    store(at.gates + i * LANES, broadcast(fixed.one) * gates[i] * (one - gates[i]));
  }
#pragma GCC unroll 4
  for (int i = 0; i < N; i++) {
    ds[i] = simd::running_sum(ds[i]);
    weighted[i] = simd::running_sum(weighted[i]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < N; i++) {
    const Place where(positions[i], fixed);
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
int64_t sweep_away(const PanelTiles& tiles, int64_t from, int64_t end, const RowTable& table, const FixedPoint& fixed,
                   RowSweep& row, float* ds_sums, float* weighted_sums) {
  int64_t c = from;
  while (c < end && simd::first(row.reached) < fixed.limit) {
    if (end - c >= 4 * LANES) {
      differentiate<4>(tiles + c, table, fixed, row, ds_sums, weighted_sums);
      c += 4 * LANES;
    } else {
      differentiate<1>(tiles + c, table, fixed, row, ds_sums, weighted_sums);
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
float sweep_back(const float* u, float* gates, float* dl, bool separate, int64_t from, int64_t seen, int64_t gates_end, int64_t end,
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
void finish_row(const RowSweep& row, const FixedPoint& fixed, int64_t num_entries, bool reaches_last, float* ds_sums,
                float* weighted_sums, float* dz) {
  // In both, entry -1 and -2 are 0. Floors beyond the last one met add nothing.
  const float ds_total = simd::first(row.ds_sum), weighted_total = simd::first(row.weighted_sum);
  const int64_t end = round_up(num_entries, LANES);
  for (int64_t m = (simd::first(row.reached) >> fixed.bits) + 1; m < end; m++) {
    ds_sums[m] = ds_total;
    weighted_sums[m] = weighted_total;
  }
  const Floats unit = broadcast(1.0f / fixed.one);
  for (int64_t m = 0; m < end; m += LANES) {
    const Floats ds = load(ds_sums + m) - load(ds_sums + m - 1);
    const Floats weighted = load(weighted_sums + m) - load(weighted_sums + m - 1);
    const Floats weighted_below = load(weighted_sums + m - 1) - load(weighted_sums + m - 2);
    store(dz + m, simd::multiply_add(unit, weighted_below - weighted, ds));
  }
  if (reaches_last) dz[num_entries - 1] += row.ds_at_last;
}

// Scratch memory of one thread, and the strip it works on.
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

struct BackwardScratch {
  const int64_t num_panels;
  Buffer key_panels, gate_key_panels, bias, value_panels, logits, da, u, gates, grad_output, dqueries, dz, ds_sums, weighted_sums,
      dproducts;
  // Of one head, added to the call's in the order of heads, so that results do not depend on the number of threads.
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

template <class Scratch>
Head begin_head(const Shared& shared, int64_t index, const Scratch& scratch) {
  const Arguments& call = shared.call;
  const int64_t batch = index / call.num_heads, head = index % call.num_heads;
  Head result{};
  result.batch = batch;
  result.head = head;
  result.q = from_the_end(call.q, batch, head, call.num_queries);
  result.k = from_the_end(call.k, batch, head, call.num_keys);
  result.v = from_the_end(call.v, batch, head, call.num_keys);
  result.gate_keys = from_the_end(call.gate_keys, batch, head, call.num_keys);
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
  result.dropout_seed = mix(mix(uint64_t(call.seed)) + uint64_t(index));
  return result;
}

// The first sweep of a strip: every panel's a, ds and u, the gates' g (1 - g), and the running sums for the table's gradient.
void away_from_queries(const Shared& shared, const Head& head, BackwardScratch& scratch, RowSweep (&rows)[STRIP]) {
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
          row_tiles, from, end, strip.table(r), shared.fixed, rows[r], scratch.ds_sums + r * shared.sums_stride + LANES,
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
void back_to_queries(const Shared& shared, const Head& head, BackwardScratch& scratch, Rows dk, Rows dv, Rows dgate_keys) {
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

void backward_head(const Shared& shared, const Head& head, BackwardScratch& scratch) {
  const Arguments& call = shared.call;
  const int64_t d = call.head_dim, size = call.value_dim;
  const Rows output = from_the_end(call.output, head.batch, head.head, call.num_queries);
  const Rows grad_output = from_the_end(call.grad_output, head.batch, head.head, call.num_queries);
  const Rows dq = from_the_end(call.dq, head.batch, head.head, call.num_queries);
  const Rows dk = from_the_end(call.dk, head.batch, head.head, call.num_keys);
  const Rows dv = from_the_end(call.dv, head.batch, head.head, call.num_keys);
  const Rows dgate_keys = from_the_end(call.dgate_keys, head.batch, head.head, call.num_keys);
  const float* log_sum_exp = call.log_sum_exp + ((head.batch * call.num_heads + head.head) + 1) * call.num_queries - 1;
  pack_panels(head.v, call.num_keys, size, scratch.value_panels);
  for (int64_t x = 0; x < call.num_keys; x++) {
    clear(dk[x], d);
    clear(dv[x], size);
    if (dgate_keys.first != nullptr) clear(dgate_keys[x], d);
  }
  clear(scratch.dtable, call.num_positions * d);
  if (call.relative != nullptr) clear(scratch.drelative, call.num_keys * d);
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
      rows[r] = {broadcast(int32_t(0)), broadcast(0.0f), broadcast(0.0f), 0.0f, log_sum_exp[-(start + r)], simd::sum(product)};
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
        finish_row(rows[r], shared.fixed, entries, entries == call.num_positions,
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

// ------------------------------------------------------------------------------------------------------------------- threads

// Runs tasks 0, 1, ..., num_tasks - 1, each with a thread's own scratch; false if memory ran out.
template <class Scratch, class Task>
bool run(const Shared& shared, int64_t num_tasks, Task task) {
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  const int threads = int(std::min<int64_t>(shared.call.num_threads, num_tasks));
#pragma omp parallel num_threads(threads)
  {
    simd::FlushTinyNumbers flush;
    try {
      Scratch scratch(shared);
      for (int64_t index = next++; index < num_tasks; index = next++) task(index, scratch);
    } catch (const std::bad_alloc&) {
      failed = true;  // before this thread took a task: the others do them all
    }
  }
  return !failed || next >= num_tasks;
}

void forward(const Arguments& call) {
  const Shared shared(call);
  const int64_t num_heads = call.batch * call.num_heads, num_strips = (call.num_queries + STRIP - 1) / STRIP;
  // With fewer heads than threads, a head's strips are dealt out in turn: strips see unequal numbers of keys.
  const int64_t parts = std::min(num_strips, (call.num_threads + num_heads - 1) / num_heads);
  const bool done = run<ForwardScratch>(shared, num_heads * parts, [&](int64_t task, ForwardScratch& scratch) {
    const Head head = begin_head(shared, task / parts, scratch);
    float* gate_tile = shared.separate_gates ? scratch.gate_tile : scratch.tile;
    forward_head(shared, head, task % parts, parts, scratch.strip, scratch.tile, gate_tile, scratch.sums);
  });
  if (!done) throw std::bad_alloc();
}

void backward(const Arguments& call) {
  const Shared shared(call);
  const int64_t num_heads = call.batch * call.num_heads;
  std::atomic<int64_t> turn{0};
  const float ratio = call.table_scale / call.logit_scale;  // queries held the logit's scale
  const bool done = run<BackwardScratch>(shared, num_heads, [&](int64_t index, BackwardScratch& scratch) {
    backward_head(shared, begin_head(shared, index, scratch), scratch);
    while (turn != index) std::this_thread::yield();
    if (call.num_positions > 0) add(scratch.dtable, call.dtable, call.num_positions * call.head_dim, ratio);
    if (call.relative != nullptr) add(scratch.drelative, call.drelative, call.num_keys * call.head_dim, 1.0f);
    turn = index + 1;
  });
  if (!done) throw std::bad_alloc();
}

template <class Work>
int guarded(Work work) {
  try {
    work();
    return 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}

}  // namespace

// What Python calls. Both give 0, or 1 if memory ran out. The gradients of table and relative must be 0 before.
extern "C" {
int cope_forward(const Arguments* call) {
  return guarded([&] { forward(*call); });
}
int cope_backward(const Arguments* call) {
  return guarded([&] { backward(*call); });
}
const char* cope_instructions() { return simd::NAME; }
int cope_has_threads() {
#ifdef _OPENMP
  return 1;
#else
  return 0;
#endif
}
}

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
//   - Positions are integers in fixed point, with 24 bits of fraction above a whole number that follows them. Integer sums are
//     exact and never fall; how far rounding a gate can take a position is in positions.h. A gate is at most 1, so the floor rises
//     by at most 1 a key. Hence the floors of LANES neighbouring keys lie in a window of LANES entries of z: one load and one
//     permutation look all of them up.
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
//
// WHERE IT IS. positions.h counts; strip.h makes the tiles that both passes take; forward.h and backward.h are the passes; tensors.h,
// matmul.h and simd.h serve them. This file deals heads out to threads and is what Python calls.

#include <atomic>
#include <new>
#include <thread>
#include <vector>

#include "backward.h"
#include "forward.h"

namespace cope {

// Calls work() in so many threads at once, and returns when all have ended.
template <class Work>
void in_parallel(int num_threads, Work work) {
#ifdef __SANITIZE_THREAD__  // which sees when threads of C++ begin and end, and not when those of OpenMP do
  std::vector<std::thread> others;
  for (int i = 1; i < num_threads; i++) others.emplace_back(work);
  work();
  for (std::thread& other : others) other.join();
#else
#pragma omp parallel num_threads(num_threads)
  work();
#endif
}

// Runs tasks 0, 1, ..., num_tasks - 1, each with a thread's own scratch; false if memory ran out.
template <class Scratch, class Task>
bool run(const Shared& shared, int64_t num_tasks, Task task) {
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  in_parallel(int(std::min<int64_t>(shared.call.num_threads, num_tasks)), [&] {
    simd::FlushTinyNumbers flush;
    try {
      Scratch scratch(shared);
      for (int64_t index = next++; index < num_tasks; index = next++) task(index, scratch);
    } catch (const std::bad_alloc&) {
      failed = true;  // before this thread took a task: the others do them all
    }
  });
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
  const int64_t num_key_heads = call.batch * call.num_key_heads, group_size = call.num_heads / call.num_key_heads;
  std::atomic<int64_t> turn{0};
  const float ratio = call.table_scale / call.logit_scale;  // queries held the logit's scale
  const bool done = run<BackwardScratch>(shared, num_key_heads, [&](int64_t index, BackwardScratch& scratch) {
    for (int64_t member = 0; member < group_size; member++)
      backward_head(shared, begin_head(shared, index * group_size + member, scratch), scratch, member == 0);
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

}  // namespace cope

// What Python calls. Both give 0, or 1 if memory ran out. The gradients of table and relative must be 0 before.
extern "C" {
int cope_forward(const cope::Arguments* call) {
  return cope::guarded([&] { cope::forward(*call); });
}
int cope_backward(const cope::Arguments* call) {
  return cope::guarded([&] { cope::backward(*call); });
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

// A vector of LANES floats or 32-bit integers, for AVX-512, AVX2 and any other processor: the only file with intrinsics.
//
// The kernel is written once, over these names. Lane 0 is the lowest address. Comparisons with NaN matter here: maximum(a, b)
// and minimum(a, b) give b where either is NaN, as x86 does.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) || (defined(__AVX2__) && defined(__FMA__))
#include <immintrin.h>
#define COPE_X86 1
#endif

namespace simd {

#if defined(__AVX512F__)

constexpr int LANES = 16;
constexpr int MATMUL_ROWS = 8, MATMUL_VECTORS = 2;  // 16 of 32 registers hold sums, which hides the latency of 4 cycles
constexpr const char* NAME = "AVX-512";

struct Floats { __m512 v; };
struct Ints { __m512i v; };

inline Floats load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void store(float* p, Floats x) { _mm512_storeu_ps(p, x.v); }
inline Floats broadcast(float x) { return {_mm512_set1_ps(x)}; }
inline Ints broadcast(int32_t x) { return {_mm512_set1_epi32(x)}; }
inline Ints lane_index() { return {_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)}; }

inline Floats operator+(Floats a, Floats b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Floats operator-(Floats a, Floats b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Floats operator*(Floats a, Floats b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Floats multiply_add(Floats a, Floats b, Floats c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }  // a b + c
inline Floats multiply_subtract(Floats a, Floats b, Floats c) { return {_mm512_fmsub_ps(a.v, b.v, c.v)}; }  // a b - c
inline Floats maximum(Floats a, Floats b) { return {_mm512_max_ps(a.v, b.v)}; }
inline Floats minimum(Floats a, Floats b) { return {_mm512_min_ps(a.v, b.v)}; }
inline Floats round(Floats x) { return {_mm512_roundscale_ps(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
inline Floats times_power_of_two(Floats x, Floats n) { return {_mm512_scalef_ps(x.v, n.v)}; }  // n whole; 0 if too small
inline Floats reciprocal(Floats x) {
  __m512 y = _mm512_rcp14_ps(x.v);  // 14 bits, and one Newton step for the rest
  return {_mm512_mul_ps(y, _mm512_fnmadd_ps(x.v, y, _mm512_set1_ps(2.0f)))};
}
inline float sum(Floats x) { return _mm512_reduce_add_ps(x.v); }
inline float highest(Floats x) { return _mm512_reduce_max_ps(x.v); }

inline Ints operator+(Ints a, Ints b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline Ints operator-(Ints a, Ints b) { return {_mm512_sub_epi32(a.v, b.v)}; }
inline Ints operator*(Ints a, Ints b) { return {_mm512_mullo_epi32(a.v, b.v)}; }
inline Ints operator&(Ints a, Ints b) { return {_mm512_and_si512(a.v, b.v)}; }
inline Ints operator^(Ints a, Ints b) { return {_mm512_xor_si512(a.v, b.v)}; }
inline Ints minimum(Ints a, Ints b) { return {_mm512_min_epi32(a.v, b.v)}; }
inline Ints shift_right(Ints x, int bits) { return {_mm512_srl_epi32(x.v, _mm_cvtsi32_si128(bits))}; }  // fills with 0
inline Ints to_ints(Floats x) { return {_mm512_cvtps_epi32(x.v)}; }  // to the nearest
inline Floats to_floats(Ints x) { return {_mm512_cvtepi32_ps(x.v)}; }

inline int32_t first(Ints x) { return _mm_cvtsi128_si32(_mm512_castsi512_si128(x.v)); }
inline float first(Floats x) { return _mm512_cvtss_f32(x.v); }
inline Ints spread_last(Ints x) { return {_mm512_permutexvar_epi32(_mm512_set1_epi32(15), x.v)}; }
inline Floats spread_last(Floats x) { return {_mm512_permutexvar_ps(_mm512_set1_epi32(15), x.v)}; }
inline Floats spread_first(Floats x) { return {_mm512_broadcastss_ps(_mm512_castps512_ps128(x.v))}; }

// Lane l gets lane l - N (up) or l + N (down); 0 comes in at the end.
template <int N> inline __m512i up(__m512i x) { return _mm512_alignr_epi32(x, _mm512_setzero_si512(), 16 - N); }
template <int N> inline __m512i down(__m512i x) { return _mm512_alignr_epi32(_mm512_setzero_si512(), x, N); }
template <int N> inline Ints up(Ints x) { return {up<N>(x.v)}; }
template <int N> inline Floats up(Floats x) { return {_mm512_castsi512_ps(up<N>(_mm512_castps_si512(x.v)))}; }
template <int N> inline Floats down(Floats x) { return {_mm512_castsi512_ps(down<N>(_mm512_castps_si512(x.v)))}; }

// from[index] for indexes below LANES: one load and one permutation, which is faster than a gather.
inline Floats look_up(const float* from, Ints index) { return {_mm512_permutexvar_ps(index.v, _mm512_loadu_ps(from))}; }

inline Floats select_below(Ints index, Ints bound, Floats yes, Floats no) {  // index < bound ? yes : no
  return {_mm512_mask_blend_ps(_mm512_cmplt_epi32_mask(index.v, bound.v), no.v, yes.v)};
}

inline void zip(Floats a, Floats b, Floats& low, Floats& high) {  // a0 b0 a1 b1 ... over two vectors
  low.v = _mm512_permutex2var_ps(a.v, _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23), b.v);
  high.v = _mm512_permutex2var_ps(a.v, _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31), b.v);
}

// Which lanes end a run of equal values (the last always does), to move those lanes' values together at the front.
struct RunEnds {
  __mmask16 ends;
  explicit RunEnds(Ints x)
      : ends(_mm512_cmpneq_epi32_mask(x.v, _mm512_alignr_epi32(_mm512_set1_epi32(-1), x.v, 1))) {}
  Floats pack(Floats x) const { return {_mm512_maskz_compress_ps(ends, x.v)}; }
};

#elif defined(__AVX2__) && defined(__FMA__)

constexpr int LANES = 8;
constexpr int MATMUL_ROWS = 4, MATMUL_VECTORS = 2;  // 8 of 16 registers hold sums
constexpr const char* NAME = "AVX2";

struct Floats { __m256 v; };
struct Ints { __m256i v; };

inline Floats load(const float* p) { return {_mm256_loadu_ps(p)}; }
inline void store(float* p, Floats x) { _mm256_storeu_ps(p, x.v); }
inline Floats broadcast(float x) { return {_mm256_set1_ps(x)}; }
inline Ints broadcast(int32_t x) { return {_mm256_set1_epi32(x)}; }
inline Ints lane_index() { return {_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)}; }

inline Floats operator+(Floats a, Floats b) { return {_mm256_add_ps(a.v, b.v)}; }
inline Floats operator-(Floats a, Floats b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline Floats operator*(Floats a, Floats b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline Floats multiply_add(Floats a, Floats b, Floats c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
inline Floats multiply_subtract(Floats a, Floats b, Floats c) { return {_mm256_fmsub_ps(a.v, b.v, c.v)}; }
inline Floats maximum(Floats a, Floats b) { return {_mm256_max_ps(a.v, b.v)}; }
inline Floats minimum(Floats a, Floats b) { return {_mm256_min_ps(a.v, b.v)}; }
inline Floats round(Floats x) { return {_mm256_round_ps(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
inline Floats times_power_of_two(Floats x, Floats n) {
  // Two steps of half the exponent, so that neither leaves the range of a float.
  __m256i exponent = _mm256_cvtps_epi32(n.v), half = _mm256_srai_epi32(exponent, 1);
  __m256i bias = _mm256_set1_epi32(127), lowest = _mm256_setzero_si256();
  auto power = [&](__m256i e) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_max_epi32(_mm256_add_epi32(e, bias), lowest), 23)); };
  return {_mm256_mul_ps(_mm256_mul_ps(x.v, power(half)), power(_mm256_sub_epi32(exponent, half)))};
}
inline Floats reciprocal(Floats x) { return {_mm256_div_ps(_mm256_set1_ps(1.0f), x.v)}; }
inline float sum(Floats x) {
  __m128 y = _mm_add_ps(_mm256_castps256_ps128(x.v), _mm256_extractf128_ps(x.v, 1));
  y = _mm_add_ps(y, _mm_movehl_ps(y, y));
  return _mm_cvtss_f32(_mm_add_ss(y, _mm_movehdup_ps(y)));
}
inline float highest(Floats x) {
  __m128 y = _mm_max_ps(_mm256_castps256_ps128(x.v), _mm256_extractf128_ps(x.v, 1));
  y = _mm_max_ps(y, _mm_movehl_ps(y, y));
  return _mm_cvtss_f32(_mm_max_ss(y, _mm_movehdup_ps(y)));
}

inline Ints operator+(Ints a, Ints b) { return {_mm256_add_epi32(a.v, b.v)}; }
inline Ints operator-(Ints a, Ints b) { return {_mm256_sub_epi32(a.v, b.v)}; }
inline Ints operator*(Ints a, Ints b) { return {_mm256_mullo_epi32(a.v, b.v)}; }
inline Ints operator&(Ints a, Ints b) { return {_mm256_and_si256(a.v, b.v)}; }
inline Ints operator^(Ints a, Ints b) { return {_mm256_xor_si256(a.v, b.v)}; }
inline Ints minimum(Ints a, Ints b) { return {_mm256_min_epi32(a.v, b.v)}; }
inline Ints shift_right(Ints x, int bits) { return {_mm256_srl_epi32(x.v, _mm_cvtsi32_si128(bits))}; }
inline Ints to_ints(Floats x) { return {_mm256_cvtps_epi32(x.v)}; }
inline Floats to_floats(Ints x) { return {_mm256_cvtepi32_ps(x.v)}; }

inline int32_t first(Ints x) { return _mm_cvtsi128_si32(_mm256_castsi256_si128(x.v)); }
inline float first(Floats x) { return _mm_cvtss_f32(_mm256_castps256_ps128(x.v)); }
inline Ints spread_last(Ints x) { return {_mm256_permutevar8x32_epi32(x.v, _mm256_set1_epi32(7))}; }
inline Floats spread_last(Floats x) { return {_mm256_permutevar8x32_ps(x.v, _mm256_set1_epi32(7))}; }
inline Floats spread_first(Floats x) { return {_mm256_broadcastss_ps(_mm256_castps256_ps128(x.v))}; }

template <int N> inline __m256i up(__m256i x) {
  __m256i carried = _mm256_permute2x128_si256(x, x, 0x08);  // the low half moved up, 0 below
  if constexpr (N == 4) return carried;
  else return _mm256_alignr_epi8(x, carried, 16 - 4 * N);
}
template <int N> inline __m256i down(__m256i x) {
  __m256i carried = _mm256_permute2x128_si256(x, x, 0x81);  // the high half moved down, 0 above
  if constexpr (N == 4) return carried;
  else return _mm256_alignr_epi8(carried, x, 4 * N);
}
template <int N> inline Ints up(Ints x) { return {up<N>(x.v)}; }
template <int N> inline Floats up(Floats x) { return {_mm256_castsi256_ps(up<N>(_mm256_castps_si256(x.v)))}; }
template <int N> inline Floats down(Floats x) { return {_mm256_castsi256_ps(down<N>(_mm256_castps_si256(x.v)))}; }

inline Floats look_up(const float* from, Ints index) { return {_mm256_permutevar8x32_ps(_mm256_loadu_ps(from), index.v)}; }

inline Floats select_below(Ints index, Ints bound, Floats yes, Floats no) {
  return {_mm256_blendv_ps(no.v, yes.v, _mm256_castsi256_ps(_mm256_cmpgt_epi32(bound.v, index.v)))};
}

inline void zip(Floats a, Floats b, Floats& low, Floats& high) {
  const __m256 evens = _mm256_unpacklo_ps(a.v, b.v), odds = _mm256_unpackhi_ps(a.v, b.v);  // within each half
  low.v = _mm256_permute2f128_ps(evens, odds, 0x20);
  high.v = _mm256_permute2f128_ps(evens, odds, 0x31);
}

struct RunEnds {
  // For each set of ends, the permutation that moves them to the front.
  struct Permutations {
    int32_t lane[256][8];
    Permutations() {
      for (int ends = 0; ends < 256; ends++) {
        int count = 0;
        for (int l = 0; l < 8; l++)
          if (ends >> l & 1) lane[ends][count++] = l;
        while (count < 8) lane[ends][count++] = 7;
      }
    }
  };
  static const Permutations& permutations() {
    static const Permutations all;
    return all;
  }
  __m256i permutation;
  explicit RunEnds(Ints x) {
    __m256i next = _mm256_blend_epi32(down<1>(x.v), _mm256_set1_epi32(-1), 0x80);
    int ends = ~_mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpeq_epi32(x.v, next))) & 0xff;
    permutation = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(permutations().lane[ends]));
  }
  Floats pack(Floats x) const { return {_mm256_permutevar8x32_ps(x.v, permutation)}; }
};

#else  // Plain loops, which compilers turn into whatever vectors the processor has (NEON, SVE, SSE, ...).

constexpr int LANES = 8;
constexpr int MATMUL_ROWS = 4, MATMUL_VECTORS = 1;
constexpr const char* NAME = "portable";

struct Floats { alignas(32) float v[LANES]; };
struct Ints { alignas(32) int32_t v[LANES]; };

template <class V, class F> inline V each(F value) {
  V result;
  for (int l = 0; l < LANES; l++) result.v[l] = value(l);
  return result;
}

inline Floats load(const float* p) { return each<Floats>([&](int l) { return p[l]; }); }
inline void store(float* p, Floats x) { std::memcpy(p, x.v, sizeof x.v); }
inline Floats broadcast(float x) { return each<Floats>([&](int) { return x; }); }
inline Ints broadcast(int32_t x) { return each<Ints>([&](int) { return x; }); }
inline Ints lane_index() { return each<Ints>([](int l) { return l; }); }

inline Floats operator+(Floats a, Floats b) { return each<Floats>([&](int l) { return a.v[l] + b.v[l]; }); }
inline Floats operator-(Floats a, Floats b) { return each<Floats>([&](int l) { return a.v[l] - b.v[l]; }); }
inline Floats operator*(Floats a, Floats b) { return each<Floats>([&](int l) { return a.v[l] * b.v[l]; }); }
inline Floats multiply_add(Floats a, Floats b, Floats c) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  return each<Floats>([&](int l) { return __builtin_fmaf(a.v[l], b.v[l], c.v[l]); });
#else  // std::fma without the instruction is a slow function call
  return each<Floats>([&](int l) { return a.v[l] * b.v[l] + c.v[l]; });
#endif
}
inline Floats multiply_subtract(Floats a, Floats b, Floats c) { return multiply_add(a, b, broadcast(0.0f) - c); }
inline Floats maximum(Floats a, Floats b) { return each<Floats>([&](int l) { return a.v[l] > b.v[l] ? a.v[l] : b.v[l]; }); }
inline Floats minimum(Floats a, Floats b) { return each<Floats>([&](int l) { return a.v[l] < b.v[l] ? a.v[l] : b.v[l]; }); }
inline Floats round(Floats x) {
  // Adding and taking away 1.5 x 2^23 leaves the nearest whole number, for |x| < 2^22: more than exponents need.
  return each<Floats>([&](int l) {
    volatile float shifted = x.v[l] + 12582912.0f;
    return shifted - 12582912.0f;
  });
}
inline float power_of_two(int32_t n) {  // 0 below the range of normal floats
  int32_t bits = n < -127 ? 0 : (n + 127) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return power;
}
inline Floats times_power_of_two(Floats x, Floats n) {
  // Two steps of half the exponent, so that neither leaves the range of a float.
  return each<Floats>([&](int l) {
    int32_t exponent = n.v[l] > -300.0f ? int32_t(n.v[l]) : -300, half = exponent >> 1;  // NaN becomes -300 and x stays NaN
    return x.v[l] * power_of_two(half) * power_of_two(exponent - half);
  });
}
inline Floats reciprocal(Floats x) { return each<Floats>([&](int l) { return 1.0f / x.v[l]; }); }
inline float sum(Floats x) {
  float total = 0;
  for (float lane : x.v) total += lane;
  return total;
}
inline float highest(Floats x) {
  float result = x.v[0];
  for (float lane : x.v) result = result > lane ? result : lane;
  return result;
}

// Through unsigned, where wrapping round is defined: dropout's random numbers rely on it.
inline Ints operator+(Ints a, Ints b) { return each<Ints>([&](int l) { return int32_t(uint32_t(a.v[l]) + uint32_t(b.v[l])); }); }
inline Ints operator-(Ints a, Ints b) { return each<Ints>([&](int l) { return int32_t(uint32_t(a.v[l]) - uint32_t(b.v[l])); }); }
inline Ints operator*(Ints a, Ints b) { return each<Ints>([&](int l) { return int32_t(uint32_t(a.v[l]) * uint32_t(b.v[l])); }); }
inline Ints operator&(Ints a, Ints b) { return each<Ints>([&](int l) { return a.v[l] & b.v[l]; }); }
inline Ints operator^(Ints a, Ints b) { return each<Ints>([&](int l) { return a.v[l] ^ b.v[l]; }); }
inline Ints minimum(Ints a, Ints b) { return each<Ints>([&](int l) { return a.v[l] < b.v[l] ? a.v[l] : b.v[l]; }); }
inline Ints shift_right(Ints x, int bits) { return each<Ints>([&](int l) { return int32_t(uint32_t(x.v[l]) >> bits); }); }
inline Ints to_ints(Floats x) { return each<Ints>([&](int l) { return int32_t(x.v[l] + (x.v[l] < 0 ? -0.5f : 0.5f)); }); }
inline Floats to_floats(Ints x) { return each<Floats>([&](int l) { return float(x.v[l]); }); }

inline int32_t first(Ints x) { return x.v[0]; }
inline float first(Floats x) { return x.v[0]; }
inline Ints spread_last(Ints x) { return broadcast(x.v[LANES - 1]); }
inline Floats spread_last(Floats x) { return broadcast(x.v[LANES - 1]); }
inline Floats spread_first(Floats x) { return broadcast(x.v[0]); }

template <int N, class V> inline V up(V x) { return each<V>([&](int l) { return l >= N ? x.v[l - N] : 0; }); }
template <int N, class V> inline V down(V x) { return each<V>([&](int l) { return l + N < LANES ? x.v[l + N] : 0; }); }

inline Floats look_up(const float* from, Ints index) { return each<Floats>([&](int l) { return from[index.v[l]]; }); }

inline Floats select_below(Ints index, Ints bound, Floats yes, Floats no) {
  return each<Floats>([&](int l) { return index.v[l] < bound.v[l] ? yes.v[l] : no.v[l]; });
}

inline void zip(Floats a, Floats b, Floats& low, Floats& high) {
  low = each<Floats>([&](int l) { return l % 2 ? b.v[l / 2] : a.v[l / 2]; });
  high = each<Floats>([&](int l) { return l % 2 ? b.v[(l + LANES) / 2] : a.v[(l + LANES) / 2]; });
}

struct RunEnds {
  int lane[LANES], count = 0;
  explicit RunEnds(Ints x) {
    for (int l = 0; l < LANES; l++)
      if (l == LANES - 1 || x.v[l] != x.v[l + 1]) lane[count++] = l;
  }
  Floats pack(Floats x) const { return each<Floats>([&](int l) { return l < count ? x.v[lane[l]] : 0.0f; }); }
};

#endif

// Lane l becomes the sum of lanes 0..l (running_sum) or l..LANES-1 (remaining_sum).
template <class V> inline V running_sum(V x) {
  x = x + up<1>(x);
  x = x + up<2>(x);
  x = x + up<4>(x);
  if constexpr (LANES == 16) x = x + up<LANES / 2>(x);
  return x;
}
inline Floats remaining_sum(Floats x) {
  x = x + down<1>(x);
  x = x + down<2>(x);
  x = x + down<4>(x);
  if constexpr (LANES == 16) x = x + down<LANES / 2>(x);
  return x;
}

// Rows become columns. Each round is a perfect shuffle of all LANES x LANES numbers, which moves one bit of a number's row
// index into its column index; after as many rounds as indexes have bits, the two have changed places.
inline void transpose(Floats (&rows)[LANES]) {
  for (int round = 1; round < LANES; round *= 2) {
    Floats shuffled[LANES];
    for (int i = 0; i < LANES / 2; i++) zip(rows[i], rows[i + LANES / 2], shuffled[2 * i], shuffled[2 * i + 1]);
    for (int i = 0; i < LANES; i++) rows[i] = shuffled[i];
  }
}

// e^x = 2^n 2^f with n whole and |f| <= 1/2: a polynomial for 2^f, relative error below 1e-7. Exactly 0 below -200, NaN for NaN.
inline Floats exponential(Floats x) {
  const Floats log2_e = broadcast(1.44269504088896341f);
  const Floats y = maximum(broadcast(-200.0f), x);
  const Floats n = round(y * log2_e), f = multiply_subtract(y, log2_e, n);  // fused: y log2_e is not rounded
  Floats power = broadcast(1.3264727197e-03f);
  power = multiply_add(power, f, broadcast(9.6715126396e-03f));
  power = multiply_add(power, f, broadcast(5.5507337433e-02f));
  power = multiply_add(power, f, broadcast(2.4022242085e-01f));
  power = multiply_add(power, f, broadcast(6.9314697760e-01f));
  power = multiply_add(power, f, broadcast(1.0f));
  return times_power_of_two(power, n);
}

// 1 / (1 + e^-x); NaN for NaN.
inline Floats sigmoid(Floats x) {
  const Floats least = maximum(broadcast(-80.0f), x);
  return reciprocal(exponential(broadcast(0.0f) - least) + broadcast(1.0f));
}

// Treats numbers too small for a normal float as 0 for as long as it lives: they cost a hundred cycles each, and vanishing
// attention weights make many. (ARM handles them at full speed.)
class FlushTinyNumbers {
#ifdef COPE_X86
  unsigned before = _mm_getcsr();

 public:
  FlushTinyNumbers() { _mm_setcsr(before | 0x8040); }
  ~FlushTinyNumbers() { _mm_setcsr(before); }
#else
 public:
  FlushTinyNumbers() {}
  ~FlushTinyNumbers() {}
#endif
};

}  // namespace simd

// Sixteen floats at a time, by the vector types of GCC and Clang: the compiler makes of them what the machine has.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

namespace gmvq {

constexpr int LANES = 16;

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint64_t WidePairs __attribute__((vector_size(64)));

#define GMVQ_INLINE static inline __attribute__((always_inline))
#define GMVQ_METHOD inline __attribute__((always_inline))

GMVQ_INLINE Floats load(const float *from) {
  Floats values;
  std::memcpy(&values, from, sizeof values);
  return values;
}

GMVQ_INLINE void store(float *to, Floats values) { std::memcpy(to, &values, sizeof values); }

GMVQ_INLINE Floats all(float value) { return Floats{} + value; }

// Which lanes of a vector there are: all of them, or the first ones at the end of a row. A loop is compiled for each, so
// that what is done for most vectors has no branches.
struct Whole {
  GMVQ_METHOD Floats load(const float *from, float) const { return gmvq::load(from); }
  GMVQ_METHOD void store(float *to, Floats values) const { gmvq::store(to, values); }
};

struct Part {
  const int64_t lanes;

  GMVQ_METHOD Floats load(const float *from, float rest) const {
    Floats values = all(rest);
    std::memcpy(&values, from, lanes * sizeof(float));
    return values;
  }
  GMVQ_METHOD void store(float *to, Floats values) const { std::memcpy(to, &values, lanes * sizeof(float)); }
};

// calls visit(code, lanes) for the codes of a row
template <typename Visit>
GMVQ_INLINE void over_vectors(int64_t first, int64_t last, Visit visit) {
  int64_t code = first;
  for (; code + LANES <= last; code += LANES) visit(code, Whole{});
  if (code < last) visit(code, Part{last - code});
}

GMVQ_INLINE Floats select(Ints mask, Floats yes, Floats no) { return mask ? yes : no; }
GMVQ_INLINE Ints select(Ints mask, Ints yes, Ints no) { return mask ? yes : no; }

// a NaN among the first gives way to the second
GMVQ_INLINE Floats larger(Floats first, Floats second) { return first > second ? first : second; }

GMVQ_INLINE float sum(Floats values) {
  float total = 0;
  for (int lane = 0; lane < LANES; lane++) total += values[lane];
  return total;
}

GMVQ_INLINE Ints counting() { return Ints{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}; }

// e^x to 2 units in the last place for x <= 88, and 0 below e^-60: products of what is fainter are denormal numbers,
// which cost ten times the time, here and in the matrix products that follow. The argument is reduced to
// |r| <= log(2) / 2 in two steps (Cody and Waite), the rest is its Taylor series.
constexpr float FAINTEST = -60.0f;

// the logarithm of a probability: large energies, computed again, are rounded otherwise than the first time
GMVQ_INLINE Floats at_most_0(Floats x) { return select((Ints)(x > 0.0f), all(0.0f), x); }

GMVQ_INLINE Floats exponential(Floats x) {
  Floats within = larger(all(FAINTEST), x);
  Floats shifted = within * 1.44269504f + 12582912.0f;  // 1.5 x 2^23: rounds to an integer in the lowest bits
  Floats power = shifted - 12582912.0f;
  Floats r = within - power * 0.693359375f + power * 2.12194440e-4f;
  Floats series = all(1.0f / 5040);
  series = series * r + 1.0f / 720;
  series = series * r + 1.0f / 120;
  series = series * r + 1.0f / 24;
  series = series * r + 1.0f / 6;
  series = series * r + 0.5f;
  series = series * r + 1.0f;
  series = series * r + 1.0f;
  Ints scale = ((Ints)shifted << 23) + 0x3F800000;
  return select((Ints)(x < FAINTEST), all(0.0f), series * (Floats)scale);
}

// log(x) of normal x > 0: x = 2^n m with m in [sqrt(1/2), sqrt(2)), log m = 2 artanh(s), s = (m - 1) / (m + 1)
GMVQ_INLINE Floats logarithm(Floats x) {
  Ints bits = (Ints)x;
  Ints power = (bits - 0x3F3504F3) >> 23;
  Floats m = (Floats)(bits - (power << 23));
  Floats n = __builtin_convertvector(power, Floats);
  Floats f = m - 1.0f;
  Floats s = f / (f + 2.0f);
  Floats z = s * s;
  Floats series = all(2.0f / 11);
  series = series * z + 2.0f / 9;
  series = series * z + 2.0f / 7;
  series = series * z + 2.0f / 5;
  series = series * z + 2.0f / 3;
  // 2 artanh(s) = f - s (f - z series): f is exact, what is added to it is small
  Floats correction = s * (f - z * series);
  return n * 0.693359375f + (f - correction - n * 2.12194440e-4f);
}

// the high halves of the products with a word
GMVQ_INLINE Words high_product(Words a, uint32_t b) {
#if defined(__AVX512F__)
  __m512i factor = _mm512_set1_epi32((int)b);
  __m512i even = _mm512_mul_epu32((__m512i)a, factor);
  __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64((__m512i)a, 32), factor);
  return (Words)_mm512_mask_blend_epi32(0xAAAA, _mm512_srli_epi64(even, 32), odd);
#else
  WidePairs pairs = (WidePairs)a;
  WidePairs even = (pairs & 0xFFFFFFFFull) * (uint64_t)b, odd = (pairs >> 32) * (uint64_t)b;
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
  return (Words)((even >> 32) | (odd & 0xFFFFFFFF00000000ull));
#else
  return (Words)((odd >> 32) | (even & 0xFFFFFFFF00000000ull));
#endif
#endif
}

struct FourWords {
  Words word[4];
};

// Philox-4x32 with 7 rounds (Salmon et al., 2011): as gmvq.kernels.noise, bit for bit
GMVQ_INLINE FourWords philox(Words first, uint64_t row, uint64_t seed) {
  Words zero = {};
  Words second = zero + (uint32_t)row, third = zero + (uint32_t)(row >> 32), fourth = zero;
  uint32_t low_key = (uint32_t)seed, high_key = (uint32_t)(seed >> 32);
  for (int round = 0; round < 7; round++) {
    Words even_high = high_product(first, 0xD2511F53u), even_low = first * 0xD2511F53u;
    Words odd_high = high_product(third, 0xCD9E8D57u), odd_low = third * 0xCD9E8D57u;
    first = odd_high ^ second ^ low_key;
    second = odd_low;
    third = even_high ^ fourth ^ high_key;
    fourth = even_low;
    low_key += 0x9E3779B9u;
    high_key += 0xBB67AE85u;
  }
  return {{first, second, third, fourth}};
}

// log of an Exponential(1) draw: minus a Gumbel draw
GMVQ_INLINE Floats log_exponential(Words random) {
  Floats uniform = __builtin_convertvector((Ints)(random >> 9), Floats) * 0x1p-23f + 0x1p-24f;
  return logarithm(-logarithm(uniform));
}

}  // namespace gmvq

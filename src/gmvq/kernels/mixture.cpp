// What lies between the matrix products of a mixture step, for a block of rows against all codes, in place of the
// products: each row is read and written a few times while it is in the cache. gmvq.kernels.reference defines it.
//
//   e = max(p (|z|^2 / 2 - z.m) + h, 0),  h = p |m|^2 / 2,  j = b - e,  q = softmax(j),  y = softmax((j + g) / tau)
//
// Lanes beyond the last code get the bias -inf: probability 0, so they add nothing.
#include <cmath>
#include <limits>

#include "vector_math.hpp"

namespace {

using namespace gmvq;

constexpr float INF = std::numeric_limits<float>::infinity();
constexpr int64_t LEAST_WORK = 1 << 14;  // elements below which a second thread costs more than it saves
constexpr float MISSING = std::numeric_limits<float>::quiet_NaN();

}  // namespace

extern "C" {

// A block of a mixture step; gmvq.kernels.mixture_blocks mirrors it. Rows (N,), codes (K,), matrices (N, K).
struct GmvqMixtureBlock {
  int64_t rows, codes, first_row, seed, features;
  float inverse_temperature, floor;
  int32_t draws, threads;
  const float *precisions, *half_norms, *biases, *prices;  // (K,): p, h, b
  const float *half_squares, *weights;                     // (N,): |z|^2 / 2
  const float *latents, *columns;  // (N, L), (L, K): of few features, to make the products here; otherwise null
  float *products;  // (N, K): z.m on entry, unless made here; exp(j - max) of the forward, D = p de of the backward on return
  float *relaxed;   // (N, K): nothing, or gV.v on entry; exp((j + g) / tau - max) of the forward, y of the backward
  // results of the forward, which the backward reads
  int64_t *most_likely, *priced, *drawn;
  float *energy, *log_energy, *entropy, *log_density, *relaxed_energy;
  float *peak, *normalizer, *relaxed_peak, *relaxed_normalizer;  // logarithms of sums, relative to the peaks
  float *relaxed_total;  // (N,): sum of `relaxed` over codes
  float *aggregated;     // (threads, K): sums of weight q, added to
  // what comes from above to the backward
  const float *energy_gradient, *log_energy_gradient, *entropy_gradient, *log_density_gradient;
  const float *relaxed_energy_gradient, *relaxed_expectation;  // (N,): the latter is E_y[gV.v]
  const float *aggregated_gradient;                            // (K,)
  float *row_sums;                                             // (N,): sums of D over codes
  float *code_sums, *bias_gradient, *precision_gradient;       // (threads, K), added to; the last two may be null
};
}

namespace {

struct Best {
  Floats value;
  Ints index;

  GMVQ_INLINE Best none() { return {all(-INF), counting()}; }

  inline void take(Floats candidates, Ints at) {
    Ints better = (Ints)(candidates > value);
    value = select(better, candidates, value);
    index = select(better, at, index);
  }

  inline float largest() const {
    float best = value[0];
    for (int lane = 1; lane < LANES; lane++) best = value[lane] > best ? value[lane] : best;
    return best;
  }

  inline int64_t first() const {
    const float best = largest();
    int32_t found = std::numeric_limits<int32_t>::max();
    for (int lane = 0; lane < LANES; lane++)
      if (value[lane] == best && index[lane] < found) found = index[lane];
    return found;
  }
};

// energies and log joint of up to 16 codes
struct Joint {
  Floats energy, unclamped, log_joint;
};

// Products of a row with all codes. Of few features they cost less here, in the cache, than a matrix product that
// writes them to memory.
inline void multiply(const GmvqMixtureBlock &block, int64_t row, float *products) {
  const float *latent = block.latents + row * block.features;
  over_vectors(0, block.codes, [&](int64_t code, auto lanes) __attribute__((always_inline)) {
    Floats total = {};
    for (int64_t feature = 0; feature < block.features; feature++)
      total += latent[feature] * lanes.load(block.columns + feature * block.codes + code, 0.0f);
    lanes.store(products + code, total);
  });
}

template <typename Lanes>
GMVQ_INLINE Joint joint_at(const GmvqMixtureBlock &block, const float *products, float half_square, int64_t code,
                           Lanes lanes) {
  Floats precision = lanes.load(block.precisions + code, 0.0f);
  Floats unclamped =
      precision * (half_square - lanes.load(products + code, 0.0f)) + lanes.load(block.half_norms + code, 0.0f);
  // a NaN goes through: the first of the two gives way to the second
  Floats energy = larger(all(0.0f), unclamped);
  return {energy, unclamped, lanes.load(block.biases + code, -INF) - energy};
}

GMVQ_INLINE Floats log_energy_of(const GmvqMixtureBlock &block, const Joint &at) {
  return logarithm(larger(at.energy, all(block.floor)));
}

template <typename Lanes>
GMVQ_INLINE void add(float *to, Floats values, Lanes lanes) {
  lanes.store(to, lanes.load(to, 0.0f) + values);
}

// calls visit(code, lanes, random) for the codes of a row; the words are noise where there are draws
template <bool draws, typename Visit>
GMVQ_INLINE void over_codes(const GmvqMixtureBlock &block, int64_t row, Visit visit) {
  for (int64_t group = 0; group < block.codes; group += 4 * LANES) {
    FourWords random = {};
    if (draws)
      random = philox((Words)counting() + (uint32_t)(group / 4), (uint64_t)(block.first_row + row),
                      (uint64_t)block.seed);
    const int64_t last = group + 4 * LANES < block.codes ? group + 4 * LANES : block.codes;
    const Words *words = random.word;
    over_vectors(group, last, [&](int64_t code, auto lanes)
                                  __attribute__((always_inline)) { visit(code, lanes, *words++); });
  }
}

template <bool draws>
void forward_row(const GmvqMixtureBlock &block, int64_t row, float *aggregated) {
  const int64_t codes = block.codes;
  float *products = block.products + row * codes;
  float *relaxed = draws ? block.relaxed + row * codes : nullptr;
  const float half_square = block.half_squares[row];

  if (!std::isfinite(half_square)) {
    block.most_likely[row] = block.priced[row] = 0;
    block.peak[row] = block.normalizer[row] = 0;
    block.energy[row] = block.log_energy[row] = block.entropy[row] = block.log_density[row] = MISSING;
    std::memset(products, 0, codes * sizeof(float));
    if (draws) {
      block.drawn[row] = 0;
      block.relaxed_peak[row] = block.relaxed_normalizer[row] = 0;
      block.relaxed_energy[row] = block.relaxed_total[row] = MISSING;
      std::memset(relaxed, 0, codes * sizeof(float));
    }
    return;
  }

  if (block.latents) multiply(block, row, products);
  Best best = Best::none(), best_priced = Best::none(), best_drawn = Best::none();
  over_codes<draws>(block, row, [&](int64_t code, auto lanes, Words random) __attribute__((always_inline)) {
    Joint at = joint_at(block, products, half_square, code, lanes);
    Ints index = counting() + (int32_t)code;
    best.take(at.log_joint, index);
    best_priced.take(at.log_joint - lanes.load(block.prices + code, 0.0f), index);
    if (draws) {
      Floats perturbed = (at.log_joint - log_exponential(random)) * block.inverse_temperature;
      best_drawn.take(perturbed, index);
      lanes.store(relaxed + code, perturbed);
    }
  });

  const float peak = best.largest(), relaxed_peak = draws ? best_drawn.largest() : 0.0f;
  Floats total = {}, energies = {}, logarithms = {}, entropies = {}, relaxed_total = {}, relaxed_energies = {};
  over_vectors(0, codes, [&](int64_t code, auto lanes) __attribute__((always_inline)) {
    Joint at = joint_at(block, products, half_square, code, lanes);
    Floats exponent = at.log_joint - peak, posterior = exponential(exponent);
    total += posterior;
    energies += posterior * at.energy;
    // 0 for lanes and codes of probability 0: their exponent may be -inf
    entropies += select((Ints)(posterior > 0.0f), posterior * exponent, all(0.0f));
    if (block.floor > 0) logarithms += posterior * log_energy_of(block, at);
    lanes.store(products + code, posterior);
    if (draws) {
      Floats y = exponential(lanes.load(relaxed + code, -INF) - relaxed_peak);
      relaxed_total += y;
      relaxed_energies += y * at.energy;
      lanes.store(relaxed + code, y);
    }
  });

  const float whole = sum(total), share = block.weights[row] / whole;
  over_vectors(0, codes, [&](int64_t code, auto lanes) __attribute__((always_inline)) {
    add(aggregated + code, share * lanes.load(products + code, 0.0f), lanes);
  });

  block.most_likely[row] = best.first();
  block.priced[row] = best_priced.first();
  block.energy[row] = sum(energies) / whole;
  block.log_energy[row] = sum(logarithms) / whole;
  block.peak[row] = peak;
  block.normalizer[row] = std::log(whole);
  block.entropy[row] = block.normalizer[row] - sum(entropies) / whole;
  block.log_density[row] = peak + block.normalizer[row];
  if (draws) {
    block.drawn[row] = best_drawn.first();
    block.relaxed_total[row] = sum(relaxed_total);
    block.relaxed_energy[row] = sum(relaxed_energies) / sum(relaxed_total);
    block.relaxed_peak[row] = relaxed_peak;
    block.relaxed_normalizer[row] = std::log(sum(relaxed_total));
  }
}

// what comes from above to q of up to 16 codes, each part relative to its own expectation: a sum of large numbers would
// leave the small ones no digits
struct FromAbove {
  const GmvqMixtureBlock &block;
  const float energy_gradient, log_energy_gradient, entropy_gradient, energy, log_energy, entropy, weight;

  inline FromAbove(const GmvqMixtureBlock &block, int64_t row)
      : block(block),
        energy_gradient(block.energy_gradient[row]),
        log_energy_gradient(block.floor > 0 ? block.log_energy_gradient[row] : 0.0f),
        entropy_gradient(block.entropy_gradient[row]),
        energy(block.energy[row]),
        log_energy(block.log_energy[row]),
        entropy(block.entropy[row]),
        weight(block.weights[row]) {}

  template <typename Lanes>
  GMVQ_METHOD Floats operator()(const Joint &at, Floats log_posterior, Floats posterior, int64_t code,
                                Lanes lanes) const {
    // 0 for lanes and codes of probability 0, whose logarithm may be -inf
    Floats surprise = select((Ints)(posterior > 0.0f), log_posterior, all(0.0f));
    Floats total = energy_gradient * (at.energy - energy) - entropy_gradient * (surprise + entropy) +
                   weight * lanes.load(block.aggregated_gradient + code, 0.0f);
    if (block.floor > 0) total += log_energy_gradient * (log_energy_of(block, at) - log_energy);
    return total;
  }
};

template <bool draws>
void backward_row(const GmvqMixtureBlock &block, int64_t row, int64_t sums_at) {
  const int64_t codes = block.codes;
  float *products = block.products + row * codes;
  float *relaxed = draws ? block.relaxed + row * codes : nullptr;
  const float half_square = block.half_squares[row];

  if (!std::isfinite(half_square)) {
    block.row_sums[row] = MISSING;
    std::memset(products, 0, codes * sizeof(float));
    if (draws) std::memset(relaxed, 0, codes * sizeof(float));
    return;
  }

  if (block.latents) multiply(block, row, products);
  const FromAbove from_above(block, row);
  const float peak = block.peak[row], normalizer = block.normalizer[row];
  Floats total = {}, expectations = {};
  over_vectors(0, codes, [&](int64_t code, auto lanes) __attribute__((always_inline)) {
    Joint at = joint_at(block, products, half_square, code, lanes);
    Floats log_posterior = at_most_0(at.log_joint - peak - normalizer), posterior = exponential(log_posterior);
    total += posterior;
    expectations += posterior * from_above(at, log_posterior, posterior, code, lanes);
  });

  const float expectation = sum(expectations) / sum(total) - block.log_density_gradient[row],
              from_relaxed_energy = draws ? block.relaxed_energy_gradient[row] : 0.0f,
              relaxed_expectation = draws ? block.relaxed_expectation[row] : 0.0f,
              relaxed_energy = draws ? block.relaxed_energy[row] : 0.0f,
              relaxed_peak = draws ? block.relaxed_peak[row] : 0.0f,
              relaxed_normalizer = draws ? block.relaxed_normalizer[row] : 0.0f;
  Floats row_sum = {};
  over_codes<draws>(block, row, [&](int64_t code, auto lanes, Words random) __attribute__((always_inline)) {
    Joint at = joint_at(block, products, half_square, code, lanes);
    Floats log_posterior = at_most_0(at.log_joint - peak - normalizer), posterior = exponential(log_posterior);
    Floats joint_gradient = posterior * (from_above(at, log_posterior, posterior, code, lanes) - expectation);
    Floats energy_gradient = posterior * from_above.energy_gradient;
    if (block.floor > 0)
      energy_gradient += select((Ints)(at.energy > block.floor),
                                posterior * from_above.log_energy_gradient / at.energy, all(0.0f));
    if (draws) {
      Floats perturbed = (at.log_joint - log_exponential(random)) * block.inverse_temperature;
      Floats y = exponential(at_most_0(perturbed - relaxed_peak - relaxed_normalizer));
      Floats of_y = lanes.load(relaxed + code, 0.0f) - relaxed_expectation +
                    from_relaxed_energy * (at.energy - relaxed_energy);
      joint_gradient += y * of_y * block.inverse_temperature;
      energy_gradient += y * from_relaxed_energy;
      lanes.store(relaxed + code, y);
    }
    energy_gradient = select((Ints)(at.unclamped > 0.0f), energy_gradient - joint_gradient, all(0.0f));
    Floats scaled = energy_gradient * lanes.load(block.precisions + code, 0.0f);
    row_sum += scaled;
    lanes.store(products + code, scaled);
    add(block.code_sums + sums_at + code, scaled, lanes);
    if (block.bias_gradient) {
      add(block.bias_gradient + sums_at + code, joint_gradient, lanes);
      add(block.precision_gradient + sums_at + code, energy_gradient * at.unclamped, lanes);
    }
  });
  block.row_sums[row] = sum(row_sum);
}

// each thread has rows and sums over rows of its own
template <typename Visit>
void over_threads(const GmvqMixtureBlock &block, Visit visit) {
  const int64_t threads = block.threads;
#pragma omp parallel for num_threads(block.threads) schedule(static) if (block.rows * block.codes > LEAST_WORK)
  for (int64_t thread = 0; thread < threads; thread++) {
    const int64_t last = block.rows * (thread + 1) / threads;
    for (int64_t row = block.rows * thread / threads; row < last; row++) visit(row, thread * block.codes);
  }
}

}  // namespace

extern "C" void gmvq_mixture_forward(const GmvqMixtureBlock *block) {
  if (block->draws)
    over_threads(*block, [=](int64_t row, int64_t at) { forward_row<true>(*block, row, block->aggregated + at); });
  else
    over_threads(*block, [=](int64_t row, int64_t at) { forward_row<false>(*block, row, block->aggregated + at); });
}

extern "C" void gmvq_mixture_backward(const GmvqMixtureBlock *block) {
  if (block->draws)
    over_threads(*block, [=](int64_t row, int64_t at) { backward_row<true>(*block, row, at); });
  else
    over_threads(*block, [=](int64_t row, int64_t at) { backward_row<false>(*block, row, at); });
}

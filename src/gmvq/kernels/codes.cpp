// Weight and weighted sum of the rows of each code: rows are sorted by their code, by counting, and each code adds its
// own in their order. The sums are the same bits with any number of threads.

#include <algorithm>

#include "simd.hpp"

namespace {

constexpr size_t CODES_AT_ONCE = 16;
constexpr size_t PARALLEL_WORK = 1 << 15;

// sum += weight * row
inline void add_row(float* sum, const float* row, float weight, size_t features) {
    for (size_t l = 0; l < features; ++l) sum[l] += weight * row[l];
}

}  // namespace

// Codes below 0 count as 0; 0 if all went well, 1 where memory does not suffice, 2 where a code is not below K.
extern "C" int gmvq_code_sums(const float* latents, const int64_t* codes, const float* weights, float* counts,
                              float* sums, size_t rows, size_t codebook_size, size_t features, int threads) {
    Scratch<size_t> ends(codebook_size + 1), order(rows);
    if (!ends || !order) return 1;
    std::fill_n(ends.data(), codebook_size + 1, size_t{0});
    const auto code_of = [&](size_t n) { return codes[n] < 0 ? size_t{0} : static_cast<size_t>(codes[n]); };
    for (size_t n = 0; n < rows; ++n) {
        const size_t c = code_of(n);
        if (c >= codebook_size) return 2;
        ++ends[c + 1];
    }
    // where each code's rows begin; filling them in moves it to where they end
    for (size_t c = 0; c < codebook_size; ++c) ends[c + 1] += ends[c];
    for (size_t n = 0; n < rows; ++n) order[ends[code_of(n)]++] = n;
#pragma omp parallel for num_threads(threads) schedule(dynamic, CODES_AT_ONCE) if (rows * features > PARALLEL_WORK)
    for (size_t c = 0; c < codebook_size; ++c) {
        float count = 0;
        float* sum = sums + c * features;
        std::fill_n(sum, features, 0.0f);
        for (size_t i = c ? ends[c - 1] : 0; i < ends[c]; ++i) {
            count += weights[order[i]];
            add_row(sum, latents + order[i] * features, weights[order[i]], features);
        }
        counts[c] = count;
    }
    return 0;
}

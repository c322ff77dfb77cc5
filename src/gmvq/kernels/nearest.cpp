// Nearest code: a matrix product whose entries are compared where they arise and never written.
//
//   argmin_c |z - m_c|^2 = argmax_c (z - o) . (m_c - o) - |m_c - o|^2 / 2     for any origin o amid the codes
//
// A tile of ROWS rows by VECTORS vectors of codes is held in registers. Codes are packed into panels, as wide as a tile,
// whose slices of at most DEPTH features stay in the first-level cache while the rows of a block pass by; the best score
// of each row and lane waits in a small buffer. An entry is one chain of fused multiply-adds in the order of features,
// whatever tile, block or thread it falls to: codes do not depend on the batch or on the number of threads.

#include <algorithm>
#include <cmath>
#include <limits>

#include "simd.hpp"

namespace {

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int VECTORS = 4;  // 24 sums, 4 codes and a row in 32 registers
#else
constexpr int VECTORS = 2;  // 12 sums, 2 codes and a row in 16
#endif
constexpr int ROWS = 6;
constexpr int WIDTH = VECTORS * LANES;
constexpr size_t DEPTH = 128;
constexpr size_t BLOCK_ROWS = 32 * ROWS;
constexpr size_t SAMPLE = 63;  // as gmvq.kernels.origin.SAMPLE
constexpr size_t PARALLEL_WORK = 1 << 15;  // below, a second thread costs more than it saves

struct Problem {
    const float* latents;   // (N, L)
    const float* codebook;  // (K, L)
    const float* weights;   // (L) or null
    const float* offsets;   // (K) or null
    int64_t* codes;         // (N)
    size_t rows, codebook_size, features;
    bool cosine;
    int threads;

    size_t panels() const { return (codebook_size + WIDTH - 1) / WIDTH; }
};

struct Best {
    Floats score[ROWS];
    Ints vector[ROWS];  // which of all vectors of codes, counted through the panels
};

// The origin of gmvq.kernels.origin: of each feature the median over a sample of the codes, of two the lower.
void find_origin(const Problem& p, float* origin) {
    std::fill_n(origin, p.features, 0.0f);
    if (p.cosine) return;
    const size_t stride = (p.codebook_size + SAMPLE - 1) / SAMPLE;
    float sample[SAMPLE];
    for (size_t l = 0; l < p.features; ++l) {
        float* end = sample;
        for (size_t c = 0; c < p.codebook_size; c += stride) {
            const float value = p.codebook[c * p.features + l];
            if (!std::isnan(value)) *end++ = value;
        }
        if (end == sample) continue;
        float* middle = sample + (end - sample - 1) / 2;
        std::nth_element(sample, middle, end);
        if (std::isfinite(*middle)) origin[l] = *middle;
    }
}

// One panel: codes as columns, (L, WIDTH), and where their scores start, (WIDTH), minus infinity beyond the last code.
void pack_panel(const Problem& p, const float* origin, size_t panel, float* packed, float* starts) {
    const size_t features = p.features;
    for (int column = 0; column < WIDTH; ++column) {
        const size_t c = panel * WIDTH + column;
        if (c >= p.codebook_size) {
            for (size_t l = 0; l < features; ++l) packed[l * WIDTH + column] = 0;
            starts[column] = -std::numeric_limits<float>::infinity();
            continue;
        }
        const float* code = p.codebook + c * features;
        double square = 0;
        for (size_t l = 0; l < features; ++l) {
            const float centred = code[l] - origin[l];
            const float weighted = p.weights ? p.weights[l] * centred : centred;
            square += static_cast<double>(weighted) * (p.cosine ? code[l] : centred);
            packed[l * WIDTH + column] = weighted;
        }
        if (!std::isfinite(static_cast<float>(p.cosine ? std::sqrt(square) : square))) {  // out of reach
            for (size_t l = 0; l < features; ++l) packed[l * WIDTH + column] = 0;
            starts[column] = -std::numeric_limits<float>::infinity();
            continue;
        }
        if (p.cosine) {  // the length of a row changes nothing
            const double length = std::max(std::sqrt(square), std::numeric_limits<double>::min());
            for (size_t l = 0; l < features; ++l)
                packed[l * WIDTH + column] = static_cast<float>(packed[l * WIDTH + column] / length);
        }
        starts[column] = p.cosine ? 0 : static_cast<float>((p.offsets ? p.offsets[c] : 0.0) - square / 2);
    }
}

// Rows as tiles of columns, (tiles, L, ROWS), around the origin; rows beyond the last are zeros.
void pack_rows(const Problem& p, const float* origin, size_t first, size_t tiles, float* packed) {
    const size_t features = p.features;
    for (size_t tile = 0; tile < tiles; ++tile, packed += features * ROWS)
        for (int r = 0; r < ROWS; ++r) {
            const size_t n = first + tile * ROWS + r;
            for (size_t l = 0; l < features; ++l)
                packed[l * ROWS + r] = n < p.rows ? p.latents[n * features + l] - origin[l] : 0;
        }
}

// scores += rows . codes over some features
inline void multiply(const float* rows, const float* codes, size_t depth, Floats (&scores)[ROWS][VECTORS]) {
    for (size_t l = 0; l < depth; ++l, rows += ROWS, codes += WIDTH) {
        Floats code[VECTORS];
        for (int v = 0; v < VECTORS; ++v) code[v] = load(codes + v * LANES);
        for (int r = 0; r < ROWS; ++r) {
            const Floats row = all(rows[r]);
            for (int v = 0; v < VECTORS; ++v) scores[r][v] += row * code[v];
        }
    }
}

// The rows of a block against one panel.
void score_panel(const float* rows, size_t tiles, size_t features, const float* codes, const float* starts,
                 size_t panel, Floats* partial, Best* best) {
    for (size_t begin = 0; begin < features || begin == 0; begin += DEPTH) {
        const size_t depth = std::min(DEPTH, features - begin);
        const bool first = begin == 0, last = begin + depth == features;
        for (size_t tile = 0; tile < tiles; ++tile) {
            Floats scores[ROWS][VECTORS];
            Floats* kept = partial + tile * ROWS * VECTORS;
            for (int r = 0; r < ROWS; ++r)
                for (int v = 0; v < VECTORS; ++v)
                    scores[r][v] = first ? load(starts + v * LANES) : kept[r * VECTORS + v];
            multiply(rows + (tile * features + begin) * ROWS, codes + begin * WIDTH, depth, scores);
            if (!last) {
                for (int r = 0; r < ROWS; ++r)
                    for (int v = 0; v < VECTORS; ++v) kept[r * VECTORS + v] = scores[r][v];
                continue;
            }
            for (int r = 0; r < ROWS; ++r) {
                Floats score = best[tile].score[r];
                Ints vector = best[tile].vector[r];
                for (int v = 0; v < VECTORS; ++v) {
                    const Ints better = scores[r][v] > score;  // not of equals, and never of NaN
                    score = better ? scores[r][v] : score;
                    vector = better ? all(static_cast<int32_t>(panel * VECTORS + v)) : vector;
                }
                best[tile].score[r] = score;
                best[tile].vector[r] = vector;
            }
        }
    }
}

// Of infinite or NaN scores none is best: such a row has code 0 whatever its features.
bool is_finite(const float* row, size_t features) {
    constexpr uint32_t exponent = 0x7f800000;  // all of its bits are set in infinities and NaN alone
    uint32_t found = 0;
    for (size_t l = 0; l < features; ++l) {
        uint32_t bits;
        std::memcpy(&bits, row + l, sizeof bits);
        found |= (bits & exponent) == exponent;
    }
    return found == 0;
}

// The best of a row's lanes, of equals the lowest.
void reduce(const Best& best, int r, float& score, int64_t& code) {
    for (int lane = 0; lane < LANES; ++lane) {
        const float s = best.score[r][lane];
        const int64_t c = static_cast<int64_t>(best.vector[r][lane]) * LANES + lane;
        if (s > score || (s == score && c < code)) {
            score = s;
            code = c;
        }
    }
}

bool find(const Problem& p) {
    const size_t panels = p.panels(), features = p.features;
    Scratch<float> origin(features), packed(panels * features * WIDTH), starts(panels * WIDTH);
    if (!origin || !packed || !starts) return false;
    find_origin(p, origin.data());
#pragma omp parallel for num_threads(p.threads) if (p.codebook_size * features > PARALLEL_WORK)
    for (size_t panel = 0; panel < panels; ++panel)
        pack_panel(p, origin.data(), panel, &packed[panel * features * WIDTH], &starts[panel * WIDTH]);

    const bool parallel = p.threads > 1 && p.rows * features * p.codebook_size > PARALLEL_WORK;
    const size_t threads = parallel ? p.threads : 1;
    // several blocks for each thread, so that a thread that is held up holds up little
    const size_t share = (p.rows + 4 * threads - 1) / (4 * threads);
    const size_t block = std::clamp((share + ROWS - 1) / ROWS * ROWS, size_t{ROWS}, BLOCK_ROWS);
    const size_t blocks = (p.rows + block - 1) / block;
    // few rows: threads share the codes as well
    const size_t parts = std::min(panels, blocks < threads ? (threads + blocks - 1) / blocks : 1);
    Scratch<float> scores(parts > 1 ? parts * p.rows : 0);
    Scratch<int64_t> codes(parts > 1 ? parts * p.rows : 0);
    bool failed = !scores || !codes;
#pragma omp parallel num_threads(threads) if (parallel)
    {
        const size_t tiles = block / ROWS;
        Scratch<float> rows(block * features);
        Scratch<Floats> partial(features > DEPTH ? block * VECTORS : 1);
        Scratch<Best> best(tiles);
        const bool ready = rows && partial && best && !failed;
#pragma omp for schedule(dynamic, 1)
        for (size_t task = 0; task < blocks * parts; ++task) {
            if (!ready) continue;
            const size_t first = task / parts * block, part = task % parts;
            const size_t count = std::min(block, p.rows - first), used = (count + ROWS - 1) / ROWS;
            pack_rows(p, origin.data(), first, used, rows.data());
            for (size_t tile = 0; tile < used; ++tile)
                for (int r = 0; r < ROWS; ++r) {
                    best[tile].score[r] = all(-std::numeric_limits<float>::infinity());
                    best[tile].vector[r] = all(int32_t{0});
                }
            for (size_t panel = panels * part / parts; panel < panels * (part + 1) / parts; ++panel)
                score_panel(rows.data(), used, features, &packed[panel * features * WIDTH], &starts[panel * WIDTH],
                            panel, partial.data(), best.data());
            for (size_t n = first; n < first + count; ++n) {
                float score = -std::numeric_limits<float>::infinity();
                int64_t code = 0;
                if (is_finite(p.latents + n * features, features))
                    reduce(best[(n - first) / ROWS], (n - first) % ROWS, score, code);
                if (parts > 1) scores[part * p.rows + n] = score;
                (parts > 1 ? &codes[part * p.rows] : p.codes)[n] = code;
            }
        }
        if (!ready) {
#pragma omp atomic write
            failed = true;
        }
    }
    for (size_t n = 0; n < p.rows && parts > 1 && !failed; ++n) {
        size_t winner = n;  // of equals the first part's, whose codes are lower
        for (size_t part = 1; part < parts; ++part)
            if (scores[part * p.rows + n] > scores[winner]) winner = part * p.rows + n;
        p.codes[n] = codes[winner];
    }
    return !failed;
}

}  // namespace

// Index of the best code of each row; false where memory does not suffice. weights and offsets may be null.
extern "C" bool gmvq_nearest_code(const float* latents, const float* codebook, const float* weights,
                                  const float* offsets, int64_t* codes, size_t rows, size_t codebook_size,
                                  size_t features, bool cosine, int threads) {
    return rows == 0 ||
           find(Problem{latents, codebook, weights, offsets, codes, rows, codebook_size, features, cosine, threads});
}

// Writes, reads and learns codes as gmvq/entropy/definition.py defines it, byte by byte.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "simd.hpp"

namespace {

constexpr int MOST_INPUTS = 16, GROUP = 16;
constexpr uint32_t TERM = 0x9E3779B1u, GROUPS = 0xC2B2AE35u, NODE = 0x85EBCA6Bu;
constexpr int64_t NODES = 1 << 12, CERTAIN = 2048, BIAS = 256;
constexpr uint16_t FRESH = 1024 << 5;
constexpr int TOP = 48;
constexpr uint64_t LEAST = uint64_t{1} << 40;

}  // namespace

// The tables of gmvq.entropy.definition.Tables as arrays; see gmvq/entropy/compiled.py.
struct GmvqEntropy {
    const uint16_t* after;     // (2, 65536)
    const uint16_t* squash;    // (4096,)
    const int32_t* widths;     // (J,)
    const int32_t* sizes;      // (J,): number of symbols
    const int32_t* paths;      // all components' paths in rising order, one after another
    const uint8_t* branches;   // all components' branches, 2^width of each
    const int32_t* offsets;    // (M, 4)
    const int32_t* terms;      // (terms, 4): component, context, neighbour, bits; in order
    const int32_t* contexts;   // (J,): number of contexts
    const int32_t* rows;       // (2^20,): 1 plus the row of the group that a place begins with, 0 for none
    const uint16_t* start;     // (G, 16): these groups
    int32_t components, neighbours, number_of_terms, rate;
    int64_t shape[3];
    int32_t packed, masked;
};

namespace {

struct Writer {
    uint64_t low = 0, range = uint64_t{1} << TOP;
    uint8_t* out;
    size_t room, size = 0;
    double bits = 0;

    Writer(uint8_t* data, size_t length) : out(data), room(length) {}

    int decide(int bit, uint32_t chance) {
        const uint64_t bound = (range >> 16) * chance;
        if (bit) {
            range = bound;
        } else {
            low += bound;
            range -= bound;
        }
        while (range < LEAST) shift();
        return bit;
    }
    uint32_t choose(uint32_t value, uint32_t number) {
        range /= number;
        low += range * value;
        while (range < LEAST) shift();
        return value;
    }
    void carry() {
        if (!(low >> TOP)) return;
        low -= uint64_t{1} << TOP;
        size_t place = size;
        while (out[--place] == 255) out[place] = 0;
        ++out[place];
    }
    void put(uint8_t value) {
        if (size < room) out[size] = value;  // the caller sees that size is larger than the room
        ++size;
    }
    void shift() {
        if (size <= room) carry();
        put(static_cast<uint8_t>(low >> (TOP - 8)));
        low = (low << 8) & ((uint64_t{1} << TOP) - 1);
        range <<= 8;
    }
    void finish() {
        const uint64_t last = low + range - 1;
        int free = TOP;
        while ((last >> free << free) < low) free -= 8;
        low = last >> free << free;
        if (size <= room) carry();
        for (int kept = TOP; kept > 0 && (low & ((uint64_t{1} << kept) - 1)); kept -= 8)
            put(static_cast<uint8_t>(low >> (kept - 8)));
    }
    bool failed() const { return size > room; }
};

struct Reader {
    uint64_t value = 0, range = uint64_t{1} << TOP;
    const uint8_t* data;
    size_t length, place = 6;

    Reader(const uint8_t* bytes, size_t size) : data(bytes), length(size) {
        for (size_t n = 0; n < 6; ++n) value = value << 8 | (n < length ? data[n] : 0);
    }
    int decide(int, uint32_t chance) {
        const uint64_t bound = (range >> 16) * chance;
        const int bit = value < bound;
        if (bit) {
            range = bound;
        } else {
            value -= bound;
            range -= bound;
        }
        while (range < LEAST) shift();
        return bit;
    }
    uint32_t choose(uint32_t, uint32_t number) {
        range /= number;
        const uint64_t chosen = std::min<uint64_t>(value / range, number - 1);
        value -= range * chosen;
        while (range < LEAST) shift();
        return static_cast<uint32_t>(chosen);
    }
    void shift() {
        value = value << 8 | (place < length ? data[place] : 0);
        range <<= 8;
        ++place;
    }
    bool failed() const { return place > length + 6; }
};

// Learns, and sums up what writing would take.
struct Counter {
    double bits = 0;

    int decide(int bit, uint32_t chance) {
        bits -= std::log2((bit ? chance : 65536 - chance) / 65536.0);
        return bit;
    }
    uint32_t choose(uint32_t value, uint32_t number) {
        bits += std::log2(static_cast<double>(number));
        return value;
    }
    bool failed() const { return false; }
};

struct Term {
    int64_t step;
    int dropped;
};

struct Context {
    uint32_t key;
    std::vector<Term> terms;
};

struct Component {
    int width;
    uint32_t size;
    const int32_t* paths;
    const uint8_t* branches;
    std::vector<Context> contexts;
    int64_t* weights;
    uint16_t kept[8];
};

// Places of symbols in one list, with room at the borders for neighbours that are not there.
struct Padded {
    int64_t above = 1, high = 1, wide = 1, row, plane, size, components;
    const int64_t* shape;

    Padded(const GmvqEntropy& job) : components(job.components), shape(job.shape) {
        for (int m = 0; m < job.neighbours; ++m) {
            above = std::max<int64_t>(above, std::abs(job.offsets[4 * m]));
            high = std::max<int64_t>(high, std::abs(job.offsets[4 * m + 1]));
            wide = std::max<int64_t>(wide, std::abs(job.offsets[4 * m + 2]));
        }
        row = (shape[2] + 2 * wide) * components;
        plane = (shape[1] + 2 * high) * row;
        size = (shape[0] + above) * plane;
    }
    int64_t step(int64_t z, int64_t y, int64_t x, int64_t j) const { return z * plane + y * row + x * components + j; }
};

std::vector<Component> components_of(const GmvqEntropy& job, const Padded& padded, int64_t* weights, int inputs) {
    std::vector<Component> all(job.components);
    const int32_t* paths = job.paths;
    const uint8_t* branches = job.branches;
    for (int j = 0; j < job.components; ++j) {
        Component& one = all[j];
        one.width = job.widths[j];
        one.size = static_cast<uint32_t>(job.sizes[j]);
        one.paths = paths;
        one.branches = branches;
        one.weights = weights + j * NODES * inputs;
        std::fill_n(one.kept, 8, FRESH);
        paths += job.sizes[j];
        branches += int64_t{1} << one.width;
        one.contexts.resize(job.contexts[j]);
        for (int i = 0; i < job.contexts[j]; ++i) one.contexts[i].key = (i + 1u) * NODE + static_cast<uint32_t>(j) * GROUPS;
    }
    for (int n = 0; n < job.number_of_terms; ++n) {
        const int32_t *term = job.terms + 4 * n, *move = job.offsets + 4 * term[2];
        const int other = term[0] + move[3];
        if (other < 0 || other >= job.components) continue;
        const int dropped = std::max(0, job.widths[other] - term[3]);
        all[term[0]].contexts[term[1]].terms.push_back({padded.step(move[0], move[1], move[2], move[3]), dropped});
    }
    return all;
}

template <class Coder>
inline uint32_t coding(Coder& coder, const Component& one, const GmvqEntropy& job, const int32_t* known, uint32_t path,
                       uint16_t* groups, int inputs) {
    const int number = static_cast<int>(one.contexts.size());
    uint32_t keys[MOST_INPUTS];
    for (int i = 0; i < number; ++i) {
        uint32_t key = one.contexts[i].key;
        for (const Term& term : one.contexts[i].terms) {
            key = (key ^ static_cast<uint32_t>(known[term.step] >> term.dropped)) * TERM;
            key ^= key >> 15;
        }
        keys[i] = key;
    }
    uint16_t* used[MOST_INPUTS];
    uint32_t node = 1, slot = 1;
    for (int depth = 0; depth < one.width; ++depth) {
        if (depth % 4 == 0) {
            slot = 1;
            uint16_t marks[MOST_INPUTS];
            for (int i = 0; i < number; ++i) {
                const uint32_t key = (keys[i] ^ node * NODE) * GROUPS;
                used[i] = groups + static_cast<size_t>(key >> 12) * GROUP;
                marks[i] = static_cast<uint16_t>((key & 4095) | 4096);
                __builtin_prefetch(used[i], 1);
            }
            for (int i = 0; i < number; ++i) {
                if (!used[i][0]) {  // no mark is 0
                    const int32_t row = job.rows[(used[i] - groups) / GROUP];
                    if (row) std::memcpy(used[i], job.start + int64_t{GROUP} * (row - 1), GROUP * sizeof(uint16_t));
                }
                if (used[i][0] == marks[i]) continue;
                used[i][0] = marks[i];
                std::fill_n(used[i] + 1, GROUP - 1, FRESH);
            }
        }
        int bit = one.branches[node];
        if (bit == 2) {
            uint16_t states[MOST_INPUTS];
            int64_t values[MOST_INPUTS], logit = 0;
            int64_t* weights = one.weights + (node & (NODES - 1)) * inputs;
            for (int i = 0; i < number; ++i) {
                states[i] = used[i][slot];
                values[i] = states[i] & 31 ? 2 * (states[i] >> 5) - 2047 : 0;
                logit += weights[i] * values[i];
            }
            values[number] = BIAS;
            logit = std::clamp<int64_t>((logit + weights[number] * BIAS) >> 16, -2047, 2047);
            const uint32_t chance = job.squash[2048 + logit];
            bit = coder.decide(path >> (one.width - 1 - depth) & 1, chance);
            const int64_t error = (bit ? 65536 : 0) - static_cast<int64_t>(chance);
            if (error <= -CERTAIN || error >= CERTAIN)
                for (int i = 0; i <= number; ++i) weights[i] += values[i] * error >> job.rate;
            const uint16_t* after = job.after + (bit << 16);
            for (int i = 0; i < number; ++i) used[i][slot] = after[states[i]];
        }
        node += node + bit;
        slot += slot + bit;
    }
    return node - (1u << one.width);
}

// 0 if all went well, 1 where memory does not suffice, 2 where the bytes or their room end too early.
template <class Coder>
int coded(Coder& coder, const GmvqEntropy& job, int32_t* symbols, uint16_t* groups, int64_t* weights) {
    const int inputs = 1 + (job.components ? *std::max_element(job.contexts, job.contexts + job.components) : 0);
    const Padded padded(job);
    Scratch<int32_t> known(padded.size);
    if (!known) return 1;
    std::fill_n(known.data(), padded.size, 0);
    std::vector<Component> components = components_of(job, padded, weights, inputs);
    const int64_t left = padded.step(0, 0, -1, 0), above = padded.step(0, -1, 0, 0);
    for (int64_t z = 0; z < job.shape[0]; ++z)
        for (int64_t y = 0; y < job.shape[1]; ++y) {
            int32_t* at = known.data() + padded.step(z + padded.above, y + padded.high, padded.wide, 0);
            for (int64_t x = 0; x < job.shape[2]; ++x)
                for (int j = 0; j < job.components; ++j, ++at, ++symbols) {
                    Component& one = components[j];
                    if (job.masked) {
                        uint16_t& state = one.kept[(at[left] > 0) + 2 * (at[above] > 0) + 4 * (j > 0 && at[-1] > 0)];
                        const int logit = state & 31 ? 2 * (state >> 5) - 2047 : 0;
                        const int there = coder.decide(*symbols >= 0, job.squash[2048 + logit]);
                        state = job.after[(there << 16) + state];
                        if (coder.failed()) return 2;
                        if (!there) {
                            *symbols = -1;
                            continue;
                        }
                    }
                    uint32_t path = *symbols < 0 ? 0 : static_cast<uint32_t>(*symbols);
                    if (job.packed) {
                        const int32_t* end = one.paths + one.size;
                        const auto rank = std::lower_bound(one.paths, end, static_cast<int32_t>(path)) - one.paths;
                        path = static_cast<uint32_t>(one.paths[coder.choose(static_cast<uint32_t>(rank), one.size)]);
                    } else {
                        path = coding(coder, one, job, at, path, groups, inputs);
                    }
                    if (coder.failed()) return 2;
                    *at = static_cast<int32_t>(path | 1u << one.width);
                    *symbols = static_cast<int32_t>(path);
                }
        }
    return 0;
}

}  // namespace

extern "C" int gmvq_entropy_write(const GmvqEntropy* job, int32_t* symbols, uint16_t* groups, int64_t* weights,
                                  uint8_t* out, int64_t* size) {
    Writer writer(out, static_cast<size_t>(*size));
    const int failed = coded(writer, *job, symbols, groups, weights);
    if (failed) return failed;
    writer.finish();
    *size = static_cast<int64_t>(writer.size);
    return writer.failed() ? 2 : 0;
}

extern "C" int gmvq_entropy_read(const GmvqEntropy* job, int32_t* symbols, uint16_t* groups, int64_t* weights,
                                 const uint8_t* data, int64_t size) {
    Reader reader(data, static_cast<size_t>(size));
    std::fill_n(symbols, job->shape[0] * job->shape[1] * job->shape[2] * job->components, 0);
    return coded(reader, *job, symbols, groups, weights);
}

extern "C" int gmvq_entropy_count(const GmvqEntropy* job, int32_t* symbols, uint16_t* groups, int64_t* weights,
                                  double* bits) {
    Counter counter;
    const int failed = coded(counter, *job, symbols, groups, weights);
    *bits = counter.bits;
    return failed;
}

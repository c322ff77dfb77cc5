// Vectors of the processor's own width, in the notation that GCC and Clang share, and scratch memory for them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;  // SSE, NEON and whatever the compiler splits up
#endif

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));

inline Floats all(float value) { return value - Floats{}; }
inline Ints all(int32_t value) { return value - Ints{}; }

inline Floats load(const float* from) {
    Floats vector;
    std::memcpy(&vector, from, sizeof vector);
    return vector;
}
inline void store(float* to, Floats vector) { std::memcpy(to, &vector, sizeof vector); }

// Memory of one cache line's alignment that frees itself; null where there is none left.
template <typename T>
class Scratch {
  public:
    explicit Scratch(size_t count) {
        void* memory = nullptr;
        // at most a quarter of the address space: sizes of products of lengths must not wrap around
        if (count < SIZE_MAX / 4 / sizeof(T) && posix_memalign(&memory, 64, count * sizeof(T) + 64) == 0)
            data_ = static_cast<T*>(memory);
    }
    ~Scratch() { std::free(data_); }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    T* data() const { return data_; }
    T& operator[](size_t i) const { return data_[i]; }
    explicit operator bool() const { return data_ != nullptr; }

  private:
    T* data_ = nullptr;
};

}  // namespace

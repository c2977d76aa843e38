// Elements of models in memory as float32, for the loops of this folder.

#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

namespace {

typedef float Lanes __attribute__((vector_size(64)));
constexpr int64_t WIDTH = sizeof(Lanes) / sizeof(float);

struct Model {
    const void* data;  // null: there is none
    int64_t is_wide;   // float32, otherwise bfloat16
};

// Elements of a model as float32: where they are, or in `scratch`.
inline const float* elements(const Model& model, int64_t start, int64_t count, float* scratch) {
    if (model.is_wide) return static_cast<const float*>(model.data) + start;
    const uint16_t* narrow = static_cast<const uint16_t*>(model.data) + start;
    uint32_t* bits = reinterpret_cast<uint32_t*>(scratch);
    for (int64_t i = 0; i < count; ++i) bits[i] = uint32_t(narrow[i]) << 16;
    return scratch;
}

inline uint16_t rounded(float value) {
    const uint32_t bits = std::bit_cast<uint32_t>(value);
    const uint16_t nearest = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;  // ties to even
    return value == value ? nearest : 0x7FC0;
}

inline Lanes lanes(const float* at) {
    Lanes values;
    std::memcpy(&values, at, sizeof(values));
    return values;
}

inline void store(Lanes values, float* at) { std::memcpy(at, &values, sizeof(values)); }

}  // namespace

// Sums of weighted task vectors, and the slopes of their weights, in one pass over memory: the loops of
// weighted_vectors.py. Sources are float32 or bfloat16, the arithmetic is float32. A sum has the bits of the same
// operations one by one; compile without contraction.

#include <algorithm>

#include "models_in_memory.hpp"

namespace {

constexpr int64_t CHUNK = 512;  // elements of each model that stay in the first-level cache together

// The sum of gradient * (source - base).
float product(const float* gradient, const float* base, const float* source, int64_t count) {
    Lanes sums[4] = {};
    int64_t i = 0;
    for (; i + 4 * WIDTH <= count; i += 4 * WIDTH)
        for (int64_t k = 0; k < 4; ++k) {
            const int64_t at = i + k * WIDTH;
            const Lanes vector = base ? lanes(source + at) - lanes(base + at) : lanes(source + at);
            sums[k] += lanes(gradient + at) * vector;
        }
    const Lanes all = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    float rest = 0, total = 0;
    for (; i < count; ++i) rest += gradient[i] * (base ? source[i] - base[i] : source[i]);
    for (int64_t k = 0; k < WIDTH; ++k) total += all[k];
    return total + rest;
}

}  // namespace

extern "C" {

// out = sum_i f_i (W_i - W_0) + W_0, or without a base sum_i f_i W_i, of the elements [start, stop) of a tensor whose
// rows have `columns` elements. Factors are [sources, rows], or with `by_column` [sources, columns].
void write_sum(const Model* base, const Model* sources, int64_t count, const float* factors, int64_t stride,
               int64_t by_column, int64_t columns, int64_t start, int64_t stop, const Model* out) {
    float base_scratch[CHUNK], scratch[CHUNK], narrow[CHUNK];
    for (int64_t at = start, next; at < stop; at = next) {
        const int64_t row = at / columns, column = at - row * columns;
        next = std::min({at + CHUNK, (row + 1) * columns, stop});
        const int64_t size = next - at;
        const float* origin = base->data ? elements(*base, at, size, base_scratch) : nullptr;
        float* sum = out->is_wide ? static_cast<float*>(const_cast<void*>(out->data)) + at : narrow;
        for (int64_t i = 0; i < count; ++i) {
            const float* source = elements(sources[i], at, size, scratch);
            const float* factor = factors + i * stride + (by_column ? column : row);
            const int64_t step = by_column ? 1 : 0;
            const auto add = [&](auto value) {
                if (i == 0)
                    for (int64_t j = 0; j < size; ++j) sum[j] = value(j);
                else
                    for (int64_t j = 0; j < size; ++j) sum[j] += value(j);
            };
            if (step && origin) add([=](int64_t j) { return (source[j] - origin[j]) * factor[j]; });
            else if (step) add([=](int64_t j) { return source[j] * factor[j]; });
            else if (const float same = *factor; origin) add([=](int64_t j) { return (source[j] - origin[j]) * same; });
            else add([=](int64_t j) { return source[j] * same; });
        }
        if (origin)
            for (int64_t j = 0; j < size; ++j) sum[j] += origin[j];
        if (!out->is_wide) {
            uint16_t* written = static_cast<uint16_t*>(const_cast<void*>(out->data)) + at;
            for (int64_t j = 0; j < size; ++j) written[j] = rounded(sum[j]);
        }
    }
}

// totals [rows, sources]: the sums of gradient * (source - base) over the rows [start, stop) of `length` elements; the
// last row of the tensor, which has `whole` elements, may be shorter.
void row_sums(const Model* gradient, const Model* base, const Model* sources, int64_t count, int64_t length,
              int64_t whole, int64_t start, int64_t stop, double* totals) {
    float gradient_scratch[CHUNK], base_scratch[CHUNK], scratch[CHUNK];
    for (int64_t row = start; row < stop; ++row) {
        double* total = totals + row * count;
        std::fill(total, total + count, 0.0);
        const int64_t end = std::min((row + 1) * length, whole);
        for (int64_t at = row * length; at < end; at += CHUNK) {
            const int64_t size = std::min(CHUNK, end - at);
            const float* slope = elements(*gradient, at, size, gradient_scratch);
            const float* origin = base->data ? elements(*base, at, size, base_scratch) : nullptr;
            for (int64_t i = 0; i < count; ++i)
                total[i] += product(slope, origin, elements(sources[i], at, size, scratch), size);
        }
    }
}

// totals [blocks, sources, columns]: likewise over the rows of each block, by column.
void column_sums(const Model* gradient, const Model* base, const Model* sources, int64_t count, int64_t columns,
                 int64_t rows, int64_t block_rows, int64_t start, int64_t stop, float* totals) {
    float gradient_scratch[CHUNK], base_scratch[CHUNK], scratch[CHUNK];
    for (int64_t block = start; block < stop; ++block) {
        float* total = totals + block * count * columns;
        std::fill(total, total + count * columns, 0.0f);
        for (int64_t row = block * block_rows; row < std::min((block + 1) * block_rows, rows); ++row)
            for (int64_t column = 0; column < columns; column += CHUNK) {
                const int64_t at = row * columns + column, size = std::min(CHUNK, columns - column);
                const float* slope = elements(*gradient, at, size, gradient_scratch);
                const float* origin = base->data ? elements(*base, at, size, base_scratch) : nullptr;
                for (int64_t i = 0; i < count; ++i) {
                    const float* source = elements(sources[i], at, size, scratch);
                    float* sum = total + i * columns + column;
                    if (origin)
                        for (int64_t j = 0; j < size; ++j) sum[j] += slope[j] * (source[j] - origin[j]);
                    else
                        for (int64_t j = 0; j < size; ++j) sum[j] += slope[j] * source[j];
                }
            }
    }
}
}

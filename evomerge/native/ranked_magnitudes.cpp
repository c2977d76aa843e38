// Magnitudes of a task vector around ranks that are looked for: the loops of ranked_magnitudes.py. Sources are float32 or
// bfloat16, the arithmetic is float32.

#include <algorithm>
#include <cmath>

#include "models_in_memory.hpp"

namespace {

constexpr int64_t CHUNK = 512;  // elements of each model at a time

// A range in which a magnitude is expected, and what was seen of it.
struct Range {
    float low, high;
    int64_t smaller, at_low, inside, at_high, larger;
    float* gathered;  // those strictly between, as far as there is room
    int64_t room;
};

void see(const float* magnitudes, int64_t count, Range& range) {
    const float low = range.low, high = range.high;
    int32_t smaller = 0, at_low = 0, inside = 0, at_high = 0, larger = 0;
    for (int64_t i = 0; i < count; ++i) {
        smaller += magnitudes[i] < low;
        at_low += magnitudes[i] == low;
        inside += (magnitudes[i] > low) & (magnitudes[i] < high);
        at_high += (magnitudes[i] == high) & (high > low);
        larger += magnitudes[i] > high;
    }
    if (inside) {
        int64_t filled = range.inside;
        for (int64_t i = 0; i < count; ++i)
            if (magnitudes[i] > low && magnitudes[i] < high && filled < range.room) range.gathered[filled++] = magnitudes[i];
    }
    range.smaller += smaller;
    range.at_low += at_low;
    range.inside += inside;
    range.at_high += at_high;
    range.larger += larger;
}

// Hand |source - base| of the elements [start, stop) to `use` by chunks, with the index of the first and how many there
// are, until it returns false.
template <class Use>
void for_chunks(const Model& base, const Model& source, int64_t start, int64_t stop, Use use) {
    alignas(Lanes) float base_scratch[CHUNK], scratch[CHUNK], magnitudes[CHUNK];
    for (int64_t at = start; at < stop; at += CHUNK) {
        const int64_t size = std::min(CHUNK, stop - at);
        const float* origin = elements(base, at, size, base_scratch);
        const float* moved = elements(source, at, size, scratch);
        for (int64_t i = 0; i < size; ++i) magnitudes[i] = std::fabs(moved[i] - origin[i]);
        if (!use(magnitudes, at, size)) return;
    }
}

int64_t count_equal(const float* magnitudes, int64_t size, float value) {
    int32_t equal = 0;
    for (int64_t i = 0; i < size; ++i) equal += magnitudes[i] == value;
    return equal;
}

}  // namespace

extern "C" {

// Look at |source - base| of the elements [start, stop) for each of `count` ranges.
void see_ranges(const Model* base, const Model* source, int64_t start, int64_t stop, Range* ranges, int64_t count) {
    for_chunks(*base, *source, start, stop, [=](const float* magnitudes, int64_t, int64_t size) {
        for (int64_t k = 0; k < count; ++k) see(magnitudes, size, ranges[k]);
        return true;
    });
}

// The number of elements in [start, stop) whose magnitude is `value`.
int64_t equal_between(const Model* base, const Model* source, int64_t start, int64_t stop, float value) {
    int64_t equal = 0;
    for_chunks(*base, *source, start, stop, [=, &equal](const float* magnitudes, int64_t, int64_t size) {
        equal += count_equal(magnitudes, size, value);
        return true;
    });
    return equal;
}

// The index after the `count`-th element in [start, stop) whose magnitude is `value`; `stop` where there are fewer.
int64_t end_of_equal(const Model* base, const Model* source, int64_t start, int64_t stop, float value, int64_t count) {
    int64_t end = stop;
    for_chunks(*base, *source, start, stop, [=, &end](const float* magnitudes, int64_t at, int64_t size) mutable {
        const int64_t equal = count_equal(magnitudes, size, value);
        if (equal >= count) {
            const float* last = magnitudes;
            for (; count; ++last) count -= *last == value;
            end = at + (last - magnitudes);
            return false;
        }
        count -= equal;
        return true;
    });
    return end;
}
}

// Sorting and thinning of magnitudes for threshold tables: the loops of threshold_tables.py that numpy has no fast
// operation for. Magnitudes are float32, not negative and finite, and have the order of their bits read as integers.
// Bits are those of the definitions in threshold_tables.py, which a test compares; compile without contraction.

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

namespace {

constexpr int64_t FEW = 48;  // are sorted by insertion

void sort_few(uint32_t* keys, int64_t count) {
    for (int64_t i = 1; i < count; ++i) {
        const uint32_t key = keys[i];
        int64_t at = i;
        for (; at > 0 && keys[at - 1] > key; --at) keys[at] = keys[at - 1];
        keys[at] = key;
    }
}

float next_float(float value) { return std::bit_cast<float>(std::bit_cast<uint32_t>(value) + 1); }

// Two passes of a radix sort over the lower sixteen bits.
void sort_lower_bits(uint32_t* keys, uint32_t* scratch, int64_t count) {
    uint32_t low[256] = {}, high[256] = {};
    for (int64_t i = 0; i < count; ++i) {
        ++low[keys[i] & 255];
        ++high[keys[i] >> 8 & 255];
    }
    uint32_t low_start = 0, high_start = 0;
    for (int digit = 0; digit < 256; ++digit) {
        low_start += std::exchange(low[digit], low_start);
        high_start += std::exchange(high[digit], high_start);
    }
    for (int64_t i = 0; i < count; ++i) scratch[low[keys[i] & 255]++] = keys[i];
    for (int64_t i = 0; i < count; ++i) keys[high[scratch[i] >> 8 & 255]++] = scratch[i];
}

// The knots of a table that may be left out, and for each of them the thresholds that are right to `allowed` elements:
// more than `above` and at most `below`.
struct Knots {
    const int64_t* ranks;
    const float* values;
    std::vector<float> above, below;

    Knots(const int64_t* ranks, const float* values, int64_t count, double allowed)
        : ranks(ranks), values(values), above(count), below(count) {
        const int64_t whole = int64_t(allowed);
        int64_t fewest = 0, most = 0;  // as a threshold their values have too few, at most too many, smaller elements
        for (int64_t i = 0; i < count; ++i) {
            const int64_t rank = ranks[i > 0 && values[i - 1] == values[i] ? i - 1 : i];
            while (rank - ranks[fewest] > whole) ++fewest;
            while (most + 1 < count && ranks[most + 1] - rank <= whole) ++most;
            above[i] = fewest > 0 ? values[fewest - 1] : -1.0f;
            below[i] = values[most];
        }
    }

    // Whether the line between two knots gives a wrong threshold at a knot between them.
    bool is_bent(int64_t left, int64_t right) const {
        const double low = values[left], rise = values[right] - low;
        const double stretch = double(ranks[right] - ranks[left]);
        const float least = next_float(values[left]), largest = values[right];
        const auto is_wrong = [&](int64_t i) {
            const float line = float(low + double(ranks[i] - ranks[left]) / stretch * rise);
            const float threshold = std::min(std::max(line, least), largest);
            return !(threshold > above[i]) | !(threshold <= below[i]);
        };
        constexpr int64_t SHORT = 32;
        if (is_wrong((left + right) / 2)) return true;  // where most are furthest from the line
        if (right - left > SHORT)  // most of the long ones are wrong nearly everywhere
            for (int64_t share = 1; share < 8; ++share)
                if (is_wrong(left + (right - left) * share / 8)) return true;
        for (int64_t start = left + 1; start < right; start += SHORT) {
            const int64_t stop = std::min(start + SHORT, right);
            int wrong = 0;
            for (int64_t i = start; i < stop; ++i) wrong |= is_wrong(i);
            if (wrong) return true;
        }
        return false;
    }
};

}  // namespace

extern "C" {

// Add to `counts` [65536] how many magnitudes have each value of the upper sixteen bits. Returns the largest.
uint32_t count_digits(const uint32_t* keys, int64_t count, int64_t* counts) {
    uint32_t largest = 0;
    for (int64_t i = 0; i < count; ++i) {
        ++counts[keys[i] >> 16];
        largest = std::max(largest, keys[i]);
    }
    return largest;
}

// Put each magnitude whose upper sixteen bits are between `first` and `last` at the next place of its digit.
void scatter(const uint32_t* keys, int64_t count, uint32_t first, uint32_t last, int64_t* next, uint32_t* out) {
    for (int64_t i = 0; i < count; ++i) {
        const uint32_t digit = keys[i] >> 16;
        if (digit >= first && digit <= last) out[next[digit]++] = keys[i];
    }
}

// Sort what `scatter` has put into the places of each digit. `scratch` has room for the largest of them.
void sort_digits(uint32_t* keys, const int64_t* counts, uint32_t first, uint32_t last, uint32_t* scratch) {
    for (uint32_t digit = first; digit <= last; ++digit) {
        if (counts[digit] <= FEW) sort_few(keys, counts[digit]);
        else sort_lower_bits(keys, scratch, counts[digit]);
        keys += counts[digit];
    }
}

// The first and the last rank of each `spacing`-th of sorted magnitudes that begin at rank `start`. Returns how many.
int64_t find_knots(const float* sorted, int64_t count, int64_t start, int64_t spacing, int64_t* ranks, float* values) {
    int64_t found = 0, past = 0;  // the end of the run that was found last
    const int64_t wanted = (start + spacing - 1) / spacing * spacing - start;
    for (int64_t at = 0; at < count;) {
        if (at >= past) {
            const float value = sorted[at];
            int64_t first = at;
            while (first > past && sorted[first - 1] == value) --first;
            int64_t step = 1;
            past = at + 1;
            while (past < count && sorted[past] == value) {
                past = std::min(past + step, count);
                step *= 2;
                if (sorted[past - 1] != value) {
                    past = std::upper_bound(sorted + at, sorted + past, value) - sorted;
                    break;
                }
            }
            ranks[found] = start + first;
            values[found++] = value;
            if (past - 1 > first) {
                ranks[found] = start + past - 1;
                values[found++] = value;
            }
        }
        if (at == count - 1) break;
        at = at < wanted ? wanted : at + spacing;
        at = std::min(at, count - 1);
    }
    return found;
}

// Mark in `kept` the knots that `_thinned` keeps.
void thin(const int64_t* ranks, const float* values, int64_t count, double longest_run, double allowed, uint8_t* kept) {
    const Knots knots(ranks, values, count, allowed);
    std::memset(kept, 0, count);
    kept[0] = kept[count - 1] = 1;
    for (int64_t i = 0; i + 1 < count; ++i)
        if (values[i] == values[i + 1] && double(ranks[i + 1] - ranks[i]) >= longest_run) kept[i] = kept[i + 1] = 1;
    std::vector<int64_t> ends;  // of the stretches that are not yet divided, the next one last
    for (int64_t i = count - 1; i > 0; --i)
        if (kept[i]) ends.push_back(i);
    for (int64_t left = 0; !ends.empty();) {
        const int64_t right = ends.back();
        if (right - left > 1 && knots.is_bent(left, right)) {
            kept[(left + right) / 2] = 1;
            ends.push_back((left + right) / 2);
        } else {
            left = right;
            ends.pop_back();
        }
    }
}
}

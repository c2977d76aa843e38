// Sorting and thinning of magnitudes for threshold tables: the loops of magnitude_sorting.py that numpy has no fast
// operation for. Magnitudes are float32, not negative and finite, and have the order of their bits read as integers.
// Bits are those of the definitions in magnitude_tables.py, which a test compares; compile without contraction.

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

namespace {

constexpr int64_t FEW = 48;  // are sorted by insertion
constexpr uint32_t DIGITS = 1 << 16;
constexpr uint32_t INFINITY_BITS = 0x7F800000;

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
    int64_t low[256] = {}, high[256] = {};
    for (int64_t i = 0; i < count; ++i) {
        ++low[keys[i] & 255];
        ++high[keys[i] >> 8 & 255];
    }
    int64_t low_start = 0, high_start = 0;
    for (int digit = 0; digit < 256; ++digit) {
        low_start += std::exchange(low[digit], low_start);
        high_start += std::exchange(high[digit], high_start);
    }
    for (int64_t i = 0; i < count; ++i) scratch[low[keys[i] & 255]++] = keys[i];
    for (int64_t i = 0; i < count; ++i) keys[high[scratch[i] >> 8 & 255]++] = scratch[i];
}

// The knots of a table that may be left out, and for each of them the thresholds that are right to `allowed` elements:
// more than `above` and at most `below`.
template <class Rank>
struct Knots {
    const Rank* ranks;
    const float* values;
    const float* above;
    const float* below;
    int64_t count;

    // Whether the line between two knots gives a wrong threshold at a knot between them.
    bool is_bent(int64_t left, int64_t right) const {
        const Line line(*this, left, right);
        const int64_t inside = right - left - 1;
        const auto any = [&](int64_t first, int64_t last) {
            return line.is_wrong_between(left, right, first) | line.is_wrong_between(left, right, last);
        };
        if (inside <= TOGETHER) return line.is_wrong_between(left, right, left + 1);
        if (inside <= 2 * TOGETHER) return any(left + 1, right - TOGETHER);
        if (inside <= 4 * TOGETHER)
            return any(left + 1, left + 1 + TOGETHER) | any(right - 2 * TOGETHER, right - TOGETHER);
        if (line.is_wrong((left + right) / 2)) return true;  // where most are furthest from the line
        for (int64_t share = 1; share < 8; ++share)  // most of the long ones are wrong nearly everywhere
            if (line.is_wrong(left + (right - left) * share / 8)) return true;
        for (int64_t start = left + 1; start < right; start += 2 * TOGETHER)
            if (any(start, start + TOGETHER)) return true;
        return false;
    }

    // Mark in `kept`, where the knots that are kept in any case are marked, those that are needed beside them.
    void divide(uint8_t* kept) const {
        std::vector<Stretch> longer;  // that are not yet divided, the next one last
        int64_t left = 0;
        for (int64_t i = 1; i < count; ++i) {
            i = static_cast<const uint8_t*>(std::memchr(kept + i, 1, count - i)) - kept;  // the last one is
            longer.push_back({left, i});
            while (!longer.empty()) {
                const Stretch stretch = longer.back();
                longer.pop_back();
                if (stretch.right - stretch.left <= LOCAL) {
                    divide_local(stretch, kept);
                } else if (is_bent(stretch.left, stretch.right)) {
                    const int64_t middle = (stretch.left + stretch.right) / 2;
                    kept[middle] = 1;
                    longer.push_back({middle, stretch.right});
                    longer.push_back({stretch.left, middle});
                }
            }
            left = i;
        }
    }

private:
    static constexpr int64_t TOGETHER = 8;  // knots are looked at, without a branch
    static constexpr int64_t SHORT = 32;
    static constexpr int64_t LOCAL = 512;

    typedef Rank Ranks __attribute__((vector_size(TOGETHER * sizeof(Rank))));
    typedef double Doubles __attribute__((vector_size(TOGETHER * sizeof(double))));
    typedef float Floats __attribute__((vector_size(TOGETHER * sizeof(float))));
    typedef int32_t Answers __attribute__((vector_size(TOGETHER * sizeof(int32_t))));
    typedef uint32_t Lanes __attribute__((vector_size(TOGETHER * sizeof(uint32_t))));
    typedef int8_t Marks __attribute__((vector_size(TOGETHER)));

    struct Stretch {
        int64_t left, right;
    };

    struct Line {
        const Knots& knots;
        double start, stretch, low, rise;
        float least, largest;

        Line(const Knots& knots, int64_t left, int64_t right)
            : knots(knots),
              start(knots.ranks[left]),
              stretch(double(knots.ranks[right] - knots.ranks[left])),
              low(knots.values[left]),
              rise(knots.values[right] - low),
              least(next_float(knots.values[left])),
              largest(knots.values[right]) {}

        bool is_wrong(int64_t i) const {
            const float line = float(low + (double(knots.ranks[i]) - start) / stretch * rise);
            const float threshold = std::min(std::max(line, least), largest);
            return !(threshold > knots.above[i]) | !(threshold <= knots.below[i]);
        }

        // Whether one of the knots from `first` on is, of as many as are looked at together, if it is between the ends.
        bool is_wrong_between(int64_t left, int64_t right, int64_t first) const {
            if (knots.count < TOGETHER) {
                bool wrong = false;
                for (int64_t i = first; i < right; ++i) wrong |= is_wrong(i);
                return wrong;
            }
            first = std::min(first, knots.count - TOGETHER);  // nothing is read beyond the last knot
            Ranks ranks;
            Floats above, below;
            std::memcpy(&ranks, knots.ranks + first, sizeof(ranks));
            std::memcpy(&above, knots.above + first, sizeof(above));
            std::memcpy(&below, knots.below + first, sizeof(below));
            const Doubles exact = low + (__builtin_convertvector(ranks, Doubles) - start) / stretch * rise;
            Floats threshold = __builtin_convertvector(exact, Floats);
            threshold = threshold < least ? Floats{} + least : threshold;
            threshold = threshold > largest ? Floats{} + largest : threshold;
            const Lanes lanes = {0, 1, 2, 3, 4, 5, 6, 7};
            const Answers between = lanes - uint32_t(left + 1 - first) < uint32_t(right - left - 1);  // wraps
            const Answers wrong = (~(threshold > above) | ~(threshold <= below)) & between;
            const auto any = __builtin_convertvector(wrong, Marks);
            uint64_t marks;
            std::memcpy(&marks, &any, sizeof(marks));
            return marks;
        }
    };

    // All stretches of the same length before the shorter ones: no answer decides which is looked at next, so that the
    // processor looks at several at a time.
    void divide_local(Stretch whole, uint8_t* kept) const {
        if (whole.right - whole.left < 2) return;
        Stretch some[2][LOCAL / 2 + 2];
        some[0][0] = whole;
        for (int64_t count = 1, depth = 0; count > 0; ++depth) {
            Stretch* next = some[(depth + 1) % 2];
            int64_t found = 0;
            for (int64_t k = 0; k < count; ++k) {
                const auto [left, right] = some[depth % 2][k];
                const bool bent = is_bent(left, right);
                const int64_t middle = (left + right) / 2;
                kept[middle] |= bent;
                next[found] = {left, middle};
                found += bent & (middle - left > 1);
                next[found] = {middle, right};
                found += bent & (right - middle > 1);
            }
            count = found;
        }
    }
};

constexpr int64_t WIDTH = 16;

typedef float Row __attribute__((vector_size(WIDTH * sizeof(float))));
typedef int32_t RowRanks __attribute__((vector_size(WIDTH * sizeof(int32_t))));
typedef uint8_t RowMarks __attribute__((vector_size(WIDTH)));

template <class T>
T load(const void* at) {
    T row;
    std::memcpy(&row, at, sizeof(row));
    return row;
}

template <class T>
void store(const T& row, void* at) { std::memcpy(at, &row, sizeof(row)); }

bool is_any(RowRanks answers) {
    const auto narrow = __builtin_convertvector(answers, RowMarks);
    return load<uint64_t>(&narrow) | load<uint64_t>(reinterpret_cast<const char*>(&narrow) + 8);
}

// The fine knots of sorted magnitudes of which each counts: the first and the last of each run of equal values.
struct FineKnots {
    const float* sorted;
    const int64_t count, whole, longest;
    int32_t* ranks;
    float *values, *above, *below;
    uint8_t* kept;
    int64_t knots = 0, first = 0;

    void add(int64_t i) {
        const float value = sorted[i];
        const bool begins = i == 0 || sorted[i - 1] != value, ends = i + 1 == count || sorted[i + 1] != value;
        first = begins ? i : first;
        ranks[knots] = int32_t(i);
        values[knots] = value;
        above[knots] = first > whole ? sorted[first - whole - 1] : -1.0f;
        below[knots] = sorted[std::min(first + whole, count - 1)];
        if (ends & !begins & (i - first >= longest)) kept[knots - 1] = kept[knots] = 1;
        knots += begins | ends;
    }

    // The same for WIDTH magnitudes from `i` on, unless a run of three or more is among them or an end is near.
    bool add_row(int64_t i) {
        if (i < whole + 2 || i + WIDTH + whole >= count) return false;
        const Row row = load<Row>(sorted + i), before = load<Row>(sorted + i - 1);
        const RowRanks is_last = row == before, is_third = before == load<Row>(sorted + i - 2);
        if (is_any(is_last & (is_third | (row == load<Row>(sorted + i + 1))))) return false;
        store(RowRanks{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15} + int32_t(i), ranks + knots);
        store(row, values + knots);
        const float *low = sorted + i - whole - 1, *high = sorted + i + whole;
        store(is_last ? load<Row>(low - 1) : load<Row>(low), above + knots);
        store(is_last ? load<Row>(high - 1) : load<Row>(high), below + knots);
        if (longest <= 1)
            for (uint8_t* marks : {kept + knots, kept + knots - 1})
                store(load<RowMarks>(marks) | (__builtin_convertvector(is_last, RowMarks) & 1), marks);
        knots += WIDTH;
        first = i + WIDTH - 1 - (sorted[i + WIDTH - 1] == sorted[i + WIDTH - 2]);
        return true;
    }
};

// Move what is marked to the front. Returns how many.
int64_t compact(const uint8_t* kept, int64_t count, int32_t* ranks, float* values) {
    int64_t found = 0;
    const auto move = [&](int64_t i) {
        ranks[found] = ranks[i];
        values[found] = values[i];
        found += kept[i];
    };
    int64_t i = 0;
    for (; i + 8 <= count; i += 8)
        if (load<uint64_t>(kept + i))  // few are, of most tables
            for (int64_t k = 0; k < 8; ++k) move(i + k);
    for (; i < count; ++i) move(i);
    return found;
}

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

// Add to `counts` [65536] how many magnitudes with the upper sixteen bits `digit` have each value of the lower sixteen.
void count_lower(const uint32_t* keys, int64_t count, uint32_t digit, int64_t* counts) {
    for (int64_t i = 0; i < count; ++i)
        if (keys[i] >> 16 == digit) ++counts[keys[i] & 0xFFFF];
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
    std::vector<float> above(count), below(count);
    const int64_t whole = int64_t(allowed);
    int64_t fewest = 0, most = 0;  // as a threshold their values have too few, at most too many, smaller elements
    for (int64_t i = 0; i < count; ++i) {
        const int64_t rank = ranks[i > 0 && values[i - 1] == values[i] ? i - 1 : i];
        while (rank - ranks[fewest] > whole) ++fewest;
        while (most + 1 < count && ranks[most + 1] - rank <= whole) ++most;
        above[i] = fewest > 0 ? values[fewest - 1] : -1.0f;
        below[i] = values[most];
    }
    std::memset(kept, 0, count);
    kept[0] = kept[count - 1] = 1;
    for (int64_t i = 0; i + 1 < count; ++i)
        if (values[i] == values[i + 1] && double(ranks[i + 1] - ranks[i]) >= longest_run) kept[i] = kept[i + 1] = 1;
    Knots<int64_t>{ranks, values, above.data(), below.data(), count}.divide(kept);
}

// Sort magnitudes into `out`; `keys` and `digits` [131072] are overwritten. Returns the largest; where that is not finite
// they are not sorted.
uint32_t sort_whole(uint32_t* keys, int64_t count, uint32_t* digits, uint32_t* out) {
    uint32_t *counts = digits, *next = digits + DIGITS, largest = 0;
    std::memset(counts, 0, DIGITS * sizeof(uint32_t));
    for (int64_t i = 0; i < count; ++i) {
        ++counts[keys[i] >> 16];
        largest = std::max(largest, keys[i]);
    }
    if (largest >= INFINITY_BITS) return largest;
    uint32_t filled = 0;
    for (uint32_t digit = 0; digit <= largest >> 16; ++digit) next[digit] = std::exchange(filled, filled + counts[digit]);
    for (int64_t i = 0; i < count; ++i) out[next[keys[i] >> 16]++] = keys[i];
    for (uint32_t digit = 0; digit <= largest >> 16; out += counts[digit++]) {
        if (counts[digit] <= FEW) sort_few(out, counts[digit]);
        else sort_lower_bits(out, keys, counts[digit]);
    }
    return largest;
}

// The table of sorted magnitudes of which each is a fine knot, as `_fine_knots`, `_thinned` and `with_steps` make it.
// `ranks` and `values` [count] receive it, `above` and `below` [count] are overwritten, `kept` [count] likewise. Returns
// its length.
int64_t whole_table(const float* sorted, int64_t count, double longest_run, double allowed, int32_t* ranks,
                    float* values, float* above, float* below, uint8_t* kept) {
    std::memset(kept, 0, count);
    FineKnots fine{sorted, count, int64_t(allowed), int64_t(std::ceil(longest_run)), ranks, values, above, below, kept};
    for (int64_t i = 0; i < count;)
        if (i + WIDTH <= count && fine.add_row(i)) i += WIDTH;
        else for (const int64_t stop = std::min(i + WIDTH, count); i < stop; ++i) fine.add(i);
    const int64_t knots = fine.knots;
    kept[0] = kept[knots - 1] = 1;
    Knots<int32_t>{ranks, values, above, below, knots}.divide(kept);
    const int64_t thinned = compact(kept, knots, ranks, values);
    int64_t found = 0;
    bool was_level = false;
    for (int64_t i = 0; i < thinned; ++i) {
        const bool is_last = i + 1 == thinned, is_level = !is_last && values[i + 1] == values[i];
        const bool is_shown = !is_last & (ranks[std::min(i + 1, thinned - 1)] - ranks[i] == 1) & was_level & !is_level;
        const int32_t rank = ranks[i];
        const float value = is_level ? -values[i] : values[i];
        was_level = is_level;
        ranks[found] = rank;
        values[found] = value;
        found += !is_shown;
    }
    return found;
}
}

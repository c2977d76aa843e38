// Rules on masked task vectors (DARE, DELLA) in one pass over memory: the loops of passes/masked_passes.py and of
// masked_norms.py. Sources are float32 or bfloat16, the arithmetic is float32. Bits are those of the formulas in plans.py,
// whose equation numbers are given here; compile without contraction.

#include <algorithm>
#include <memory>

#include "models_in_memory.hpp"

namespace {

constexpr int64_t CHUNK = 128;  // elements of each model at a time: so few that the processor fetches all of them ahead
constexpr int64_t VECTORS = CHUNK / WIDTH;
constexpr uint32_t INFINITY_BITS = 0x7F800000;

constexpr float STEPS = 1 << 24;  // of the random bits

typedef uint32_t Words __attribute__((vector_size(64)));

enum Aggregation : int64_t { DIS_MAX, DIS_SUM, DIS_MEAN_BY_COUNT, DIS_MEAN_BY_NORM };

enum Ranking : int64_t { UNRANKED, RANKED, RANKED_AND_DIVIDED, RANKED_AND_MATCHED };

struct Rule {
    int64_t is_election, elects_by_count, aggregation, is_scaled, ranking;
};

// The rank of each element in its row.
struct Ranks {
    const void* data;
    int64_t is_wide;  // int32, otherwise int16

    Lanes of(int64_t at) const {
        if (is_wide) return __builtin_convertvector(loaded<Wide>(static_cast<const int32_t*>(data) + at), Lanes);
        return __builtin_convertvector(loaded<Narrow>(static_cast<const int16_t*>(data) + at), Lanes);
    }

private:
    typedef int32_t Wide __attribute__((vector_size(64)));
    typedef int16_t Narrow __attribute__((vector_size(32)));

    template <class T>
    static T loaded(const void* at) {
        T values;
        std::memcpy(&values, at, sizeof(values));
        return values;
    }
};

// Rows of `numbers` and `words`, as in plans.py, of which each has a column per source.
enum Number : int64_t { WEIGHT, THRESHOLD, DIVISOR, FACTOR, LAMBDA, ZERO_SIGN, ZERO, LEAST, MOST };
enum Word : int64_t { LIMIT, KEY_LOW, KEY_HIGH, START };

struct Factors {
    const float* numbers;
    const uint32_t* words;
    int64_t count;

    float of(Number row, int64_t source) const { return numbers[row * count + source]; }
    uint32_t of(Word row, int64_t source) const { return words[row * count + source]; }
};

Lanes all(float value) { return Lanes{} + value; }

Lanes magnitude(Lanes values) { return (Lanes)((Words)values & 0x7FFFFFFF); }

Words mixed(Words x) {  // the finaliser of masks.py
    x = (x ^ x >> 16) * 0x7FEB352D;
    x = (x ^ x >> 15) * 0x846CA68B;
    return x ^ x >> 16;
}

// Hand each vector of a task vector to `use` with its position, with what `della.RankedDrop` leaves of it.
template <Ranking HOW, class Vector, class Use>
void for_ranked(Vector vector, int64_t vectors, const Factors& factors, int64_t i, int64_t at, const Ranks& ranks,
                Use use) {
    const uint32_t low = factors.of(KEY_LOW, i), high = factors.of(KEY_HIGH, i);
    const float slope = factors.of(LEAST, i), least = factors.of(MOST, i);
    Words index = Words{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15} + (factors.of(START, i) + uint32_t(at));
    for (int64_t j = 0; j < vectors; ++j, index += uint32_t(WIDTH)) {
        const Lanes kept = ranks.of(at + j * WIDTH) * slope + least;
        const Lanes bits = __builtin_convertvector(mixed(mixed(index ^ low) ^ high) >> 8, Lanes);
        const Lanes left = vector(j) * (bits < (1.0f - kept) * STEPS ? all(0) : all(1));
        if constexpr (HOW == RANKED_AND_DIVIDED) use(j, left / (kept == 0.0f ? all(1) : kept));
        else if constexpr (HOW == RANKED_AND_MATCHED) use(j, left / factors.of(DIVISOR, i) * factors.of(FACTOR, i));
        else use(j, left);
    }
}

// Hand each vector of a source's task vector, masked and rescaled, to `use` with its position in the chunk that begins
// at element `at`.
template <class Use>
void for_masked(const float* source, const float* origin, int64_t vectors, const Factors& factors, int64_t i,
                int64_t at, Ranking ranking, const Ranks* ranks, Use use) {
    const auto vector = [=](int64_t j) { return lanes(source + j * WIDTH) - lanes(origin + j * WIDTH); };
    switch (ranking) {
        case RANKED: return for_ranked<RANKED>(vector, vectors, factors, i, at, ranks[i], use);
        case RANKED_AND_DIVIDED: return for_ranked<RANKED_AND_DIVIDED>(vector, vectors, factors, i, at, ranks[i], use);
        case RANKED_AND_MATCHED: return for_ranked<RANKED_AND_MATCHED>(vector, vectors, factors, i, at, ranks[i], use);
        case UNRANKED: break;
    }
    const uint32_t limit = factors.of(LIMIT, i), low = factors.of(KEY_LOW, i), high = factors.of(KEY_HIGH, i);
    const float divisor = factors.of(DIVISOR, i), factor = factors.of(FACTOR, i);
    if (limit == 0 && divisor == 1 && factor == 1) {
        for (int64_t j = 0; j < vectors; ++j) use(j, vector(j));
        return;
    }
    Words index = Words{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15} + (factors.of(START, i) + uint32_t(at));
    for (int64_t j = 0; j < vectors; ++j, index += uint32_t(WIDTH)) {
        const Words bits = mixed(mixed(index ^ low) ^ high) >> 8;  // masks (1) to (3)
        const Lanes kept = bits < limit ? all(0) : all(1);         // masks (4)
        use(j, vector(j) * kept / divisor * factor);               // DARE (1)
    }
}

// What TIES (5) makes of the trimmed vectors of all sources, which are VECTORS apart.
template <Aggregation HOW>
Lanes aggregated(const Lanes* trimmed, const Factors& factors, Lanes sign) {
    Lanes merged = all(0), divisor = all(0);
    for (int64_t i = 0; i < factors.count; ++i) {
        const Lanes each = trimmed[i * VECTORS], sized = each * sign;
        if constexpr (HOW == DIS_MAX) merged = sized > merged ? sized : merged;
        else merged += sized > 0.0f ? each : all(0);
        if constexpr (HOW == DIS_MEAN_BY_COUNT) divisor += sized > 0.0f ? all(1) : all(0);
        if constexpr (HOW == DIS_MEAN_BY_NORM) divisor += sized > 0.0f ? all(factors.of(WEIGHT, i)) : all(0);
    }
    if constexpr (HOW == DIS_MAX) return merged * sign;
    if constexpr (HOW == DIS_MEAN_BY_COUNT) return merged / (divisor > 1.0f ? divisor : all(1));
    if constexpr (HOW == DIS_MEAN_BY_NORM) return merged / (magnitude(divisor) < 1e-8f ? all(1) : divisor);
    return merged;
}

// The sum of the signs of the trimmed vectors.
Lanes counted(const Lanes* trimmed, int64_t count) {
    Lanes total = all(0);
    for (int64_t i = 0; i < count; ++i) {
        const Lanes each = trimmed[i * VECTORS];
        total += each < 0.0f ? all(-1) : each > 0.0f ? all(1) : all(0);
    }
    return total;
}

// Merge a chunk from its trimmed vectors and their sums. Returns the votes.
template <Aggregation HOW>
Lanes elect(const Lanes* trimmed, const Lanes* sums, bool by_count, const Factors& factors, const float* origin,
            int64_t vectors, float* merged) {
    const float scale = factors.of(LAMBDA, 0), zero_sign = factors.of(ZERO_SIGN, 0);
    Lanes votes = all(0);
    for (int64_t j = 0; j < vectors; ++j) {
        const Lanes total = by_count ? counted(trimmed + j, factors.count) : sums[j];
        Lanes vote = total < 0.0f ? all(-1) : total > 0.0f ? all(1) : total;
        vote = sums[j] == sums[j] ? vote : sums[j];               // counting loses the NaN
        const Lanes sign = vote == 0.0f ? all(zero_sign) : vote;  // TIES (4)
        store(aggregated<HOW>(trimmed + j, factors, sign) * scale + 0.0f + lanes(origin + j * WIDTH),  // TIES (6)
              merged + j * WIDTH);
        votes += vote;
    }
    return votes;
}

constexpr decltype(&elect<DIS_SUM>) ELECTIONS[] = {elect<DIS_MAX>, elect<DIS_SUM>, elect<DIS_MEAN_BY_COUNT>,
                                                   elect<DIS_MEAN_BY_NORM>};

// Round to the 16-bit type of an output, and widen again.
void narrow(float* values, int64_t size, uint16_t* written) {
    for (int64_t j = 0; j < size; ++j) {
        written[j] = rounded(values[j]);
        values[j] = std::bit_cast<float>(uint32_t(written[j]) << 16);
    }
}

}  // namespace

extern "C" {

// Write the elements [start, stop), whole vectors, of the merged tensor. Returns what `KernelKind.run` does.
float write_rule(const Model* base, const Model* sources, const Ranks* ranks, int64_t count, const float* numbers,
                 const uint32_t* words, const Rule* rule, int64_t start, int64_t stop, const Model* out) {
    const Factors factors{numbers, words, count};
    const std::unique_ptr<Lanes[]> trimmed(new Lanes[count * VECTORS]);
    alignas(Lanes) float base_scratch[CHUNK], scratch[CHUNK], wide[CHUNK];
    Lanes sums[VECTORS], votes = all(0);
    Words largest = {};
    const auto ranking = Ranking(rule->ranking);
    for (int64_t at = start; at < stop; at += CHUNK) {
        const int64_t size = std::min(CHUNK, stop - at), vectors = size / WIDTH;
        const float* origin = elements(*base, at, size, base_scratch);
        for (int64_t i = 0; i < count; ++i) {
            const float* source = elements(sources[i], at, size, scratch);
            const float weight = factors.of(WEIGHT, i), threshold = factors.of(THRESHOLD, i);
            const auto trim = [&sums, weight, threshold, i, row = &trimmed[i * VECTORS]](int64_t j, Lanes vector) {
                row[j] = (magnitude(vector) < threshold ? all(0) : vector) * weight;  // TIES (1), (2)
                sums[j] = i == 0 ? row[j] : sums[j] + row[j];                          // TIES (3)
            };
            const auto add = [&sums, weight, i](int64_t j, Lanes vector) {
                sums[j] = i == 0 ? vector * weight : sums[j] + vector * weight;
            };
            if (rule->is_election) for_masked(source, origin, vectors, factors, i, at, ranking, ranks, trim);
            else for_masked(source, origin, vectors, factors, i, at, ranking, ranks, add);
        }
        float* merged = out->is_wide ? static_cast<float*>(const_cast<void*>(out->data)) + at : wide;
        if (rule->is_election) {
            const auto elect = ELECTIONS[rule->aggregation];
            votes += elect(trimmed.get(), sums, rule->elects_by_count, factors, origin, vectors, merged);
        } else
            for (int64_t j = 0; j < vectors; ++j) {
                const Lanes sum = rule->is_scaled ? sums[j] * factors.of(LAMBDA, 0) : sums[j];
                store(sum + lanes(origin + j * WIDTH), merged + j * WIDTH);
            }
        if (!out->is_wide) narrow(merged, size, static_cast<uint16_t*>(const_cast<void*>(out->data)) + at);
        for (int64_t j = 0; j < vectors; ++j) {
            const Words bits = (Words)magnitude(lanes(merged + j * WIDTH));
            largest = bits > largest ? bits : largest;
        }
    }
    uint32_t most = 0;
    float balance = 0;
    for (int64_t k = 0; k < WIDTH; ++k) {
        most = std::max(most, largest[k]);
        balance += votes[k];
    }
    return rule->is_election && most < INFINITY_BITS ? balance : std::bit_cast<float>(most);
}

// Write the magnitudes of the elements [start, stop), whole vectors, of one masked task vector that is not rescaled.
void write_magnitudes(const Model* base, const Model* source, const Ranks* ranks, const float* numbers,
                      const uint32_t* words, int64_t ranking, int64_t start, int64_t stop, double* magnitudes) {
    typedef double Wide __attribute__((vector_size(WIDTH * sizeof(double))));
    const Factors factors{numbers, words, 1};
    alignas(Lanes) float base_scratch[CHUNK], scratch[CHUNK];
    for (int64_t at = start; at < stop; at += CHUNK) {
        const int64_t size = std::min(CHUNK, stop - at);
        const float* origin = elements(*base, at, size, base_scratch);
        const float* moved = elements(*source, at, size, scratch);
        double* out = magnitudes + (at - start);
        const auto write = [out](int64_t j, Lanes left) {
            const Wide wide = __builtin_convertvector(magnitude(left), Wide);
            std::memcpy(out + j * WIDTH, &wide, sizeof(wide));
        };
        for_masked(moved, origin, size / WIDTH, factors, 0, at, Ranking(ranking), ranks, write);
    }
}

// The sum of the values, which are overwritten, in the order of `sums.ordered_sum`.
double sum_by_halves(double* values, int64_t count) {
    while (count > 1) {
        const int64_t half = count / 2;
        for (int64_t i = 0; i < half; ++i) values[i] += values[half + i];
        if (count % 2) values[half] = values[2 * half];
        count = half + count % 2;
    }
    return count ? values[0] : 0.0;
}
}

// The parts of a training step that torch has no fast operator for: exact selection of the active latents, and the
// arithmetic on nothing but them. hsae/kernels.py compiles this file and says what each function does to which tensors.
//
// Every sum is taken in an order that does not depend on the number of threads, nor on their timing.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <vector>
#include <omp.h>
#ifdef __AVX2__
#include <immintrin.h>
#endif

using std::int32_t;
using std::int64_t;

namespace {

// As many floats as a register holds: longer vectors would lie in memory, and arrays of floats do.
#ifdef __AVX512F__
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif
constexpr int COLUMNS = 64, VECTORS = COLUMNS / LANES;
typedef float Vector __attribute__((vector_size(4 * LANES)));
typedef float Unaligned __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

// COLUMNS coordinates of a row.
struct Tile {
  Vector parts[VECTORS] = {};

  void add(float a, const Tile& w) {
    for (int v = 0; v < VECTORS; v++) parts[v] += a * w.parts[v];
  }

  void add(const Tile& a, const Tile& b) {
    for (int v = 0; v < VECTORS; v++) parts[v] += a.parts[v] * b.parts[v];
  }

  float sum() const {
    Vector all = {};
    for (int v = 0; v < VECTORS; v++) all += parts[v];
    float total = 0;
    for (int i = 0; i < LANES; i++) total += all[i];
    return total;
  }
};

// Where a tile's coordinates lie in a row: all of them, or, at a row's end, the first `width`, the others being 0.
struct Whole {
  Tile load(const float* from) const {
    Tile tile;
    for (int v = 0; v < VECTORS; v++) tile.parts[v] = *(const Unaligned*)(from + LANES * v);
    return tile;
  }

  void store(const Tile& tile, float* to) const {
    for (int v = 0; v < VECTORS; v++) *(Unaligned*)(to + LANES * v) = tile.parts[v];
  }
};

struct Part {
  int64_t width;

  Tile load(const float* from) const {
    Tile tile;
    std::memcpy(tile.parts, from, width * sizeof(float));
    return tile;
  }

  void store(const Tile& tile, float* to) const { std::memcpy(to, tile.parts, width * sizeof(float)); }
};

// Calls work(c, where) for the tiles of rows of d coordinates, c being each one's first.
template <class Work>
inline void for_tiles(int64_t d, Work work) {
  int64_t c = 0;
  for (; c + COLUMNS <= d; c += COLUMNS) work(c, Whole());
  if (c < d) work(c, Part{d - c});
}

// Entries of one row, written one after the other.
struct Writer {
  int32_t* latents;
  float* values;
  int64_t n = 0;

  void add(int32_t latent, float value) {
    latents[n] = latent;
    values[n] = value;
    n++;
  }
};

// Appends the j in [0, n) with z[j] above its bound (BOUNDS: one for each; else bound[0] for all), in ascending order.
template <bool BOUNDS>
inline void above(const float* z, int64_t n, const float* bound, Writer& out) {
  int64_t j = 0;
#ifdef __AVX512F__
  // No branches, which could not be foreseen. What is written beyond the entries found lies within the first n places.
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  for (; j + 16 <= n; j += 16) {
    const __m512 values = _mm512_loadu_ps(z + j);
    const __m512 at = BOUNDS ? _mm512_loadu_ps(bound + j) : _mm512_set1_ps(*bound);
    const __mmask16 found = _mm512_cmp_ps_mask(values, at, _CMP_GT_OQ);
    const __m512i latents = _mm512_add_epi32(lanes, _mm512_set1_epi32(j));
    _mm512_storeu_ps(out.values + out.n, _mm512_maskz_compress_ps(found, values));
    _mm512_storeu_si512(out.latents + out.n, _mm512_maskz_compress_epi32(found, latents));
    out.n += __builtin_popcount(found);
  }
#elif defined(__AVX2__)
  for (; j + 8 <= n; j += 8) {
    const __m256 at = BOUNDS ? _mm256_loadu_ps(bound + j) : _mm256_set1_ps(*bound);
    uint32_t found = _mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(z + j), at, _CMP_GT_OQ));
    for (; found; found &= found - 1) out.add(j + __builtin_ctz(found), z[j + __builtin_ctz(found)]);
  }
#endif
  for (; j < n; j++)
    if (z[j] > bound[BOUNDS ? j : 0]) out.add(j, z[j]);
}

inline int32_t bits(float value) {
  int32_t as_integer;
  std::memcpy(&as_integer, &value, sizeof value);
  return as_integer;
}

// Among n positive values a bound that k of them reach, k < n; or, if others equal the k-th largest, that one.
// By bisection: positive floats are ordered as the integers of their bits.
inline float kth_largest(const float* values, int64_t n, int64_t k) {
  int32_t low = bits(values[0]), high = low;
  for (int64_t i = 0; i < n; i++) low = std::min(low, bits(values[i])), high = std::max(high, bits(values[i]));
  high++;  // all reach low, none reaches high
  while (high - low > 1) {
    const int32_t middle = low + (high - low) / 2;
    int32_t n_above = 0;
    for (int64_t i = 0; i < n; i++) n_above += bits(values[i]) >= middle;
    if (n_above >= k) low = middle;
    if (n_above == k) break;
    if (n_above < k) high = middle;
  }
  float bound;
  std::memcpy(&bound, &low, sizeof bound);
  return bound;
}

// Appends the k largest positive ones of z[0..n), of equal ones those of lower latents. `guess` is about the least of
// them in the row before, near which the search starts.
inline void top_k(const float* z, int64_t n, int64_t k, float& guess, Writer& out) {
  const int64_t first = out.n;
  for (float bound = 0.85f * guess;; bound = bound > 0.1f * guess ? 0.5f * bound : 0) {
    out.n = first;
    above<false>(z, n, &bound, out);
    if (out.n - first >= k || bound == 0) break;
  }
  const int64_t n_found = out.n - first;
  if (n_found <= k) return;
  float* values = out.values + first;
  const float least = guess = kth_largest(values, n_found, k);
  int64_t n_equal = k;  // how many of those that equal the least belong to it
  for (int64_t i = 0; i < n_found; i++) n_equal -= values[i] > least;
  out.n = first;
  for (int64_t i = 0; i < n_found; i++) {
    const bool kept = values[i] > least || (values[i] == least && n_equal-- > 0);
    out.latents[out.n] = out.latents[first + i];
    out.values[out.n] = values[i];
    out.n += kept;
  }
}

// Rows [begin, end) of thread `t` of `n_threads`.
inline void share(int64_t n, int t, int n_threads, int64_t& begin, int64_t& end) {
  begin = n * t / n_threads;
  end = n * (t + 1) / n_threads;
}

// Let what `make` makes write each row's entries; those of a thread's share lie together, from d_sae times its first row.
template <class Select>
void select_rows(const float* z, int64_t first, int64_t rows, int64_t d_sae, int64_t* start, int32_t* count,
                 int32_t* latents, float* values, Select make) {
#pragma omp parallel
  {
    int64_t begin, end;
    share(rows, omp_get_thread_num(), omp_get_num_threads(), begin, end);
    int64_t at = (first + begin) * d_sae;
    auto select = make();
    for (int64_t r = begin; r < end; r++) {
      Writer out{latents + at, values + at};
      select(z + r * d_sae, out);
      start[first + r] = at;
      count[first + r] = out.n;
      at += out.n;
    }
  }
}

}  // namespace

extern "C" {

void select_above(const float* z, int64_t first, int64_t rows, int64_t d_sae, const float* bound, int64_t* start,
                  int32_t* count, int32_t* latents, float* values) {
  select_rows(z, first, rows, d_sae, start, count, latents, values, [=] {
    return [=](const float* z, Writer& out) {
      above<true>(z, d_sae, bound, out);
    };
  });
}

void select_top_k(const float* z, int64_t first, int64_t rows, int64_t d_sae, int64_t k, int64_t* start,
                  int32_t* count, int32_t* latents, float* values) {
  select_rows(z, first, rows, d_sae, start, count, latents, values, [=] {
    return [=, guess = 0.0f](const float* z, Writer& out) mutable {
      top_k(z, d_sae, k, guess, out);
    };
  });
}

void select_gated(const float* z, int64_t first, int64_t rows, int64_t d_sae, int64_t k_parents, int64_t n_families,
                  int64_t n_children, int64_t* start, int32_t* count, int32_t* latents, float* values) {
  const int64_t n_parents = d_sae - n_families * n_children;
  select_rows(z, first, rows, d_sae, start, count, latents, values, [=] {
    return [=, guess = 0.0f](const float* z, Writer& out) mutable {
      top_k(z, n_parents, k_parents, guess, out);
      const int64_t n = out.n;
      for (int64_t i = 0; i < n && out.latents[i] < n_families; i++) {
        const int64_t family = n_parents + out.latents[i] * n_children;
        int64_t best = family;
        for (int64_t c = family + 1; c < family + n_children; c++)
          if (z[c] > z[best]) best = c;
        if (z[best] > 0) out.add(best, z[best]);
      }
    };
  });
}

// The n-th largest value of all entries; 0, if there are not more. Values of a bucket share their leading bits: exponent
// and four of the mantissa.
float nth_largest(int64_t rows, int64_t n, const int64_t* start, const int32_t* count, const float* values) {
  constexpr int TRAILING = 19;
  std::vector<int64_t> sizes(1 << (31 - TRAILING));
  const auto total = std::accumulate(count, count + rows, int64_t(0));
  float cutoff = 0;
  if (total > n) {
#pragma omp parallel
    {
      std::vector<int64_t> own(sizes.size());
#pragma omp for schedule(static) nowait
      for (int64_t r = 0; r < rows; r++)
        for (int64_t i = start[r]; i < start[r] + count[r]; i++) own[bits(values[i]) >> TRAILING]++;
#pragma omp critical
      for (size_t b = 0; b < sizes.size(); b++) sizes[b] += own[b];
    }
    int64_t bucket = sizes.size() - 1, above = 0;
    for (; above + sizes[bucket] < n; bucket--) above += sizes[bucket];
    std::vector<float> within;
#pragma omp parallel
    {
      std::vector<float> own;
#pragma omp for schedule(static) nowait
      for (int64_t r = 0; r < rows; r++)
        for (int64_t i = start[r]; i < start[r] + count[r]; i++)
          if (bits(values[i]) >> TRAILING == bucket) own.push_back(values[i]);
#pragma omp critical
      within.insert(within.end(), own.begin(), own.end());
    }
    std::nth_element(within.begin(), within.begin() + (n - above - 1), within.end(), std::greater<float>());
    cutoff = within[n - above - 1];
  }
  return cutoff;
}

// Keep of all entries those of at least the cutoff.
void keep_from(int64_t rows, float cutoff, const int64_t* start, int32_t* count, int32_t* latents, float* values) {
#pragma omp parallel for schedule(static)
  for (int64_t r = 0; r < rows; r++) {
    const int64_t from = start[r];
    int32_t kept = 0;
    for (int32_t i = 0; i < count[r]; i++)
      if (values[from + i] >= cutoff) {
        latents[from + kept] = latents[from + i];
        values[from + kept] = values[from + i];
        kept++;
      }
    count[r] = kept;
  }
}

// For each row the reconstructions x_hat from the active latents of nested prefixes [0, ends[p]). gradients[p] becomes
// scale times the error x_hat - x, summed over prefixes p and later ones; entry_gradients that of each entry's
// activation, plus `price`. Returns the sum of squared errors over rows, coordinates and prefixes.
double decode(const float* x, int64_t rows, int64_t d, const float* W_dec, const float* b_dec, int64_t n_prefixes,
              const int64_t* ends, float scale, float price, const float* least, const int64_t* start,
              const int32_t* count, const int32_t* latents, const float* values, float* entry_gradients,
              float* gradients) {
  std::vector<double> squares(rows);
#pragma omp parallel for schedule(static)
  for (int64_t r = 0; r < rows; r++) {
    const int32_t* own = latents + start[r];
    const float* acts = values + start[r];
    const int32_t n = count[r];
    double total = 0;
    for_tiles(d, [&](int64_t c, auto where) {
      Tile error = where.load(b_dec + c);
      error.add(-1, where.load(x + r * d + c));
      int32_t i = 0;
      for (int64_t p = 0; p < n_prefixes; p++) {
        for (; i < n && own[i] < ends[p]; i++)
          if (acts[i] > least[own[i]]) error.add(acts[i], where.load(W_dec + own[i] * d + c));
        Tile square, gradient;
        square.add(error, error);
        gradient.add(scale, error);
        where.store(gradient, gradients + (p * rows + r) * d + c);
        total += square.sum();
      }
    });
    squares[r] = total;
    for (int64_t p = n_prefixes - 2; p >= 0; p--) {
      float* g = gradients + (p * rows + r) * d;
      for (int64_t j = 0; j < d; j++) g[j] += g[rows * d + j];
    }
    int64_t p = 0;
    for (int32_t i = 0; i < n; i++) {
      while (own[i] >= ends[p]) p++;
      const float* g = gradients + (p * rows + r) * d;
      const float* w = W_dec + own[i] * d;
      Tile dot;
      for_tiles(d, [&](int64_t c, auto where) { dot.add(where.load(g + c), where.load(w + c)); });
      entry_gradients[start[r] + i] = dot.sum() + price;
    }
  }
  return std::accumulate(squares.begin(), squares.end(), 0.0);
}

// Sort the entries by latent, and by row within one: `where` says where each latent's begin, `entries` which they are,
// `row` to which row each belongs.
void by_latent(int64_t rows, int64_t d_sae, const int64_t* start, const int32_t* count, const int32_t* latents,
               int64_t* where, int64_t* entries, int32_t* row) {
  std::vector<int64_t> next;  // of each thread's share of the rows and each latent: its number, then its next place
#pragma omp parallel
  {
    const int t = omp_get_thread_num(), n_threads = omp_get_num_threads();
    int64_t begin, end;
    share(rows, t, n_threads, begin, end);
#pragma omp single
    next.assign(n_threads * d_sae, 0);
    int64_t* own = next.data() + t * d_sae;
    for (int64_t r = begin; r < end; r++)
      for (int64_t i = start[r]; i < start[r] + count[r]; i++) own[latents[i]]++;
#pragma omp barrier
#pragma omp single
    {
      int64_t total = 0;
      for (int64_t l = 0; l < d_sae; l++) {
        where[l] = total;
        for (int u = 0; u < n_threads; u++) {
          const int64_t n = next[u * d_sae + l];
          next[u * d_sae + l] = total;
          total += n;
        }
      }
      where[d_sae] = total;
    }
    for (int64_t r = begin; r < end; r++)
      for (int64_t i = start[r]; i < start[r] + count[r]; i++) {
        const int64_t at = own[latents[i]]++;
        entries[at] = i;
        row[at] = r;
      }
  }
}

// Number of each latent's active entries and the sum of their activations; returns the sum of their squares.
double activity(int64_t d_sae, const int64_t* where, const int64_t* entries, const float* values, const float* least,
                int32_t* n_active, float* sums) {
  std::vector<double> squares(d_sae);
#pragma omp parallel for schedule(dynamic, 16)
  for (int64_t l = 0; l < d_sae; l++) {
    int32_t n = 0;
    float sum = 0;
    double square = 0;
    for (int64_t e = where[l]; e < where[l + 1]; e++) {
      const float a = values[entries[e]];
      if (a > least[l]) n++, sum += a, square += (double)a * a;
    }
    n_active[l] = n;
    sums[l] = sum;
    squares[l] = square;
  }
  return std::accumulate(squares.begin(), squares.end(), 0.0);
}

// Of each latent the sum of its active entries' gradients; of those within half_width of the threshold, relatively, the
// sum of the gradients and their number.
void thresholds(int64_t d_sae, const int64_t* where, const int64_t* entries, const float* values,
                const float* entry_gradients, const float* least, float half_width, float* active, float* near,
                int32_t* n_near) {
#pragma omp parallel for schedule(dynamic, 16)
  for (int64_t l = 0; l < d_sae; l++) {
    float sum = 0, near_sum = 0;
    int32_t n = 0;
    for (int64_t e = where[l]; e < where[l + 1]; e++) {
      const float a = values[entries[e]], g = entry_gradients[entries[e]];
      if (a > least[l]) sum += g;
      if (std::fabs(a - least[l]) < half_width * least[l]) n++, near_sum += g;
    }
    active[l] = sum;
    near[l] = near_sum;
    n_near[l] = n;
  }
}

// Of each latent the sum over its active entries of weight times that row of `matrix`, minus bias[l] * shift.
// Latents from ends[p - 1] to ends[p] use the p-th matrix.
void weighted_rows(const float* matrix, int64_t rows, int64_t d, int64_t d_sae, const int64_t* ends, const int64_t*
                   where, const int64_t* entries, const int32_t* row, const float* values, const float* least, const
                   float* weights, const float* bias, const float* shift, float* out) {
#pragma omp parallel for schedule(dynamic, 8)
  for (int64_t l = 0; l < d_sae; l++) {
    int64_t p = 0;
    while (l >= ends[p]) p++;
    const float* own = matrix + p * rows * d;
    for_tiles(d, [&](int64_t c, auto at) {
      Tile sum;
      for (int64_t e = where[l]; e < where[l + 1]; e++)
        if (values[entries[e]] > least[l]) sum.add(weights[entries[e]], at.load(own + row[e] * d + c));
      if (bias) sum.add(-bias[l], at.load(shift + c));
      at.store(sum, out + l * d + c);
    });
  }
}

// Gradients of z from those of relu(z) = acts, in place, with the constant of the L1 term; adds each latent's to
// `gradient_sums`, its activations to `sums`, and its active rows to `n_active`.
void relu_backward(const float* acts, float* gradients, int64_t rows, int64_t d_sae, float l1, float* gradient_sums,
                   float* sums, int32_t* n_active) {
#pragma omp parallel
  {
    int64_t begin, end;
    share(d_sae, omp_get_thread_num(), omp_get_num_threads(), begin, end);
    for (int64_t r = 0; r < rows; r++) {
      const float* a = acts + r * d_sae;
      float* g = gradients + r * d_sae;
#pragma omp simd
      for (int64_t j = begin; j < end; j++) {
        const bool active = a[j] != 0;
        const float own = active ? g[j] + l1 : 0.0f;
        g[j] = own;
        gradient_sums[j] += own;
        sums[j] += a[j];
        n_active[j] += active;
      }
    }
  }
}

// Memberships A[i, g] = W[i, g]^4 / sum_g W[i, g]^4 from the transposed decoder W [d1, d2] of the upper level. W becomes
// W / scale, where scale[i] is the largest of its row; A = norm times the fourth power of that.
void membership(int64_t d1, int64_t d2, float* W, float* scale, float* norm, float* A) {
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < d1; i++) {
    float *w = W + i * d2, *a = A + i * d2, largest = 1e-8f, sum = 0;
    for (int64_t g = 0; g < d2; g++) largest = std::max(largest, w[g]);
    const float inverse = 1 / largest;
    for (int64_t g = 0; g < d2; g++) {
      w[g] *= inverse;
      a[g] = (w[g] * w[g]) * (w[g] * w[g]);
      sum += a[g];
    }
    scale[i] = largest;
    norm[i] = 1 / std::max(sum, 1e-8f);
    for (int64_t g = 0; g < d2; g++) a[g] *= norm[i];
  }
}

// From the gradient of A, A_grad + alpha * A + beta * columns, that of the transposed decoder, in place of A_grad.
void membership_backward(int64_t d1, int64_t d2, const float* W, const float* scale, const float* norm, const float* A,
                         float alpha, float beta, const float* columns, float* A_grad) {
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < d1; i++) {
    const float *w = W + i * d2, *a = A + i * d2, factor = 4 * norm[i] / scale[i];
    float *g = A_grad + i * d2, mean = 0;
    for (int64_t j = 0; j < d2; j++) {
      g[j] += alpha * a[j] + beta * columns[j];
      mean += g[j] * a[j];
    }
    for (int64_t j = 0; j < d2; j++) g[j] = factor * (g[j] - mean) * ((w[j] * w[j]) * w[j]);
  }
}

// The upper level reads h1 as entries (`start` to `least`). For each row:
//   z = offset + h1 W_enc;  dots = h1 W_dec^T;
//   roots[g] = group_factor / sqrt(sum_i A[i, g] h1_i^2), 0 where that is silent;
//   covered[g] = sum over active i of A[i, g] * share[i];
//   with thresholds: parents = clamp(z / threshold, 0, 1), and dz = cover_factor * covered / threshold on the ramp, else 0.
// Returns the sum of the square roots.
double upper_forward(int64_t rows, int64_t d2, const int64_t* start, const int32_t* count, const int32_t* latents,
                     const float* values, const float* least, const float* W_enc, const float* W, const float* scale,
                     const float* norm, const float* share, const float* offset, float group_factor,
                     const float* threshold, float cover_factor, float* z, float* dots, float* roots, float* covered,
                     float* parents, float* dz) {
  std::vector<double> norms(rows);
#pragma omp parallel for schedule(static)
  for (int64_t r = 0; r < rows; r++) {
    for_tiles(d2, [&](int64_t c, auto where) {
      Tile pre = where.load(offset + c), dot, square, cover;
      for (int64_t e = start[r]; e < start[r] + count[r]; e++) {
        const int64_t i = latents[e];
        const float a = values[e];
        if (a <= least[i]) continue;
        const Tile w = where.load(W + i * d2 + c);
        Tile w2, w4;
        w2.add(w, w);
        w4.add(w2, w2);
        pre.add(a, where.load(W_enc + i * d2 + c));
        dot.add(a * scale[i], w);
        square.add(a * a * norm[i], w4);
        cover.add(share[i] * norm[i], w4);
      }
      const int64_t at = r * d2 + c;
      where.store(pre, z + at);
      where.store(dot, dots + at);
      where.store(cover, covered + at);
      where.store(square, roots + at);
    });
    float sum_of_roots = 0;
    for (int64_t j = r * d2; j < (r + 1) * d2; j++) {
      // The square root has no gradient at 0, where a group is silent.
      const float root = roots[j] > 1e-12f ? std::sqrt(roots[j]) : 0.0f;
      roots[j] = roots[j] > 1e-12f ? group_factor / root : 0.0f;
      sum_of_roots += root;
    }
    if (threshold)
      for (int64_t j = 0; j < d2; j++) {
        const int64_t at = r * d2 + j;
        const float inverse = 1 / threshold[j], near = z[at] * inverse;
        parents[at] = std::min(std::max(near, 0.0f), 1.0f);
        dz[at] = near >= 0 && near <= 1 ? cover_factor * covered[at] * inverse : 0.0f;
      }
    norms[r] = sum_of_roots;
  }
  return std::accumulate(norms.begin(), norms.end(), 0.0);
}

// sums[j] = sum over rows of a[r, j] * b[r, j].
void column_dots(int64_t rows, int64_t d, const float* a, const float* b, float* sums) {
#pragma omp parallel
  {
    int64_t begin, end;
    share(d, omp_get_thread_num(), omp_get_num_threads(), begin, end);
    std::fill(sums + begin, sums + end, 0.0f);
    for (int64_t r = 0; r < rows; r++)
#pragma omp simd
      for (int64_t j = begin; j < end; j++) sums[j] += a[r * d + j] * b[r * d + j];
  }
}

// Writes h2 [rows, d2] in full. Adds to each entry's gradient scale * <h1_hat - h1, its decoder row>, from gram = W_dec
// W_dec^T, bias = W_dec b_dec and dots = h1 W_dec^T, and of active entries the whole to dz. Without thresholds, `parents`
// says which are active. Returns the sum over active entries of h2_j (<h1_hat, W_j> + bias_j - 2 dots_j).
double upper_entries(int64_t rows, int64_t d2, const int64_t* start, const int32_t* count, const int32_t* latents,
                     const float* values, const float* least, const float* gram, const float* bias, const float* dots,
                     float scale, float* entry_gradients, float* dz, float* h2, float* parents) {
  std::vector<double> sums(rows);
#pragma omp parallel
  {
    std::vector<float> reconstructed(d2);
    float* v = reconstructed.data();
#pragma omp for schedule(static)
    for (int64_t r = 0; r < rows; r++) {
      double total = 0;
      std::fill(h2 + r * d2, h2 + (r + 1) * d2, 0.0f);
      if (parents) std::fill(parents + r * d2, parents + (r + 1) * d2, 0.0f);
      for (int64_t e = start[r]; e < start[r] + count[r]; e++) {
        const int64_t j = latents[e];
        if (values[e] <= least[j]) continue;
        h2[r * d2 + j] = values[e];
        if (parents) parents[r * d2 + j] = 1;
      }
      for_tiles(d2, [&](int64_t c, auto where) {
        Tile sum = where.load(bias + c);
        for (int64_t e = start[r]; e < start[r] + count[r]; e++)
          if (values[e] > least[latents[e]]) sum.add(values[e], where.load(gram + latents[e] * d2 + c));
        where.store(sum, v + c);
      });
      for (int64_t e = start[r]; e < start[r] + count[r]; e++) {
        const int64_t j = latents[e];
        const float dot = dots[r * d2 + j], g = entry_gradients[e] += scale * (v[j] - dot);
        if (values[e] <= least[j]) continue;
        total += (double)values[e] * (v[j] + bias[j] - 2 * dot);
        dz[r * d2 + j] += g;
      }
      sums[r] = total;
    }
  }
  return std::accumulate(sums.begin(), sums.end(), 0.0);
}

// Of each level-1 latent i the sums over its active entries of h_i dz - b_dec[i] * b_enc_grad (W_enc_grad), h_i h2 (products)
// and h_i^2 roots / 2 + factor * share[i] * parents (A_grad).
void upper_accumulate(int64_t d1, int64_t d2, const int64_t* where, const int64_t* entries, const int32_t* row,
                      const float* values, const float* least, const float* share, float factor, const float* dz,
                      const float* roots, const float* parents, const float* h2, const float* b_dec,
                      const float* b_enc_grad, float* W_enc_grad, float* products, float* A_grad) {
#pragma omp parallel for schedule(dynamic, 8)
  for (int64_t i = 0; i < d1; i++) {
    for_tiles(d2, [&](int64_t c, auto at) {
      Tile enc, product, group;
      for (int64_t e = where[i]; e < where[i + 1]; e++) {
        const float a = values[entries[e]];
        if (a <= least[i]) continue;
        const int64_t from = row[e] * d2 + c;
        enc.add(a, at.load(dz + from));
        product.add(a, at.load(h2 + from));
        group.add(0.5f * a * a, at.load(roots + from));
        group.add(factor * share[i], at.load(parents + from));
      }
      enc.add(-b_dec[i], at.load(b_enc_grad + c));
      const int64_t to = i * d2 + c;
      at.store(enc, W_enc_grad + to);
      at.store(product, products + to);
      at.store(group, A_grad + to);
    });
  }
}

// Adds to each level-1 entry's gradient what reaches it from above: down times <dz, W_enc[i]>, and 2 h_i sum_g A[i, g]
// times half of roots[g].
void upper_backward(int64_t rows, int64_t d2, const int64_t* start, const int32_t* count, const int32_t* latents,
                    const float* values, const float* least, const float* W_enc, const float* A, const float* dz,
                    const float* roots, float down, float* entry_gradients) {
#pragma omp parallel for schedule(static)
  for (int64_t r = 0; r < rows; r++) {
    const float *d = dz + r * d2, *s = roots + r * d2;
    for (int64_t e = start[r]; e < start[r] + count[r]; e++) {
      const int64_t i = latents[e];
      const float *we = W_enc + i * d2, *a = A + i * d2;
      Tile encoder, group;
      for_tiles(d2, [&](int64_t c, auto at) {
        encoder.add(at.load(d + c), at.load(we + c));
        group.add(at.load(s + c), at.load(a + c));
      });
      entry_gradients[e] += down * encoder.sum() + (values[e] > least[i] ? values[e] * group.sum() : 0.0f);
    }
  }
}

}  // extern "C"

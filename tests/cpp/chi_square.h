#pragma once

// Pearson's chi-square test of counts against an exact law, for tests of sampling.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

namespace pard::test {

// P(chi-square variate with `degrees` degrees of freedom > statistic): the regularised upper
// incomplete gamma function Q(degrees / 2, statistic / 2), by its power series below its mean and
// its continued fraction above.
inline double chi_square_p_value(double statistic, double degrees) {
  const double a = degrees / 2, x = statistic / 2;
  if (x <= 0) return 1.0;
  const double scale = std::exp(a * std::log(x) - x - std::lgamma(a));
  if (x < a + 1) {
    double term = 1 / a, sum = term;
    for (double n = a + 1; term > sum * 1e-16; ++n) sum += term *= x / n;
    return 1 - scale * sum;
  }
  // Q = scale / (x + 1 - a - 1(1 - a) / (x + 3 - a - 2(2 - a) / ...)), evaluated from the far end.
  double tail = 0;
  for (int n = 5000; n > 0; --n) tail = n * (n - a) / (x + 2 * n + 1 - a - tail);
  return scale / (x + 1 - a - tail);
}

// The p-value of `counts` under the law `probs` (one entry per cell). Cells expected fewer than
// five times are merged, rarest first; a count in an impossible cell gives 0.
inline double chi_square_test(const std::vector<std::int64_t>& counts,
                              const std::vector<double>& probs) {
  const auto num_samples =
      static_cast<double>(std::accumulate(counts.begin(), counts.end(), std::int64_t{0}));
  std::vector<std::pair<double, double>> cells;  // expected, observed
  for (std::size_t i = 0; i < counts.size(); ++i) {
    if (probs[i] > 0) {
      cells.emplace_back(num_samples * probs[i], static_cast<double>(counts[i]));
    } else if (counts[i] > 0) {
      return 0.0;
    }
  }
  std::sort(cells.begin(), cells.end());

  double statistic = 0, expected = 0, observed = 0, rest = num_samples;
  int num_cells = 0;
  for (const auto& [cell_expected, cell_observed] : cells) {
    expected += cell_expected;
    observed += cell_observed;
    rest -= cell_expected;
    if (expected < 5 && rest > 1) continue;
    statistic += (observed - expected) * (observed - expected) / expected;
    expected = observed = 0;
    ++num_cells;
  }
  return num_cells < 2 ? 1.0 : chi_square_p_value(statistic, num_cells - 1);
}

// The p-value of counts of token sequences under their exact joint law, both indexed by the sum of
// token[i] * vocab_size^i. The joint test sees any kind of error, that of each place's marginal law
// sees smaller ones: the least of their p-values, corrected for their number.
inline double sequence_test(const std::vector<std::int64_t>& counts,
                            const std::vector<double>& joint_law, std::size_t vocab_size) {
  double least = chi_square_test(counts, joint_law);
  int num_tests = 1;
  for (std::size_t place = 1; place < counts.size(); place *= vocab_size, ++num_tests) {
    std::vector<std::int64_t> token_counts(vocab_size);
    std::vector<double> law(vocab_size);
    for (std::size_t cell = 0; cell < counts.size(); ++cell) {
      token_counts[cell / place % vocab_size] += counts[cell];
      law[cell / place % vocab_size] += joint_law[cell];
    }
    least = std::min(least, chi_square_test(token_counts, law));
  }
  return std::min(1.0, least * num_tests);
}

}  // namespace pard::test

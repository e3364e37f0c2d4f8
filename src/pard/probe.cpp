#include "probe.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "pard/choose.h"
#include "pard/error.h"

namespace pard {

namespace {

constexpr std::int64_t num_past = 2;
constexpr SequenceId probe_sequence = std::numeric_limits<SequenceId>::max();

using Row = std::vector<float>;

Row copy_row(const LogitsRow& row) {
  Row copy(static_cast<std::size_t>(row.size));
  widen(row, copy.data());
  return copy;
}

// The probe's sequence, released at the end of the scope.
class Prober {
 public:
  explicit Prober(Model& model) : model_(model) {}
  ~Prober() { model_.release(probe_sequence); }
  Prober(const Prober&) = delete;
  Prober& operator=(const Prober&) = delete;

  std::vector<Row> forward(std::int64_t past, std::span<const Token> tokens) {
    const auto wanted = static_cast<std::int64_t>(tokens.size());
    const ForwardItem item{probe_sequence, past, tokens, wanted};
    const LogitsView logits = model_.forward(std::span(&item, 1));
    std::vector<Row> rows;
    for (std::int64_t row = 0; row < wanted; ++row) {
      rows.push_back(copy_row(logits.row(row)));
    }
    return rows;
  }

  double difference(const Row& a, const Row& b) {
    double most = 0;
    double scale = 0;
    for (std::size_t i = 0; i < a.size(); ++i) {
      if (a[i] == b[i] && std::isinf(a[i]) && a[i] < 0) continue;  // a token that is ruled out
      require_usable(a[i]);
      require_usable(b[i]);
      most = std::max(most, std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i])));
      scale = std::max(scale, std::abs(static_cast<double>(a[i])));
    }
    same_tokens_ = same_tokens_ && std::max_element(a.begin(), a.end()) - a.begin() ==
                                       std::max_element(b.begin(), b.end()) - b.begin();
    return most / std::max(scale, std::numeric_limits<double>::min());
  }

  bool same_tokens() const { return same_tokens_; }

 private:
  void require_usable(float logit) const {
    if (std::isfinite(logit)) return;
    throw LogitsError(
        {"Model '" + model_.info().name + "' returns logits from which no token can be chosen",
         "finite numbers, or -inf for the same tokens every time",
         std::isnan(logit) ? "NaN" : "an infinity",
         "The weights or the computation give it: check the weights, or use float32."});
  }

  Model& model_;
  bool same_tokens_ = true;
};

void require(const Model& model, const char* problem, double difference, double limit,
             const char* remedy) {
  if (difference > limit) {
    throw ModelError({"Model '" + model.info().name + "' " + problem,
                      "a difference of at most " + std::to_string(limit),
                      std::to_string(difference), remedy});
  }
}

}  // namespace

//   tokens    0 1 | 2 3 .. 1 + max_rows | one more, so that no row tried is the longest forward's
//                                       last
ProbeReport probe_model(Model& model, const ProbeLimits& limits, std::int64_t max_rows) {
  const std::int64_t num_tokens = model.info().token_count();
  if (max_rows > 0) max_rows = std::max<std::int64_t>(max_rows, 2);
  const std::int64_t room = model.info().max_length - num_past - 1;
  if (room < 2) return {};
  max_rows = std::min(max_rows, room);
  std::vector<Token> tokens;
  for (std::int64_t i = 0; i < num_past + std::max<std::int64_t>(max_rows, 1) + 1; ++i) {
    tokens.push_back(static_cast<Token>((i * 7919 + 13) % num_tokens));
  }
  const auto rows = std::span<const Token>(tokens).subspan(num_past);
  std::vector<Token> others(rows.begin(), rows.end());
  for (std::size_t i = 1; i < others.size(); ++i) {
    others[i] = static_cast<Token>((others[i] + num_tokens / 2 + 1) % num_tokens);
  }

  Prober prober(model);
  prober.forward(0, std::span<const Token>(tokens).first(num_past));
  const auto expected = prober.forward(num_past, rows);
  const auto most_different = [&](const std::vector<Row>& actual) {
    double most = 0;
    for (std::size_t i = 0; i < actual.size(); ++i) {
      most = std::max(most, prober.difference(expected[i], actual[i]));
    }
    return most;
  };

  ProbeReport report{.max_rows = max_rows, .rounding = limits.row_counts};
  report.rejected_rows = prober.difference(expected[0], prober.forward(num_past, others)[0]);
  report.rewinding = most_different(prober.forward(num_past, rows));
  for (std::int64_t count = 1; count <= max_rows; ++count) {
    const auto first = rows.first(static_cast<std::size_t>(count));
    report.row_counts =
        std::max(report.row_counts, most_different(prober.forward(num_past, first)));
  }
  if (max_rows > 0) {
    const auto alone = prober.forward(num_past + 1, rows.subspan(1, 1));  // after cached rows
    report.row_counts = std::max(report.row_counts, prober.difference(expected[1], alone[0]));
  }
  report.same_tokens = prober.same_tokens();

  require(model, "cannot be rewound", report.rewinding, limits.rewinding,
          "Its keys and values must lie where the folder's contract says: export it again.");
  require(model, "lets rejected tokens change the logits before them", report.rejected_rows,
          limits.rejected_rows,
          "Dynamic quantization does that; quantize the weights alone (int4 or int8).");
  require(model, "returns other logits for a row when it runs with other rows", report.row_counts,
          limits.row_counts, "Export it again, or open it with exact = true.");
  return report;
}

}  // namespace pard

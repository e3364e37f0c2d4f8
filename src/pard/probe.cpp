#include "probe.h"

#include <algorithm>
#include <array>
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

constexpr std::size_t num_past = 2;
constexpr std::size_t num_rows = 3;
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

  std::vector<Row> forward(std::size_t past, std::span<const Token> tokens) {
    const auto wanted = static_cast<std::int64_t>(tokens.size());
    const ForwardItem item{probe_sequence, static_cast<std::int64_t>(past), tokens, wanted};
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
      if (!std::isfinite(a[i]) || !std::isfinite(b[i])) {
        throw ModelError({"Model '" + model_.info().name + "' computes logits nobody can choose by",
                          "finite numbers, or -inf for the same tokens every time",
                          "NaN or an infinity", "Export it again, in float32."});
      }
      most = std::max(most, std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i])));
      scale = std::max(scale, std::abs(static_cast<double>(a[i])));
    }
    same_tokens_ = same_tokens_ && std::max_element(a.begin(), a.end()) - a.begin() ==
                                       std::max_element(b.begin(), b.end()) - b.begin();
    return most / std::max(scale, std::numeric_limits<double>::min());
  }

  bool same_tokens() const { return same_tokens_; }

 private:
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

ProbeReport probe_model(Model& model, const ProbeLimits& limits) {
  const std::int64_t num_tokens = model.info().token_count();
  std::array<Token, num_past + num_rows> tokens{};
  if (model.info().max_length < static_cast<std::int64_t>(tokens.size())) {
    return {};
  }
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    tokens[i] = static_cast<Token>((static_cast<std::int64_t>(i) * 7919 + 13) % num_tokens);
  }
  const auto past = std::span(tokens).first<num_past>();
  const auto rows = std::span(tokens).last<num_rows>();
  auto others = std::to_array({rows[0], rows[1], rows[2]});
  others[1] = static_cast<Token>((rows[1] + num_tokens / 2 + 1) % num_tokens);
  others[2] = static_cast<Token>((rows[2] + num_tokens / 3 + 1) % num_tokens);

  Prober prober(model);
  ProbeReport report;
  prober.forward(0, past);
  const auto expected = prober.forward(num_past, rows);
  const auto rejected = prober.forward(num_past, others);
  const auto again = prober.forward(num_past, rows);
  report.rejected_rows = prober.difference(expected[0], rejected[0]);
  for (std::size_t i = 0; i < num_rows; ++i) {
    report.rewinding = std::max(report.rewinding, prober.difference(expected[i], again[i]));
  }
  for (std::size_t i = 0; i < 2; ++i) {
    const auto alone = prober.forward(num_past + i, rows.subspan(i, 1));
    report.single_rows = std::max(report.single_rows, prober.difference(expected[i], alone[0]));
  }
  report.same_tokens = prober.same_tokens();

  require(model, "cannot be rewound", report.rewinding, limits.rewinding,
          "Its keys and values must lie where the folder's contract says: export it again.");
  require(model, "lets rejected tokens change the logits before them", report.rejected_rows,
          limits.rejected_rows,
          "Dynamic quantization does that; quantize the weights alone (int4 or int8).");
  require(model, "computes other logits for several rows than for one", report.single_rows,
          limits.single_rows, "Export it again, or open it with exact = true.");
  return report;
}

}  // namespace pard

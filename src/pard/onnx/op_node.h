#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>

#include "block_weights.h"
#include "op_run.h"

namespace pard {

// At which inputs of an operator blocks of integers lie.
struct BlockInputs {
  std::size_t integers;  // uint8, so many that they fit
  std::size_t scales;    // float32, float16 or, with factors, int8 [N * blocks]
  std::size_t zero_points;
  std::size_t minima;           // as the scales
  std::size_t scale_factors;    // float16 [N * spans]
  std::size_t minimum_factors;  // the same
};

// What a node of a graph says and holds, checked; a constant lives as long as its session.
class OpNode {
 public:
  OpNode(const ort::Api& api, const ort::KernelInfo* info);

  std::string output_name() const;
  std::int64_t attribute(const char* name, std::int64_t otherwise) const;

  // Empty where the node does not have it.
  OpTensor constant(std::size_t index) const;

  // The bytes of an input that has so many elements of one of these types.
  std::span<const std::byte> bytes(const char* what, const OpTensor& tensor,
                                   std::initializer_list<ort::ElementType> types,
                                   std::int64_t count) const;

  // Fills in what lies at a node's inputs; the sizes of `weights` say how much that is.
  void read_blocks(BlockWeights& weights, const BlockInputs& inputs) const;

  [[noreturn]] void fail(const std::string& expected, const std::string& actual) const;

 private:
  const ort::Api& api_;
  const ort::KernelInfo* info_;
  std::string name_;
};

}  // namespace pard

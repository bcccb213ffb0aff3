// SPDX-License-Identifier: Apache-2.0
// Operators reduce their tensors to plain data for both devices: checks whose errors name the argument,
// and views of the elements. Nothing here reads an element, so that no check waits for a device.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/ScalarType.h>
#include <c10/util/Exception.h>

#include <cstdint>
#include <type_traits>

#include "common/deterministic_math.h"
#include "common/storage.h"

namespace unison {

inline void check_floating(const at::Tensor& tensor, const char* name) {
  TORCH_CHECK(tensor.scalar_type() == at::kFloat || tensor.scalar_type() == at::kBFloat16 ||
                  tensor.scalar_type() == at::kHalf,
              name, " must be float32, bfloat16 or float16, not ", tensor.scalar_type());
}

inline void check_contiguous_rows(const at::Tensor& tensor, const char* name) {
  TORCH_CHECK(tensor.dim() == 2 && (tensor.size(1) <= 1 || tensor.stride(1) == 1), name,
              " must be a matrix with contiguous rows, not of shape ", tensor.sizes(),
              " and strides ", tensor.strides());
}

inline void check_device(const at::Tensor& tensor, const char* name, const at::Tensor& first) {
  TORCH_CHECK(tensor.device() == first.device(), name, " must be on ", first.device(), ", not ",
              tensor.device());
}

// Calls function(storage_t{}) with the type that the elements of a tensor are stored in.
template <typename function_t>
void with_storage(const at::Tensor& tensor, function_t function) {
  if (tensor.scalar_type() == at::kFloat) {
    function(float{});
  } else if (tensor.scalar_type() == at::kBFloat16) {
    function(Bfloat16Bits{});
  } else {
    function(Float16Bits{});
  }
}

// The data of a tensor, constant where value_t is. PyTorch checks the type of the elements.
template <typename value_t>
value_t* tensor_data(const at::Tensor& tensor) {
  if constexpr (std::is_const_v<value_t>) {
    return tensor.const_data_ptr<std::remove_const_t<value_t>>();
  } else {
    return tensor.mutable_data_ptr<value_t>();
  }
}

// A strided [rows, columns] or [rows] view; a broadcast dimension has stride 0.
template <typename value_t>
struct StridedView {
  value_t* data;
  int64_t row_stride;
  int64_t column_stride;

  UNISON_INLINE value_t& operator()(int64_t row, int64_t column = 0) const {
    return data[row * row_stride + column * column_stride];
  }
};

template <typename value_t>
StridedView<value_t> matrix_view(const at::Tensor& tensor, const char* name, int64_t rows,
                                 int64_t columns) {
  TORCH_CHECK(tensor.dim() == 2 && tensor.size(0) == rows && tensor.size(1) == columns, name,
              " must have shape [", rows, ", ", columns, "], not ", tensor.sizes());
  return {tensor_data<value_t>(tensor), tensor.stride(0), tensor.stride(1)};
}

template <typename value_t>
StridedView<value_t> vector_view(const at::Tensor& tensor, const char* name, int64_t rows) {
  TORCH_CHECK(tensor.dim() == 1 && tensor.size(0) == rows, name, " must have shape [", rows,
              "], not ", tensor.sizes());
  return {tensor_data<value_t>(tensor), tensor.stride(0), 0};
}

// The data of a contiguous vector; a negative size stands for any.
template <typename value_t>
value_t* vector_data(const at::Tensor& tensor, const char* name, int64_t size) {
  TORCH_CHECK(tensor.dim() == 1 && tensor.is_contiguous() && (size < 0 || tensor.size(0) == size),
              name, " must be a contiguous vector", size < 0 ? "" : " of the right length",
              ", not of shape ", tensor.sizes());
  return tensor_data<value_t>(tensor);
}

// The data of a contiguous matrix.
template <typename value_t>
value_t* matrix_data(const at::Tensor& tensor, const char* name, int64_t rows, int64_t columns) {
  TORCH_CHECK(tensor.dim() == 2 && tensor.is_contiguous() && tensor.size(0) == rows &&
                  tensor.size(1) == columns,
              name, " must be contiguous of shape [", rows, ", ", columns, "], not ",
              tensor.sizes());
  return tensor_data<value_t>(tensor);
}

}  // namespace unison

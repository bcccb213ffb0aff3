// SPDX-License-Identifier: Apache-2.0
// Declares torch.ops.unison. Implementations register themselves by device.
#include "common/schemas.h"

TORCH_LIBRARY(unison, m) { unison::define_operators(m); }

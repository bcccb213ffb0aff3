// SPDX-License-Identifier: Apache-2.0
// What a step does with the streams of one batch row, for both devices, and the operators' arguments:
// gather_streams reads the step's inputs, constrain_streams says what each stream may emit,
// find_repeats which streams are drawn again, and commit_streams writes what was sampled and moves each
// request through its phases. For whole batches they are defined in vllm/unison/ops/phase_step.py,
// vllm/unison/sampler/phase_machine.py and vllm/unison/model/phases.py.
#pragma once

#include <cstdint>
#include <optional>

#include "common/forced.h"
#include "common/tensors.h"

namespace unison {

// vllm.unison.model.phases.StateKind.
enum StateKind : int64_t { kText = 0, kAudio = 1, kForced = 2, kFlush = 3, kDone = 4 };

// The history of all slots: [slots, positions, streams].
template <typename value_t>
struct History {
  value_t* data;
  int64_t num_slots;
  int64_t num_positions;  // the last one takes what lies beyond the others
  int64_t num_streams;

  UNISON_INLINE value_t* at(int64_t slot, int64_t position) const {
    const int64_t place = position < num_positions - 1 ? position : num_positions - 1;
    return data + (slot * num_positions + place) * num_streams;
  }
};

template <typename value_t>
History<value_t> history_of(const at::Tensor& history) {
  TORCH_CHECK(history.dim() == 3 && history.is_contiguous() && history.size(1) >= 1,
              "history must be contiguous of shape [slots, positions, streams], not ",
              history.sizes());
  if constexpr (std::is_const_v<value_t>) {
    return {history.const_data_ptr<int32_t>(), history.size(0), history.size(1), history.size(2)};
  } else {
    return {history.mutable_data_ptr<int32_t>(), history.size(0), history.size(1), history.size(2)};
  }
}

struct GatherProblem {
  History<const int32_t> history;
  const int64_t* slots;      // [rows]
  const int32_t* rows32;     // [tokens]; one of the two
  const int64_t* rows64;
  const int64_t* positions;  // [tokens]
  int32_t* ids;              // [>= tokens, streams - 1]

  UNISON_INLINE void run(int64_t token) const {
    const int64_t row = rows32 != nullptr ? static_cast<int64_t>(rows32[token]) : rows64[token];
    const int64_t auxiliary = history.num_streams - 1;
    const int32_t* from = history.at(slots[row], positions[token]) + 1;
    for (int64_t stream = 0; stream < auxiliary; ++stream) {
      ids[token * auxiliary + stream] = from[stream];
    }
  }
};

// The operator; launcher_t::run(problem, count, device) calls problem.run(i) for every i below count.
template <typename launcher_t>
void gather_streams(const at::Tensor& history, const at::Tensor& slots, const at::Tensor& rows,
                    const at::Tensor& positions, const at::Tensor& ids) {
  GatherProblem problem{};
  problem.history = history_of<const int32_t>(history);
  problem.slots = vector_data<const int64_t>(slots, "slots", -1);
  const int64_t num_tokens = rows.size(0);
  if (rows.scalar_type() == at::kInt) {
    problem.rows32 = vector_data<const int32_t>(rows, "rows", -1);
  } else {
    problem.rows64 = vector_data<const int64_t>(rows, "rows", -1);
  }
  problem.positions = vector_data<const int64_t>(positions, "positions", num_tokens);
  TORCH_CHECK(ids.dim() == 2 && ids.is_contiguous() && ids.size(0) >= num_tokens &&
                  ids.size(1) == problem.history.num_streams - 1,
              "ids must be contiguous of shape [at least ", num_tokens, ", ",
              problem.history.num_streams - 1, "], not ", ids.sizes());
  problem.ids = ids.mutable_data_ptr<int32_t>();
  launcher_t::run(problem, num_tokens, history.device());
}

// Whether tokens do not count yet in the audio segment that a row is in; phases.is_early.
UNISON_INLINE bool is_early(int64_t first_step, int64_t segment_start, int64_t num_prompt, int64_t here) {
  const int64_t generated = segment_start > num_prompt ? segment_start : num_prompt;
  return first_step > 0 && here < generated + first_step;
}

struct ConstrainProblem {
  const int64_t* kind;          // [states]
  const int64_t* forced_token;  // [states]
  const int64_t* delays;        // [streams]
  const int32_t* pads;          // [streams]
  const int32_t* fills;         // [5, streams]: lead-in, end, tail; end and tail at the limit
  const int64_t* by_limit;      // [states], as the next two
  const int64_t* first_step;
  const int64_t* early_mask;
  int64_t max_delay;
  const int64_t* state;  // [slots], as the next five
  const int64_t* segment_start;
  const int64_t* flush_end;
  const int64_t* suffix_end;
  const int64_t* earliest_end;
  const int64_t* num_prompt;
  History<const int32_t> history;
  const int64_t* slots;     // [rows]
  const int64_t* position;  // [rows]
  int32_t* forced;          // [rows, 1 + streams]
  int32_t* mask_index;      // [rows]
  int32_t* tokens;          // [rows, streams]

  // What a stream emits in audio: kSample where the sampler decides.
  UNISON_INLINE int32_t in_audio_or_flush(int64_t slot, int64_t here, int64_t own, bool in_flush,
                                          int64_t stream) const {
    const int64_t num_streams = history.num_streams;
    if (here < segment_start[slot] + delays[stream]) {
      return fills[stream];
    }
    const int64_t end = flush_end[slot] - max_delay + delays[stream];
    if (!in_flush || here < end) {
      return kSample;
    }
    const int64_t place = (here == end ? 1 : 2) + (by_limit[own] != 0 ? 2 : 0);
    return fills[place * num_streams + stream];
  }

  UNISON_INLINE void run(int64_t row) const {
    const int64_t slot = slots[row];
    const int64_t here = position[row];
    const int64_t own = state[slot];
    const int64_t own_kind = kind[own];
    const bool in_audio = own_kind == kAudio;
    const bool in_flush = own_kind == kFlush;
    const int64_t num_streams = history.num_streams;
    const int32_t* suffix = here < suffix_end[slot] ? history.at(slot, here) : nullptr;
    int32_t* own_forced = forced + row * (1 + num_streams);
    for (int64_t stream = 0; stream < num_streams; ++stream) {
      int32_t token = in_audio || in_flush ? in_audio_or_flush(slot, here, own, in_flush, stream)
                                           : pads[stream];
      if (stream == 0) {
        const int32_t told = static_cast<int32_t>(forced_token[own]);
        token = (in_audio || in_flush) && told == kSample ? token : told;
        own_forced[0] = own_kind == kText ? token : kKeepOutput;
      } else if (suffix != nullptr && suffix[stream] >= 0) {
        token = suffix[stream];
      }
      own_forced[1 + stream] = in_audio || in_flush ? token : kKeepOutput;
      tokens[row * num_streams + stream] = token;
    }
    const bool early = is_early(first_step[own], segment_start[slot], num_prompt[slot], here);
    const int64_t mask = early ? early_mask[own] : own;
    mask_index[row] = static_cast<int32_t>(2 * mask + (here < earliest_end[slot] ? 1 : 0));
  }
};

// The operator; see gather_streams.
template <typename launcher_t>
void constrain_streams(const at::Tensor& kind, const at::Tensor& forced_token,
                       const at::Tensor& delays, const at::Tensor& pads, const at::Tensor& fills,
                       const at::Tensor& by_limit, const at::Tensor& first_step,
                       const at::Tensor& early_mask, int64_t max_delay, const at::Tensor& state,
                       const at::Tensor& segment_start, const at::Tensor& flush_end,
                       const at::Tensor& suffix_end, const at::Tensor& earliest_end,
                       const at::Tensor& num_prompt, const at::Tensor& history,
                       const at::Tensor& slots, const at::Tensor& position,
                       const at::Tensor& forced, const at::Tensor& mask_index,
                       const at::Tensor& tokens) {
  const History<const int32_t> past = history_of<const int32_t>(history);
  const int64_t num_rows = slots.size(0);
  const int64_t num_states = kind.size(0);
  const ConstrainProblem problem{
      vector_data<const int64_t>(kind, "kind", num_states),
      vector_data<const int64_t>(forced_token, "forced_token", num_states),
      vector_data<const int64_t>(delays, "delays", past.num_streams),
      vector_data<const int32_t>(pads, "pads", past.num_streams),
      matrix_data<const int32_t>(fills, "fills", 5, past.num_streams),
      vector_data<const int64_t>(by_limit, "by_limit", num_states),
      vector_data<const int64_t>(first_step, "first_step", num_states),
      vector_data<const int64_t>(early_mask, "early_mask", num_states),
      max_delay,
      vector_data<const int64_t>(state, "state", past.num_slots),
      vector_data<const int64_t>(segment_start, "segment_start", past.num_slots),
      vector_data<const int64_t>(flush_end, "flush_end", past.num_slots),
      vector_data<const int64_t>(suffix_end, "suffix_end", past.num_slots),
      vector_data<const int64_t>(earliest_end, "earliest_end", past.num_slots),
      vector_data<const int64_t>(num_prompt, "num_prompt", past.num_slots),
      past,
      vector_data<const int64_t>(slots, "slots", num_rows),
      vector_data<const int64_t>(position, "position", num_rows),
      matrix_data<int32_t>(forced, "forced", num_rows, 1 + past.num_streams),
      vector_data<int32_t>(mask_index, "mask_index", num_rows),
      matrix_data<int32_t>(tokens, "tokens", num_rows, past.num_streams)};
  launcher_t::run(problem, num_rows, history.device());
}

// Which sampled streams repeat themselves, so that they are drawn again.
struct RepeatProblem {
  int64_t num_streams;
  const int64_t* code_begin;  // [streams], as the next
  const int64_t* code_end;
  const int64_t* window;  // [slots], as the next two; steps that are looked at
  const int64_t* max_repeats;
  const int64_t* segment_start;
  History<const int32_t> history;
  const int64_t* slots;     // [rows]
  const int64_t* position;  // [rows]
  const int32_t* forced;    // [rows, 1 + streams]
  const int32_t* tokens;    // [rows, streams]
  int32_t* redrawn;         // [rows, 1 + streams]

  UNISON_INLINE bool repeats(int64_t slot, int64_t here, int64_t stream, int32_t token) const {
    if (token < code_begin[stream] || token >= code_end[stream]) {
      return false;
    }
    int64_t first = here - window[slot];
    if (first < segment_start[slot]) {
      first = segment_start[slot];
    }
    int64_t count = 0;
    for (int64_t past = first; past < here; ++past) {
      count += history.at(slot, past)[stream] == token ? 1 : 0;
    }
    return count >= max_repeats[slot];
  }

  UNISON_INLINE void run(int64_t row) const {
    const int64_t slot = slots[row];
    int32_t* own = redrawn + row * (1 + num_streams);
    own[0] = kKeepOutput;
    for (int64_t stream = 0; stream < num_streams; ++stream) {
      const bool is_drawn = forced[row * (1 + num_streams) + 1 + stream] == kSample;
      const int32_t token = tokens[row * num_streams + stream];
      const bool again =
          window[slot] > 0 && is_drawn && repeats(slot, position[row], stream, token);
      own[1 + stream] = again ? kSample : kKeepOutput;
    }
  }
};

// The operator; see gather_streams.
template <typename launcher_t>
void find_repeats(const at::Tensor& code_begin, const at::Tensor& code_end,
                  const at::Tensor& window, const at::Tensor& max_repeats,
                  const at::Tensor& segment_start, const at::Tensor& history,
                  const at::Tensor& slots, const at::Tensor& position, const at::Tensor& forced,
                  const at::Tensor& tokens, const at::Tensor& redrawn) {
  const History<const int32_t> past = history_of<const int32_t>(history);
  const int64_t num_rows = slots.size(0);
  const RepeatProblem problem{
      past.num_streams,
      vector_data<const int64_t>(code_begin, "code_begin", past.num_streams),
      vector_data<const int64_t>(code_end, "code_end", past.num_streams),
      vector_data<const int64_t>(window, "window", past.num_slots),
      vector_data<const int64_t>(max_repeats, "max_repeats", past.num_slots),
      vector_data<const int64_t>(segment_start, "segment_start", past.num_slots),
      past,
      vector_data<const int64_t>(slots, "slots", num_rows),
      vector_data<const int64_t>(position, "position", num_rows),
      matrix_data<const int32_t>(forced, "forced", num_rows, 1 + past.num_streams),
      matrix_data<const int32_t>(tokens, "tokens", num_rows, past.num_streams),
      matrix_data<int32_t>(redrawn, "redrawn", num_rows, 1 + past.num_streams)};
  launcher_t::run(problem, num_rows, history.device());
}

struct CommitProblem {
  int64_t rows_per_group;  // the most of a group
  int64_t num_rows;
  int64_t num_classes;
  const int64_t* token_class;  // [vocabulary]
  const int64_t* next_state;   // [states, classes]
  const int64_t* kind;         // [states], as the next seven
  const int64_t* after_flush;
  const int64_t* at_limit;
  const int64_t* finish;
  const int64_t* end_shift;
  const int64_t* extra_steps;
  const int64_t* first_step;
  const int64_t* any_ends;
  const int64_t* end_ids;  // [streams]
  const int32_t* pads;     // [streams]
  int64_t max_delay;
  int64_t end_length;
  int64_t error;
  int64_t* state;  // [slots], as the next four
  int64_t* segment_start;
  int64_t* flush_end;
  const int64_t* limit;
  const int64_t* num_prompt;
  History<int32_t> history;
  const int64_t* slots;     // [rows], as the next two
  const int64_t* position;
  const bool* discard;
  const int64_t* rows;  // [groups, rows per group]; null: group g is row g
  int32_t* tokens;      // [rows, streams]
  int64_t* outcome;     // [3, rows]: finish, state, segment start

  // A row of a group, -1 where there is none.
  UNISON_INLINE int64_t row(int64_t group, int64_t place) const {
    const int64_t row = rows == nullptr ? group : rows[group * rows_per_group + place];
    return row >= 0 && row < num_rows ? row : -1;
  }

  UNISON_INLINE void run(int64_t group) const {
    const int64_t first = row(group, 0);
    if (first < 0) {
      return;
    }
    const int64_t slot = slots[first];
    const int64_t here = position[first];
    const int64_t num_streams = history.num_streams;
    int32_t* own = tokens + first * num_streams;
    bool failed = false;
    int64_t num_ended = 0;
    for (int64_t stream = 0; stream < num_streams; ++stream) {
      if (own[stream] < 0) {
        failed = true;
        own[stream] = pads[stream];
      }
      num_ended += own[stream] == end_ids[stream] ? 1 : 0;
    }

    const int64_t before = state[slot];
    const bool flushing = kind[before] == kFlush;
    const bool at_end = here + 1 >= limit[slot];
    const bool early = is_early(first_step[before], segment_start[slot], num_prompt[slot], here);
    const bool any_may_end = any_ends[before] != 0;
    const int64_t token = any_may_end && num_ended > 0 ? end_ids[0] : own[0];
    int64_t after = next_state[before * num_classes + (early ? 0 : token_class[token])];
    if (at_end && !flushing && kind[after] != kFlush && kind[after] != kDone) {
      after = at_limit[before];
    }
    int64_t end = flush_end[slot];
    if (kind[after] == kFlush && !flushing) {
      end = here + end_shift[after] + max_delay;
    }
    if (any_may_end && num_ended == num_streams) {
      end = here;
    }
    const bool flushed = kind[after] == kFlush && here + 1 >= end + extra_steps[after];
    if (flushed) {
      const int64_t following = after_flush[after];
      const bool goes_on = kind[following] != kDone && kind[following] != kFlush;
      after = at_end && goes_on ? end_length : following;
    }
    const bool enters_audio = kind[after] == kAudio && (flushed || kind[before] != kAudio);
    const int64_t start = enters_audio ? here + 1 : segment_start[slot];
    if (!discard[first]) {
      state[slot] = after;
      segment_start[slot] = start;
      flush_end[slot] = end;
    }
    for (int64_t place = 0; place < rows_per_group; ++place) {
      const int64_t member = row(group, place);
      if (member < 0) {
        continue;
      }
      outcome[member] = failed ? error : finish[after];
      outcome[num_rows + member] = after;
      outcome[2 * num_rows + member] = start;
      int32_t* written = tokens + member * num_streams;
      int32_t* past = history.at(slots[member], position[member]);
      for (int64_t stream = 0; stream < num_streams; ++stream) {
        written[stream] = own[stream];
        if (!discard[member]) {
          past[stream] = own[stream];
        }
      }
    }
  }
};

// The operator; see gather_streams.
template <typename launcher_t>
void commit_streams(const at::Tensor& token_class, const at::Tensor& next_state,
                    const at::Tensor& kind, const at::Tensor& after_flush,
                    const at::Tensor& at_limit, const at::Tensor& finish,
                    const at::Tensor& end_shift, const at::Tensor& extra_steps,
                    const at::Tensor& first_step, const at::Tensor& any_ends,
                    const at::Tensor& end_ids, const at::Tensor& pads, int64_t max_delay,
                    int64_t end_length, int64_t error, const at::Tensor& state,
                    const at::Tensor& segment_start, const at::Tensor& flush_end,
                    const at::Tensor& limit, const at::Tensor& num_prompt,
                    const at::Tensor& history, const at::Tensor& slots, const at::Tensor& position,
                    const at::Tensor& discard, const std::optional<at::Tensor>& rows,
                    const at::Tensor& tokens, const at::Tensor& outcome) {
  const History<int32_t> past = history_of<int32_t>(history);
  const int64_t num_rows = slots.size(0);
  const int64_t num_states = kind.size(0);
  TORCH_CHECK(next_state.dim() == 2, "next_state must have 2 dimensions, not ", next_state.dim());
  const int64_t num_classes = next_state.size(1);
  TORCH_CHECK(!rows.has_value() || (rows->dim() == 2 && rows->size(1) >= 1),
              "rows must have shape [any, at least 1]");
  const int64_t num_groups = rows.has_value() ? rows->size(0) : num_rows;
  const int64_t rows_per_group = rows.has_value() ? rows->size(1) : 1;
  const CommitProblem problem{
      rows_per_group,
      num_rows,
      num_classes,
      vector_data<const int64_t>(token_class, "token_class", -1),
      matrix_data<const int64_t>(next_state, "next_state", num_states, num_classes),
      vector_data<const int64_t>(kind, "kind", num_states),
      vector_data<const int64_t>(after_flush, "after_flush", num_states),
      vector_data<const int64_t>(at_limit, "at_limit", num_states),
      vector_data<const int64_t>(finish, "finish", num_states),
      vector_data<const int64_t>(end_shift, "end_shift", num_states),
      vector_data<const int64_t>(extra_steps, "extra_steps", num_states),
      vector_data<const int64_t>(first_step, "first_step", num_states),
      vector_data<const int64_t>(any_ends, "any_ends", num_states),
      vector_data<const int64_t>(end_ids, "end_ids", past.num_streams),
      vector_data<const int32_t>(pads, "pads", past.num_streams),
      max_delay,
      end_length,
      error,
      vector_data<int64_t>(state, "state", past.num_slots),
      vector_data<int64_t>(segment_start, "segment_start", past.num_slots),
      vector_data<int64_t>(flush_end, "flush_end", past.num_slots),
      vector_data<const int64_t>(limit, "limit", past.num_slots),
      vector_data<const int64_t>(num_prompt, "num_prompt", past.num_slots),
      past,
      vector_data<const int64_t>(slots, "slots", num_rows),
      vector_data<const int64_t>(position, "position", num_rows),
      vector_data<const bool>(discard, "discard", num_rows),
      rows.has_value() ? matrix_data<const int64_t>(*rows, "rows", num_groups, rows_per_group)
                       : nullptr,
      matrix_data<int32_t>(tokens, "tokens", num_rows, past.num_streams),
      matrix_data<int64_t>(outcome, "outcome", 3, num_rows)};
  launcher_t::run(problem, num_groups, history.device());
}

}  // namespace unison

#!/bin/bash
# What only a GPU can show, on a machine with one and a CUDA build of this fork; docs/gpu.md says what each step shows.
#
#   benchmarks/gpu/run.sh                    all steps, about half an hour
#   benchmarks/gpu/run.sh kernels parity-v1  these alone
#   benchmarks/gpu/run.sh --dry-run [STEP...]  only prints the commands, from the repository's root
#
# PYTHON is the environment's interpreter (.venv/bin/python), RESULTS the folder of the JSON files (benchmarks/results), each of which
# names the hardware. A step that fails stops no other; the summary at the end names it, and the exit status is 1.
set -u
cd "$(dirname "$0")/../.." || exit 2
PYTHON=${PYTHON:-.venv/bin/python}
RESULTS=${RESULTS:-benchmarks/results}
SCRATCH=${SCRATCH:-${TMPDIR:-/tmp}/unison-gpu}
MODEL=$SCRATCH/model
CASES=$SCRATCH/throughput
PYTEST="$PYTHON -m pytest -q -rs -p no:cacheprovider"
PARITY="tests/engine/streams/test_parity.py tests/engine/guidance/test_parity.py"
INVARIANCE="tests/engine/streams/test_invariance.py tests/engine/guidance/test_invariance.py"
# 1 billion parameters in bfloat16, 8 streams; CUDA graphs and compilation as the engine has them by default.
SIZE="--hidden-size 2048 --num-layers 24"
REQUESTS="--input-len 32 --output-len 128 --guidance-scale 3 --compare --repeats 5 --max-num-seqs 128"
REQUESTS="$REQUESTS --gpu-memory-utilization 0.8"

dry=
[ "${1:-}" = --dry-run ] && dry=1 && shift
chosen=" $* " failed=0 summary=

# run_step NAME LIMIT COMMAND...: run within LIMIT seconds, if it is chosen.
run_step() {
  local name=$1 limit=$2 begin=$SECONDS status word=ok
  shift 2
  [ "$chosen" != "  " ] && [[ "$chosen" != *" $name "* ]] && return
  if [ -n "$dry" ]; then
    echo "$name:$(printf ' %q' "$@")"
    return
  fi
  printf '\n=== %s:%s\n' "$name" "$(printf ' %q' "$@")"
  timeout -k 10 "$limit" env "$@" </dev/null
  status=$?
  [ $status -ne 0 ] && failed=1 && word="FAILED ($status)"
  [ $status -eq 124 ] && word="FAILED (more than $limit s)"
  summary+=$(printf '%-24s %-28s %4d s' "$name" "$word" $((SECONDS - begin)))$'\n'
}

# shellcheck disable=SC2086 # lists of words
steps() {
  local step=$1 count runner
  $step kernels 120 $PYTEST tests/ops
  $step timing-sampling 60 $PYTHON benchmarks/kernels/benchmark_sampling.py --device cuda \
    --output-json "$RESULTS/sampling_cuda.json"
  $step timing-operators 60 $PYTHON benchmarks/kernels/benchmark_operators.py --device cuda \
    --output-json "$RESULTS/operators_cuda.json"
  # The references of these tests are computed on the CPU.
  $step parity-v1 300 VLLM_USE_V2_MODEL_RUNNER=0 $PYTEST $PARITY
  $step parity-v2 300 VLLM_USE_V2_MODEL_RUNNER=1 $PYTEST $PARITY
  $step graphs-v1 120 VLLM_USE_V2_MODEL_RUNNER=0 $PYTEST tests/engine/streams/test_compile.py
  $step graphs-v2 120 VLLM_USE_V2_MODEL_RUNNER=1 $PYTEST tests/engine/streams/test_compile.py
  $step asynchronous 400 $PYTEST $INVARIANCE -k "not tensor_parallel"
  $step model 120 $PYTHON benchmarks/gpu/write_model.py "$MODEL" $SIZE
  for runner in 1 2; do
    for count in 1 4 16 64; do
      $step "throughput-v$runner-$count" 150 VLLM_USE_V2_MODEL_RUNNER=$((runner - 1)) $PYTHON \
        benchmarks/benchmark_throughput.py --model "$MODEL" $REQUESTS --num-prompts $count --num-warmups $count \
        --output-json "$CASES/v${runner}_$count.json"
    done
    $step "throughput-v$runner-eager-16" 150 VLLM_USE_V2_MODEL_RUNNER=$((runner - 1)) $PYTHON \
      benchmarks/benchmark_throughput.py --model "$MODEL" $REQUESTS --num-prompts 16 --num-warmups 16 \
      --enforce-eager --output-json "$CASES/v${runner}_eager_16.json"
  done
  $step collect 10 $PYTHON benchmarks/gpu/collect_throughput.py "$CASES" --output-json "$RESULTS/throughput_cuda.json"
  # It times methods of the V1 runner.
  $step profile 150 VLLM_USE_V2_MODEL_RUNNER=0 $PYTHON benchmarks/profile_step.py $SIZE --groups 1 16 --steps 20 --rounds 3 --compile \
    --output-json "$RESULTS/profile_step_cuda.json"
  if [ -n "$dry" ] || [ "$(nvidia-smi -L 2>/dev/null | wc -l)" -ge 2 ]; then
    $step tensor-parallel 240 $PYTEST $INVARIANCE -k tensor_parallel
  else
    $step tensor-parallel 10 echo "left out: it takes two GPUs"
  fi
}

known=" $(steps echo | cut -d ' ' -f 1 | tr '\n' ' ')"
for name in $chosen; do
  [[ "$known" != *" $name "* ]] && echo "no step $name; there are:$known" >&2 && exit 2
done
[ -z "$dry" ] && mkdir -p "$RESULTS" "$CASES"
steps run_step
[ -n "$dry" ] && exit 0
printf '\n=== summary\n%s' "$summary"
exit $failed

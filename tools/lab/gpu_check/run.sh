#!/bin/bash
# The GPU check, in the repository's root: bash tools/lab/gpu_check/run.sh look1|look2
#
# look1 (some 390 s): what only has to be right side by side, then the timings one after the other.
# look2 (some 330 s): CIFAR-10 at full scale (with CIFAR_ROOT) beside the tests that compile; masks,
# the loader, and C4 on JPEGs.
# TOTAL=seconds shortens a look; DRY=1 runs it on a CPU at sizes that take seconds. Results are in
# $OUT (default gpu_out) at once, in at most eight files. .gpu/ holds coco128/, bccd/ and wheels/:
# see prepare.sh.
look=${1:-look1}; : "${OUT:=gpu_out}"; export OUT; mkdir -p "$OUT"
export SCRATCH=${SCRATCH:-${TMPDIR:-$HOME/.cache}/gpu_check}; mkdir -p "$SCRATCH"
export GPU_CHECK_DATA=${GPU_CHECK_DATA:-$PWD/.gpu} GO_FILE=$SCRATCH/go PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
export TORCHINDUCTOR_CACHE_DIR=$SCRATCH/inductor TRITON_CACHE_DIR=$SCRATCH/triton
end=$((SECONDS + ${TOTAL:-390})); py=${PYTHON:-python3}; log=$OUT/stages.log; report=$OUT/report.md
rm -f "$GO_FILE"
if [ -d "$GPU_CHECK_DATA/wheels" ] && [ -z "$DRY" ]; then
  [ -d "$SCRATCH/site" ] || $py -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$SCRATCH/site" "$GPU_CHECK_DATA"/wheels/*.whl || echo "- wheels: some failed" | tee -a "$report"
  export PYTHONPATH=$SCRATCH/site
fi

left() { echo $((end - SECONDS)); }
stage() { # stage NAME SECONDS: a process, stopped at its limit or at the end of the look
  local limit=$2 rest code; rest=$(left)
  if [ "$rest" -lt 10 ]; then echo "- $1: skipped, $rest s left" | tee -a "$report"; return; fi
  [ "$limit" -gt "$rest" ] && limit=$rest
  echo "== $1 at $SECONDS s (limit $limit s, $rest s left)"
  LIMIT=$limit timeout -k 3 "$limit" $py -m tools.lab.gpu_check "$1" >>"$log" 2>&1; code=$?
  [ $code -ne 0 ] && echo "- $1: ended with $code at $SECONDS s" | tee -a "$report"
}
tests() { # tests SECONDS EXPRESSION: the tests marked gpu
  local limit=$1 rest; rest=$(left); [ "$limit" -gt "$rest" ] && limit=$rest
  timeout -k 3 "$limit" $py -m pytest -m gpu -k "$2" -n 4 --dist worksteal -q -p no:cacheprovider -W default \
    --timeout 100 -o addopts="--import-mode=importlib -ra" >"$SCRATCH/tests.log" 2>&1
  tail -c 60000 "$SCRATCH/tests.log" >>"$OUT/tests.log"
  echo "- tests '$2' (at $SECONDS s): $(tail -1 "$SCRATCH/tests.log")" | tee -a "$report"
}

echo "# $look, $(date -u +%FT%TZ)" >>"$report"
case $look in
look1)
  stage env 40
  stage smoke 50
  for name in demo_bf16 demo_fp32 bccd; do stage $name 110 & done
  LIMIT=170 timeout -k 3 200 $py -m tools.lab.gpu_check compile_fpn >>"$log" 2>&1 & compiling=$!
  tests 100 "not compiled and not graphs"
  last=$((SECONDS + 45))
  while [ "$(left)" -gt 250 ] && [ $SECONDS -lt $last ] && [ "$(jobs -r | wc -l)" -gt 1 ]; do sleep 1; done
  pkill -f "tools/train_det.py|gpu_check (demo|bccd)" && echo "- some trainings were stopped at $SECONDS s" | tee -a "$report"
  while [ "$(left)" -gt 235 ] && ! grep -q "compile_fpn.*\(first_call_s\|FAILED\)" "$report" && kill -0 $compiling 2>/dev/null; do sleep 1; done
  touch "$GO_FILE" # from here nothing else runs
  for _ in $(seq 12); do kill -0 $compiling 2>/dev/null && sleep 1; done
  kill $compiling 2>/dev/null && echo "- compile_fpn was stopped at $SECONDS s" | tee -a "$report"
  for name in step_fpn step_c4 infer train_fpn peer classify bags step_mask train_c4 loader; do stage $name 60; done
  ;;
look2)
  if [ -n "$CIFAR_ROOT" ]; then stage cifar "$(($(left) - 120))" & fi
  tests 110 "compiled or graphs"
  wait
  for name in bccd step_mask train_c4 loader compile_c4; do stage $name 90; done
  ;;
*) echo "expected look1 or look2, got $look"; exit 2 ;;
esac
ls -la "$OUT"; tail -c 9500 "$report"

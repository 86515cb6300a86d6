#!/usr/bin/env bash
# All that needs a GPU, in one command that ends within 12 minutes on one H100 or H200: the tests that are skipped
# elsewhere, what gates cost in a step, seconds of wrap, latencies asked for and met, and runs of recipes. From a
# checkout, with nothing installed from it:
#
#     tools/device.sh [FOLDER_FOR_RESULTS] [PARTS]
#
# PARTS are of: tests wrap eager counts compiled latency recipes cifar; all without any. Wheels that the machine lacks
# are taken from .whl, and CIFAR-10's archives from .cifar, if these folders are there. Results are written as they
# come.
set -uo pipefail
cd "$(dirname "$0")/.."
out=$(realpath -m "${1:-runs/device}")
parts=${2:-tests wrap eager counts compiled latency recipes cifar}
mkdir -p "$out"
table="$out/table.md"
export PYTHONPATH="$PWD" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
if compgen -G '.whl/*.whl' >/dev/null; then
  site=$(mktemp -d)
  python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" .whl/*.whl || exit 1
  export PYTHONPATH="$PWD:$site"
fi
python3 - >>"$table" <<'PY'
import torch
name = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no GPU"
print(f"# {name}, torch {torch.__version__}\n")
PY
cat "$table"
start=$SECONDS
said() { printf '\n== %s (%d s)\n' "$1" $((SECONDS - start)); }
has() { [[ " $parts " == *" $1 "* ]]; }
failed=0

models="resnet50 mobilenet_v3_large vit_small_patch16_224"
if has compiled; then
  # They compile while the tests run, and measure one after the other when these are done.
  exec 9>"$out/lock" && flock 9
  for model in $models; do
    timeout 400 python3 tools/bench/gate_overhead.py --compiled --counts --pairs 12 --models $model --lock "$out/lock" \
      --out "$out/compiled-$model.md" >"$out/compiled-$model.log" 2>&1 9>&- &
  done
fi
if has tests; then
  said tests
  timeout 240 python3 -m pytest tests/cuda -q -n 8 --dist load -o filterwarnings=default -p no:cacheprovider >"$out/tests.log" 2>&1 ||
    failed=1
  grep -E '^(FAILED|ERROR)|passed|failed' "$out/tests.log" | tail -40
  printf 'tests/cuda: %s\n\n' "$(tail -1 "$out/tests.log")" >>"$table"
fi
if has compiled; then
  said compiled
  exec 9>&-
  wait
  rm -f "$out/lock"
  for model in $models; do
    grep "^| $model" "$out/compiled-$model.md" | tee -a "$table" || { failed=1; tail -3 "$out/compiled-$model.log"; }
    rm -f "$out/compiled-$model.md"
  done
fi
if has wrap; then
  said wrap
  timeout 120 python3 tools/bench/wrap_on_device.py --out "$table" 2>"$out/wrap.log" || { failed=1; tail -5 "$out/wrap.log"; }
fi
if has eager; then
  said eager
  timeout 150 python3 tools/bench/gate_overhead.py --counts ${PAIRS:+--pairs $PAIRS} --out "$table" 2>"$out/eager.log" ||
    { failed=1; tail -5 "$out/eager.log"; }
fi
if has counts; then
  said counts
  timeout 60 python3 tools/bench/gate_overhead.py --models --out "$table" 2>"$out/counts.log" ||
    { failed=1; tail -5 "$out/counts.log"; }
fi
if has latency; then
  said latency
  for model in resnet50 vit_small_patch16_224; do
    timeout 150 python3 tools/bench/latency.py --device cuda --batch-size 64 --precision bfloat16 --subnetworks 12 \
      --models $model --cache "$out/latency-cache" --out "$out/latency.md" >"$out/latency-$model.log" 2>&1 ||
      { failed=1; tail -5 "$out/latency-$model.log"; }
  done
  [[ -f "$out/latency.md" ]] && tail -n +5 "$out/latency.md" | tee -a "$table"
fi
if has recipes; then
  said quickstart
  timeout 120 python3 -m prunegate run recipes/quickstart.yaml --out "$out/quickstart" >"$out/quickstart.log" 2>&1 || failed=1
  tail -12 "$out/quickstart.log"
  printf '\nrecipes/quickstart.yaml: %s\n\n' "$(grep -E 'MACs' "$out/quickstart.log" | tail -1)" >>"$table"
  rm -rf "$out/quickstart"
fi
if has cifar && [[ -d .cifar ]]; then
  said cifar
  timeout 200 python3 tools/bench/recipe_epoch.py --cifar .cifar ${LIMIT:+--train-limit $LIMIT} --out "$table" 2>"$out/cifar.log" ||
    { failed=1; tail -5 "$out/cifar.log"; }
fi
said done
cat "$table"
exit $failed

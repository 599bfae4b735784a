#!/usr/bin/env bash
# Measures cost, kernels, attacks and peers on this host's accelerator; writes JSON files. Limit: 520 s in all.
#
#   benchmarks/accelerator.sh FOLDER [TORCH_PYTHON]
#
# Needs jax, flax, optax, jaxtyping, pydantic, tqdm and tyro, no data set and no network. Compares with PyTorch if PYTHON
# (or TORCH_PYTHON) has it. PYTHON chooses the interpreter, NAME the suffix of the files (default: the platform's name).
# QUICK=1 runs tiny sizes, to try the script on a CPU.
set -uo pipefail
cd "$(dirname "$0")/.."
folder=${1:?usage: benchmarks/accelerator.sh FOLDER [TORCH_PYTHON]}
python=${PYTHON:-python3}
torch_python=${2:-$python}
mkdir -p "$folder"

if ! missing=$("$python" - <<'PY'
import importlib.util
needed = ("jax", "flax", "optax", "jaxtyping", "pydantic", "tqdm", "tyro")
print(*(name for name in needed if importlib.util.find_spec(name) is None))
PY
); then
    echo "error: $python cannot be run: PYTHON names another interpreter" >&2
    exit 2
fi
if [ -n "$missing" ]; then
    echo "error: $python lacks $missing: install them, or put unpacked wheels on PYTHONPATH" >&2
    exit 2
fi

# PyTorch's processes need memory beside ours; the compiler's results for one benchmark serve the next.
export XLA_PYTHON_CLIENT_PREALLOCATE=false JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$folder/cache}"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
platform=$("$python" -c 'import jax; print(jax.default_backend())') || exit 2
name=${NAME:-$platform}
torch=()
if "$torch_python" -c 'import torch' 2>/dev/null; then
    torch=(--torch-python "$torch_python")
else
    echo "$torch_python has no PyTorch: its columns are left out" >&2
fi

named=(input-gradient flow-gradient "flow-gradient, held statistics" "flow-gradient, dual norm"
    "flow-gradient, finite difference" "flow-gradient, a quarter of the batch" "adversarial, 7 steps"
    "deformation, 1 step" "deformation, 7 steps" greedy "trades, 7 steps" elle)
failed=0
measure() { # seconds, file, arguments
    local limit=$1 file=$folder/$2-$name.json
    shift 2
    echo "== $* ($(date +%T))"
    timeout "$limit" "$python" -m benchmarks "$@" --json "$file" || { echo "error: $1 did not finish" >&2; failed=1; }
}

if [ -n "${QUICK:-}" ]; then
    tiny=(--batch-size 8 --rounds 2 --quick)
    measure 300 cost cost --model small-cnn "${tiny[@]}" --methods flow-gradient "deformation, 1 step"
    measure 300 kernels kernels --rounds 2 --quick --shape 2x32x32x3 "${torch[@]}"
    measure 300 attacks attacks --model small-cnn "${tiny[@]}" "${torch[@]}"
    [ ${#torch[@]} -eq 0 ] || measure 300 peers peers --model small-cnn "${tiny[@]}" "${torch[@]}"
else
    measure 70 kernels kernels --rounds 15 "${torch[@]}"
    [ ${#torch[@]} -eq 0 ] || measure 90 peers peers --rounds 15 --dtype float32 bfloat16 "${torch[@]}"
    measure 130 cost cost --rounds 15 --methods "${named[@]}"
    measure 60 cost-bfloat16 cost --rounds 15 --quick --dtype bfloat16
    measure 80 cost-resnet-18 cost --rounds 15 --quick --model resnet-18
    measure 90 attacks attacks --rounds 5 "${torch[@]}"
fi
rm -rf "${folder:?}/cache"
ls -l "$folder"
exit $failed

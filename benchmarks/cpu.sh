#!/usr/bin/env bash
# Measures the CPU figures of docs/benchmarks.md (all, or those that are named), then writes its tables and plots.
#
#   benchmarks/cpu.sh [kernels|peers|cost|cost-more|cost-small-cnn|cost-sizes|cost-batches|cost-bfloat16|
#                      cost-resnet-18|attacks|input ...]
#
# PYTHON chooses the interpreter (default: that of make's environment, if there is one), TORCH_PYTHON one with PyTorch.
# DATA_DIR holds a prepared CIFAR-10; without it, its presets are left out of `input`. BEFORE is a prefix of every
# command, for example one that waits until the machine is free. Each measurement takes under five minutes on two
# cores, `input` twelve.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-$(command -v .venv/bin/python || echo python3)}
torch=(--torch-python "${TORCH_PYTHON:-$python}")
[ $# -gt 0 ] || set -- kernels peers cost cost-more cost-small-cnn cost-sizes cost-batches cost-bfloat16 \
    cost-resnet-18 attacks input
several=(flow-gradient "flow-gradient, finite difference" "deformation, 7 steps")
failed=0
measure() { # file, arguments
    local file=benchmarks/results/$1-cpu.json
    shift
    PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} ${BEFORE:-} "$python" -m benchmarks "$@" --json "$file" || failed=1
}
for name; do
    case $name in
    kernels) measure kernels kernels --quick "${torch[@]}" ;;
    peers) measure peers peers --quick "${torch[@]}" ;;
    cost) measure cost cost --quick --rounds 5 ;;
    cost-more)
        measure cost-more cost --batch-size 64 --rounds 3 --methods input-gradient \
            "flow-gradient, a quarter of the batch" "adversarial, 1 step" "adversarial, 10 steps" \
            "deformation, 1 step" "worst of 10 rotations"
        ;;
    cost-small-cnn) measure cost-small-cnn cost --model small-cnn --image-size 28 ;;
    cost-sizes)
        measure cost-sizes cost --model small-cnn --batch-size 16 --image-size 32 64 128 224 --rounds 5 \
            --methods "${several[@]}"
        ;;
    cost-batches)
        measure cost-batches cost --model small-cnn --image-size 28 --batch-size 8 32 128 512 --rounds 7 \
            --methods "${several[@]}"
        ;;
    cost-bfloat16)
        measure cost-bfloat16 cost --model small-cnn --image-size 28 --batch-size 32 --dtype float32 bfloat16 \
            --methods "${several[@]}"
        ;;
    cost-resnet-18) measure cost-resnet-18 cost --model resnet-18 --batch-size 32 --rounds 3 --quick ;;
    attacks) measure attacks attacks --quick --rounds 5 "${torch[@]}" ;;
    input)
        measure input input --rounds 60 --preset mnist5k-standard mnist5k-flow digits-standard digits-flow
        measure input-photographs input --photographs 256 --rounds 5 "${torch[@]}"
        if [ -n "${DATA_DIR:-}" ]; then
            measure input-cifar input --rounds 15 --data-dir "$DATA_DIR" \
                --preset cifar10-vgg11-standard-narrow cifar10-vgg11-flow-narrow
        fi
        ;;
    *)
        echo "error: there is no measurement $name" >&2
        exit 2
        ;;
    esac
done
PYTHONPATH=$PWD "$python" -m benchmarks report || failed=1
exit $failed

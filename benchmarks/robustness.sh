#!/usr/bin/env bash
# Trains the demo's network by several methods, attacks all runs, and writes the accuracies beside the cost of a step
# (from benchmarks/results/cost-small-cnn-cpu.json) to benchmarks/results/robustness-cpu.json.
#
#   benchmarks/robustness.sh RUNS_FOLDER
#
# Takes half a minute to three minutes per method on two cores; existing runs are continued, not repeated. PYTHON
# chooses the interpreter (default: that of make's environment, if there is one), BEFORE is a prefix of every command,
# SUITE is the suite of attacks.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:?usage: benchmarks/robustness.sh RUNS_FOLDER}
python=${PYTHON:-$(command -v .venv/bin/python || echo python3)}
export PYTHONPATH=$PWD
runs=()
fit() { # name, options
    local run=$folder/$1
    shift
    runs+=("$run")
    [ -e "$run/config.json" ] && set -- "$@" --resume
    ${BEFORE:-} "$python" -m train fit mnist5k-standard --epochs 6 --batch-size 128 --optimizer.learning-rate 0.1 \
        --run-dir "$run" --no-evaluate "$@"
}
flow=(--method flow-gradient --method.weight 12)
deformation=(--method deformation --method.radius 0.675)
fit standard
fit input-gradient --method input-gradient --method.weight 1
fit flow-gradient "${flow[@]}"
fit flow-gradient-every-4th-step "${flow[@]}" --method.every 4
fit deformation-1-step "${deformation[@]}" --method.steps 1
fit deformation-7-steps "${deformation[@]}" --method.steps 7
fit adversarial-7-steps --method adversarial --method.radius 0.2 --method.steps 7
${BEFORE:-} "$python" -m train evaluate "${runs[@]}" --suite "${SUITE:-quick}" --examples 400 --output "$folder"
"$python" -m benchmarks robustness --comparison "$folder/comparison.json" \
    --cost benchmarks/results/cost-small-cnn-cpu.json --json benchmarks/results/robustness-cpu.json
"$python" -m benchmarks report

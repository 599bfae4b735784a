#!/usr/bin/env bash
# What each method buys: trains the demo's network by every method, attacks all of them, and puts the accuracies beside
# the cost of a step (benchmarks/results/cost-small-cnn-cpu.json) in benchmarks/results/robustness-cpu.json.
#
#   benchmarks/robustness.sh RUNS_FOLDER
#
# Half a minute to three minutes a method on two cores; runs that are there are kept. PYTHON chooses the interpreter
# (default: that of make's environment, if there is one), BEFORE is put before every command, SUITE is the suite of
# attacks.
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
flow=(--method.name flow-gradient --method.weight 12)
deformation=(--method.name deformation --method.radius 0.675)
fit standard
fit input-gradient --method.name input-gradient --method.weight 1
fit flow-gradient "${flow[@]}"
fit flow-gradient-every-4th-step "${flow[@]}" --method.every 4
fit deformation-1-step "${deformation[@]}" --method.steps 1
fit deformation-7-steps "${deformation[@]}" --method.steps 7
fit adversarial-7-steps --method.name adversarial --method.radius 0.2 --method.steps 7
${BEFORE:-} "$python" -m train evaluate "${runs[@]}" --suite "${SUITE:-quick}" --examples 400 --output "$folder"
"$python" -m benchmarks robustness --comparison "$folder/comparison.json" \
    --cost benchmarks/results/cost-small-cnn-cpu.json --json benchmarks/results/robustness-cpu.json
"$python" -m benchmarks report

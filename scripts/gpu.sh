#!/usr/bin/env bash
# What there is to measure on a GPU, in steps of under ten minutes each:
#
#     scripts/gpu.sh bench "MLP, batch 20"    a work of the benchmark, without the peers
#     scripts/gpu.sh profile                  where a step's time goes at batch 20 and 128
#     scripts/gpu.sh iwae                     Burda et al.'s full schedule, 3,280 epochs: k = 1, 5 and 50
#     scripts/gpu.sh evaluate                 L_5000 of what `iwae` has finished
#
# `iwae` stops after nine minutes and goes on where it was when it is called again, until it says
# that all runs are finished. PYTHON names the interpreter, of an environment with the extra `cuda`.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
vae_jax=("$python" -c "from vae_jax.cli import main; main()")
stages=${STAGES:-8}
minutes=${MINUTES:-9}

case ${1:-} in
bench)
    # Its programs live side by side, so none may take the whole memory.
    XLA_PYTHON_CLIENT_PREALLOCATE=false \
        timeout 590 "$python" scripts/benchmark.py --no-with-peers --only "${@:2}"
    ;;
profile)
    for batch in 20 128; do
        "$python" scripts/profile_step.py --work mlp --batch-size "$batch" --steps 200
        "$python" scripts/profile_step.py --work iwae --batch-size "$batch" --steps 200
    done
    ;;
iwae)
    end=$((SECONDS + 60 * minutes))
    for k in 1 5 50; do
        left=$((end - SECONDS))
        ((left > 30)) || exit 0
        # After SIGTERM the state is saved: 143 is a run that wants to go on.
        timeout --signal TERM "$left" "${vae_jax[@]}" train experiments/iwae.py \
            --k "$k" --stages "$stages" --workdir "runs/gpu/iwae-$k" || {
            status=$?
            ((status == 124 || status == 143)) && exit 0
            exit "$status"
        }
    done
    echo "All runs are finished."
    ;;
evaluate)
    for run in runs/gpu/iwae-*; do
        timeout 590 "${vae_jax[@]}" evaluate "$run" --num-samples 5000
    done
    ;;
*)
    sed -n '2,/^set/{/^#/s/^# \?//p}' "$0"
    exit 2
    ;;
esac

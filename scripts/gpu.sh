#!/usr/bin/env bash
# What there is to measure on a GPU, in steps of under ten minutes each:
#
#     scripts/gpu.sh bench "MLP, batch 20"    a work of the benchmark
#     scripts/gpu.sh bfloat16 VGG 256         a network's share of bfloat16's rate: batch 64, 256, 1024
#     scripts/gpu.sh variants                 a step of IWAE at batch 20 without its guard, metrics etc.
#     scripts/gpu.sh seeds                    seeds of a convolutional VAE by vmap, lax.map, processes
#     scripts/gpu.sh tf32                     errors of densities and their gradients in TF32
#     scripts/gpu.sh profile                  where a step's time goes at batch 20 and 128
#     scripts/gpu.sh iwae                     three cells of `table iwae` at once: k = 1, 5 and 50
#     scripts/gpu.sh evaluate                 L_5000 of what `iwae` has finished
#     scripts/gpu.sh table vampprior          a paper's table, in runs/gpu/vampprior; flags may follow
#     scripts/gpu.sh next                     what is left of which table, and the command for it
#
# `table` trains for seven minutes and evaluates what there is then; `iwae` stops after nine. Both go
# on where they were when they are called again, until they say that all runs are finished. Their
# folder is runs/gpu: where machines come and go, copy it out after a call and back before the next.
# KS="1 5" runs some of `iwae`; flags may follow `variants` and `seeds`. PYTHON names the interpreter,
# of an environment with the extra `cuda`; PEERS an environment with PyTorch, without which `bench`
# and `bfloat16` leave it out.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
vae_jax=("$python" -c "from vae_jax.cli import main; main()")
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
benchmark=(timeout 590 "$python" scripts/benchmark.py --peers "${PEERS:-.venv-peers}")
# Several programs share the memory, so none may take all of it. What is independent in a step of
# small operations runs side by side.
export XLA_PYTHON_CLIENT_PREALLOCATE=false
export XLA_FLAGS="${XLA_FLAGS:-} --xla_gpu_command_buffer_scheduling_mode=CONCURRENT"

of_table=objective=iwae,layers=1,data=mnist  # the cells of `table iwae` that `iwae` trains

# Nvidia's MPS, where there is one, lets the kernels of several processes run side by side.
share_the_device() {
    # It fails where it runs already, and is then left running.
    if command -v nvidia-cuda-mps-control >/dev/null && nvidia-cuda-mps-control -d; then
        trap 'echo quit | nvidia-cuda-mps-control' EXIT
    fi
}

case ${1:-} in
bench)
    "${benchmark[@]}" --only "${@:2}"
    ;;
bfloat16)
    "${benchmark[@]}" --rounds 3 --only "$2, 32x32 colours, batch $3, bfloat16"
    ;;
variants)
    timeout 590 "$python" scripts/time_variants.py "${@:2}"
    ;;
seeds)
    share_the_device
    timeout 590 "$python" scripts/time_seeds.py "${@:2}"
    ;;
tf32)
    timeout 590 "$python" scripts/tensorfloat32.py
    ;;
profile)
    export XLA_FLAGS="$XLA_FLAGS --xla_gpu_enable_command_buffer="  # no CUDA graphs: each kernel
    for batch in 20 128; do
        for work in mlp iwae; do
            timeout 145 "$python" scripts/profile_step.py \
                --work "$work" --batch-size "$batch" --steps 200
        done
    done
    ;;
iwae)
    share_the_device
    runs=()  # a process for each k
    for k in ${KS:-1 5 50}; do
        # At SIGTERM a run saves its state and ends.
        timeout --signal TERM "$((60 * ${MINUTES:-9}))" "${vae_jax[@]}" train experiments/iwae.py \
            --k "$k" --workdir "runs/gpu/iwae/k=$k,$of_table" &
        runs+=($!)
    done
    unfinished=
    for run in "${runs[@]}"; do
        wait "$run" || { status=$?; ((status == 124)) && unfinished=yes || exit "$status"; }
    done
    [[ $unfinished ]] || echo "All runs are finished."
    ;;
evaluate)
    for run in runs/gpu/iwae/k=*,"$of_table"; do
        timeout 195 "${vae_jax[@]}" evaluate "$run" --num-samples 5000  # of three
    done
    ;;
table)
    timeout --signal TERM 590 "${vae_jax[@]}" table "experiments/$2.py" \
        --workdir "runs/gpu/$2" --budget 0.12h "${@:3}"
    ;;
next)
    for file in $(grep -l '^def table' experiments/*.py); do
        name=$(basename "$file" .py)
        failed=
        sentences=$(timeout 35 "${vae_jax[@]}" table "$file" --workdir "runs/gpu/$name" \
            --no-train 2>&1) || failed=yes
        left=$(grep -cE ' is (missing:|not finished:|not evaluated)' <<<"$sentences" || true)
        if ((left)); then
            echo "$left cells of $file are left: scripts/gpu.sh table $name"
        elif [[ $failed ]]; then
            echo "What is left of $file could not be found: ${sentences##*$'\n'}"
        fi
    done
    ;;
*)
    sed -n '2,/^set/{/^#/s/^# \?//p}' "$0"
    exit 2
    ;;
esac

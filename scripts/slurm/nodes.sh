#!/bin/bash
# What the .sbatch files share: one launcher on each machine of a SLURM job, and back into the queue when interrupted.
#
#   nodes.sh LAUNCH_CONFIG train|sft CONFIG.yaml [--key=value ...]
#
# The job's own output shows process 0. Below logs/slurm-JOB/: node-K.out, the first process of machine K, and
# node-K/, a file for the output of every process.
set -uo pipefail

if (($# < 3)); then
    echo "nodes.sh: a verb and a file of settings are missing; write e.g. sbatch scripts/slurm/zero3.sbatch train CONFIG.yaml" >&2
    exit 2
fi
config=$1 verb=$2
shift 2

# A job that comes back goes on with its run; it must neither start afresh nor go back.
words=()
for word in "$@"; do
    if [[ $word =~ ^--resume_from_checkpoint && ! $word =~ =(true|True)$ ]]; then
        echo "nodes.sh: $word: each time the job comes back, it would begin there again; leave it out, and the run goes" \
            "on from its last checkpoint. To go on from an earlier one, move the later ones elsewhere" >&2
        exit 2
    fi
    if [[ $word != --overwrite || ${SLURM_RESTART_COUNT:-0} -eq 0 ]]; then
        words+=("$word")
    fi
done

# Without this number the other GPUs of each machine would stand idle for the whole job, without a word.
if [[ -z ${SLURM_GPUS_ON_NODE:-} ]]; then
    echo "nodes.sh: SLURM does not say how many GPUs a machine has; ask for them (sbatch --gpus-per-node 8, or --gres" \
        "gpu:8), or export SLURM_GPUS_ON_NODE=8 in nodes.sh" >&2
    exit 2
fi
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
processes=$((SLURM_JOB_NUM_NODES * SLURM_GPUS_ON_NODE))
# Jobs that share a machine need ports of their own.
port=${MAIN_PROCESS_PORT:-$((20000 + SLURM_JOB_ID % 20000))}
export LOGS=${LOGS:-logs/slurm-$SLURM_JOB_ID}
mkdir -p "$LOGS"

# What the cluster needs; see docs/clusters.md. Set your own before sbatch, or here.
# export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0   # the network between the machines
# export NCCL_IB_HCA=mlx5                                # its adapters
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-8}
export PYTHONUNBUFFERED=1
# Where SLURM signals the launchers too, they give a checkpoint this many seconds.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-300}

# The processes watch one another, so SLURM must not end the others of one that leaves: they may still be saving.
# $SLURM_NODEID and the rest are read on each machine.
# shellcheck disable=SC2016
srun --ntasks-per-node=1 --kill-on-bad-exit=0 bash -c '
    [[ $SLURM_NODEID -eq 0 ]] || exec >>"$LOGS/node-$SLURM_NODEID.out" 2>&1
    exec python -m simpo.cli "$@" --machine_rank "$SLURM_NODEID" --log_dir "$LOGS/node-$SLURM_NODEID"
' simpo "$verb" "${words[@]}" --accelerate "$config" --num_machines "$SLURM_JOB_NUM_NODES" \
    --num_processes "$processes" --main_process_ip "$first" --main_process_port "$port"
code=$?

if [[ $code -eq 75 && ${SLURM_RESTART_COUNT:-0} -lt ${MAX_REQUEUES:-100} ]]; then
    echo "Interrupted in order; back into the queue"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"

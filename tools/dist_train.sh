#!/usr/bin/env bash
# Train on the GPUs of one or more machines, through torchrun.
# Usage: tools/dist_train.sh CONFIG GPUS [options of train.py]
# Many machines: set NNODES, NODE_RANK, MASTER_ADDR and, if taken, PORT on each.
# MAX_RESTARTS=3 starts all processes again, up to that often, when one dies; with --resume they go on.
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,5s/^# //p' "$0"; exit 2; }
config=$1 gpus=$2
shift 2
exec python -m torch.distributed.run \
    --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}" \
    --nproc_per_node="$gpus" --max_restarts="${MAX_RESTARTS:-0}" \
    "$(dirname "$0")/train.py" "$config" --launcher pytorch "$@"

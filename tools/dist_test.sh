#!/usr/bin/env bash
# Evaluate on the GPUs of one or more machines, through torchrun.
# Usage: tools/dist_test.sh CONFIG CHECKPOINT GPUS [options of test.py]
# Many machines: set NNODES, NODE_RANK, MASTER_ADDR and, if taken, PORT on each.
set -euo pipefail
[ $# -ge 3 ] || { sed -n '2,4s/^# //p' "$0"; exit 2; }
config=$1 checkpoint=$2 gpus=$3
shift 3
exec python -m torch.distributed.run \
    --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}" \
    --nproc_per_node="$gpus" \
    "$(dirname "$0")/test.py" "$config" "$checkpoint" --launcher pytorch "$@"

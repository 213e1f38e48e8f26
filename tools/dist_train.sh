#!/usr/bin/env bash
# Train on the GPUs of one or more machines, through torchrun.
# Usage: tools/dist_train.sh CONFIG GPUS [options of train.py]
# Many machines: set NNODES, NODE_RANK, MASTER_ADDR and, if taken, PORT on each.
# MAX_RESTARTS=3 starts all processes again, up to that often, when one dies; with --resume they go on.
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,5s/^# //p' "$0"; exit 2; }
config=$1 gpus=$2
shift 2
address=${MASTER_ADDR:-127.0.0.1} port=${PORT:-29500} nodes=${NNODES:-1}
if [ "${MAX_RESTARTS:-0}" = 0 ]; then
    meeting=(--node_rank="${NODE_RANK:-0}" --master_addr="$address" --master_port="$port")
else
    # A fresh store for each start: torchrun shares one otherwise, and the new processes may find the
    # addresses of dead ones in it (pytorch/pytorch#135712).
    export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
    meeting=(--max_restarts="$MAX_RESTARTS" --rdzv_backend=c10d --rdzv_endpoint="$address:$port")
    [ "$nodes" != 1 ] || meeting+=(--local_addr="$address")
fi
exec python -m torch.distributed.run --nnodes="$nodes" "${meeting[@]}" --nproc_per_node="$gpus" \
    "$(dirname "$0")/train.py" "$config" --launcher pytorch "$@"

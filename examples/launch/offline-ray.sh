#!/bin/bash
# The il of every sample by a job of a Ray cluster; from any machine that reaches the cluster's dashboard:
#
#   export RAY_API_SERVER_ADDRESS=http://HEAD:8265 SHARDS='s3://bucket/train-{000000..009999}.tar' \
#       IL_MODEL=s3://bucket/il-model TABLE=s3://bucket/il
#   examples/launch/offline-ray.sh --actors 64
#
# The driver runs on the head node and ends with compute-il's exit code; what is there is never made again, so after any
# failure submit it again. rhostream[ray,s3] is part of the nodes' image or environment, and so are credentials (roles of
# the machines): what `ray job submit` is given can be read in the dashboard.
set -euo pipefail
: "${SHARDS:?}" "${IL_MODEL:?}" "${TABLE:?}"

ray job submit --submission-id "rhostream-il-$(date +%s)" -- \
    rhostream compute-il --shards "$SHARDS" --il-model "$IL_MODEL" --out "$TABLE" --engine ray --ray-address auto "$@"

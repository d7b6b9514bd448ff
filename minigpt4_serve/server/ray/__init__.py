"""Deployments on Ray Serve: the only package that imports Ray. Its environment is set before Ray is imported."""

import os

# Ray reads these while it is imported: a local cluster must neither report usage nor, when we run under `uv run`, ship
# the working directory and start every worker through uv again. Values set by the user take precedence.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
# Replicas are the machine's main purpose: no lower priority.
os.environ.setdefault("RAY_worker_niceness", "0")
# Deltas travel between processes as messages of a gRPC stream, not each as an object of Ray's store, and within a
# process not from thread to thread: either costs more than the delta itself. See docs/design-notes.md.
os.environ.setdefault("RAY_SERVE_USE_GRPC_BY_DEFAULT", "1")
os.environ.setdefault("RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD", "0")
os.environ.setdefault("RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP", "0")
# A request with its images is one such message, and Serve's own limit of 4 MiB is less than one photograph. This is the
# most that gRPC can send; what a request may hold is limited by max_body_bytes, which a running server can change.
os.environ.setdefault("RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH", "2147483647")
# Ray's own counters go out once a second, not ten times.
os.environ.setdefault("RAY_SERVE_METRICS_EXPORT_INTERVAL_MS", "1000")
# gRPC between our own processes never uses a proxy. Empty, this variable overrides http_proxy and https_proxy, which
# gRPC would obey, and which other libraries keep.
os.environ["grpc_proxy"] = ""  # noqa: SIM112 - gRPC's name
# Printed at the end if Ray kills its controller before that has cleaned up: of no use to an operator.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "graceful_shutdown failed")

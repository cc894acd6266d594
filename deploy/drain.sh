#!/bin/sh
# drain.sh POOL PID: have a pool start no more runs, and wait until the worker with this process id has none left.
#
# The pool is paused for all of its workers; runs that come meanwhile wait as Late. `prefect work-pool resume POOL` goes on
# with them.
set -e
prefect work-pool pause "$1"
while pgrep -P "$2" -f '(prefect|flows)\.(engine|flow_engine)|selftrain-engine|prefect flow-run execute' >/dev/null; do
    sleep 5
done

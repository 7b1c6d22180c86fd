#!/usr/bin/env bash
# A training on SLURM, one process a GPU, that goes on by itself where a time limit or a preemption stopped it.
#
#   sbatch --nodes=2 --gpus-per-node=8 --ntasks-per-node=8 launch/slurm.sh --config configs/resnet50.py --workdir /shared/r50
#
# The workdir is required, on storage that all nodes share: a second start must find what the first one saved. Two
# minutes before the time limit all processes get SIGTERM, save the same step and end with exit code 75; then the job is
# put back into the queue, and the same command resumes. On any other code it ends with that.
#
#SBATCH --job-name=jaxvision
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=TERM@120
#SBATCH --time=24:00:00
set -uo pipefail

case " $* " in
  *" --workdir "* | *" --workdir="*) ;;
  *)
    echo "slurm.sh: give --workdir DIR, on storage that all nodes share" >&2
    exit 2
    ;;
esac

# Preemption sends SIGTERM to this shell as well, which would end before it has seen what the processes returned.
trap : TERM
srun --kill-on-bad-exit=0 "${PYTHON:-python}" -m jaxvision.train "$@"
code=$?
if [ "$code" -eq 75 ]; then
  echo "slurm.sh: interrupted after saving, back into the queue"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"

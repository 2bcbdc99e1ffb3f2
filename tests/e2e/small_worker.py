"""A worker process whose trainings only count. Run by the tests: ``python -m tests.e2e.small_worker DATA_DIR DEVICE LEASE_S STEP_S``."""

import sys
import time
from pathlib import Path

from isengard import files, logs
from isengard.domain.job import JobKind, Phase, Progress
from isengard.errors import JobStopped
from isengard.settings import Settings
from isengard.supervisor import end_with_parent, only_worker, stopping
from isengard.wiring import open_queue
from isengard.worker import Worker

STEPS_BETWEEN_SAVES = 5


def count(job, report):
    """Write one line for each step; go on from the last saved step, as a training does."""
    folder = settings.runs_dir / job.id
    folder.mkdir(parents=True, exist_ok=True)
    saved = folder / "saved"
    lines = saved.read_text().splitlines() if saved.exists() else []
    total = job.payload["steps"]
    while len(lines) < total:
        lines.append(f"step {len(lines) + 1}")
        (folder / "now").write_text(f"{job.attempt} {len(lines)}")
        try:
            report(Progress(phase=Phase.TRAINING, step=len(lines), total=total))
        except JobStopped:
            files.write_text(saved, "\n".join(lines))
            raise
        if len(lines) % STEPS_BETWEEN_SAVES == 0:
            files.write_text(saved, "\n".join(lines))
        time.sleep(float(step_s))
    return {"lines": lines}


data_dir, device, lease_s, step_s, *parent = sys.argv[1:]
settings = Settings.load(data_dir=Path(data_dir), device=device, lease_s=lease_s)
logs.configure(level="INFO", path=settings.logs_dir / "worker.jsonl", terminal_level="CRITICAL")
queue = open_queue(settings)
with stopping() as stop, only_worker(settings, queue) as name:
    for number in parent:
        end_with_parent(int(number), stop)
    handlers = {JobKind.TRAIN_LORA: count}
    Worker(queue=queue, handlers=handlers, name=name, lease_s=settings.lease_s, owns_process=True).run(
        stop, poll_s=0.05
    )

"""The worker process is killed while it compares checkpoints: what it made stays, and the next one goes on behind it."""

import pytest

from isengard.domain.job import JobStatus, Phase
from tests.comparisons import FEW, drawn_app, new_run, write_checkpoints
from tests.e2e.test_kills import kill_at, run_to_the_end
from tests.forked_workers import Moment


@pytest.mark.slow
def test_a_killed_comparison_goes_on_behind_its_last_picture(tmp_path, tiny_flux):
    app = drawn_app(tmp_path, tiny_flux)
    run = new_run(app, write_checkpoints(tmp_path / "checkpoints", tiny_flux, steps=(2, 4)))
    job = app.comparison.submit(app.comparison.plan(run, **FEW | {"num_inference_steps": 6}))
    kill_at(app, job.id, Moment((Phase.GENERATING,), step=6 * 10 + 1))
    folder = app.settings.runs_dir / run / "comparison"
    made = {path: path.stat().st_mtime_ns for path in folder.glob("*/*.png")}
    ended = run_to_the_end(app, job.id)
    assert (ended.status, ended.attempt) == (JobStatus.SUCCEEDED, 2)
    assert ended.result["pictures"] == 24 - len(made)
    assert all(path.stat().st_mtime_ns == at for path, at in made.items())
    assert app.comparison.of_run(run).complete
    assert not list(folder.rglob("*.partial-*"))

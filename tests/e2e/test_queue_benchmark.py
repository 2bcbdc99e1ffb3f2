"""The benchmark of the queue runs and ends by itself. What it measures is not judged here."""

import json

import pytest

from benchmarks import queue


@pytest.mark.slow
def test_the_queues_are_measured_side_by_side(tmp_path, capsys):
    small = ["--workers", "3", "--jobs", "12", "--processes", "2", "--seconds", "1.5"]
    queue.main([*small, "--json", str(tmp_path / "result.json")])
    shared, own = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    for result in (shared, own):
        assert (result["jobs"], len(result["claims"]), result["refused"]) == (12, 12, 0)
        assert len(result["claims_at_work"]) >= 3
        assert result["progress"]
    assert shared["waiting_bytes"] > 0
    assert own["waiting_bytes"] is None
    assert "claims per s, flat out" in capsys.readouterr().out


def test_no_workers_are_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        queue.main(["--workers", "0"])
    assert "must be 1 or more" in capsys.readouterr().err

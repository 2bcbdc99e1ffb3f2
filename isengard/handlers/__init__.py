"""One function per kind of job. A worker calls it; its outputs are keyed by the job, so twice is as good as once."""

"""What of the data folder can go, and removing it. Whatever a job uses, or may use again, stays."""

import json
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from isengard.domain.job import Job, JobKind, JobStatus
from isengard.domain.storage import DAY_S, Cleaned, File, Item, Policy, days_of
from isengard.errors import Conflict, NotFound
from isengard.files import PARTIAL
from isengard.queue.base import JobQueue
from isengard.store import looks
from isengard.store.characters import CharacterStore
from isengard.store.comparisons import Comparisons
from isengard.store.download import UNFINISHED, locked
from isengard.store.usage import remove

#: Requests for images that are looked at; where more wait, no checkpoint goes.
REQUESTS = 5000
UNENDED = tuple(status for status in JobStatus if not status.ended)
#: Caches, by the folder they are in; uploads are copies of what was taken over or refused.
CACHES = ("latents", "prompts", "pictures", *looks.FOLDERS)
UPLOADS = "cache/uploads/"
#: What `ModelService.remove` renames a model to before it deletes it.
REMOVED = ".removed"


class Cleanup:
    """The policies. The data folder is laid out as `isengard.settings.Settings` says."""

    def __init__(
        self,
        *,
        folder: Path,
        queue: JobQueue,
        characters: CharacterStore,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._folder, self._queue, self._characters, self._clock = folder, queue, characters, clock
        self._comparisons = Comparisons(folder / "runs")

    def items(
        self, files: Sequence[File], trainings: Mapping[str, Job], *, days: float | None
    ) -> Iterator[Item]:
        """What can go of these files when it is older than so many days; by default as `DEFAULT_DAYS` says.

        ``trainings``: those of the folders of runs, as far as the job list knows them.
        """
        old = {policy: self._clock() - days_of(policy, days) * DAY_S for policy in Policy}
        used = self._steps_in_use()
        by_run: dict[str, list[File]] = defaultdict(list)
        for file in files:
            top, _, rest = file.path.partition("/")
            if top == "runs":
                by_run[rest.partition("/")[0]].append(file)
        for job_id, own in by_run.items():
            job = trainings.get(job_id)
            if job is not None and job.status.ended:
                yield from _samples(job, own, old[Policy.SAMPLES])
                if used is not None:
                    yield from self._checkpoints(job, own, old[Policy.CHECKPOINTS], used.get(job_id, set()))
        yield from _trash(files, old[Policy.TRASH])
        yield from _caches(files, old[Policy.CACHE])
        unended = {job.id for job in trainings.values() if not job.status.ended}
        yield from _abandoned(files, old[Policy.ABANDONED], unended)

    def remove(self, items: Iterable[Item]) -> Cleaned:
        """Remove what was found; what has come into use since then stays."""
        freed, count, kept = 0, 0, []
        for item in items:
            try:
                self._check(item)
                for path in item.paths:
                    self._remove_one(item.policy, path)
            except (Conflict, NotFound, OSError) as error:
                kept.append(f"{item.what} stays: {error}")
            else:
                freed, count = freed + item.size, count + 1
        return Cleaned(size=freed, items=count, kept=tuple(kept))

    def _check(self, item: Item) -> None:
        """Raises: Conflict, NotFound: it is in use now, or gone."""
        if not item.job:
            return
        job = self._queue.get(item.job)
        needed = JobStatus.SUCCEEDED if item.policy is Policy.CHECKPOINTS else None
        if not job.status.ended or job.status is not (needed or job.status):
            raise Conflict(f"training {job.id} is {job.status} now")
        if item.policy is Policy.CHECKPOINTS:
            used, going = self._steps_in_use(), {_step(path) for path in item.paths}
            if used is None or self._protected(job, used.get(job.id, set())) & going:
                raise Conflict("one of them is kept or used now; look again")

    def _remove_one(self, policy: Policy, path: str) -> None:
        parts, whole = path.split("/"), self._folder / path
        if policy is Policy.TRASH and parts[1] == "characters":
            self._characters.purge(parts[2])
        elif parts[0] == "models" and path.endswith(UNFINISHED):
            with locked([self._folder / "models" / parts[1]]):
                remove(whole)
        else:
            with suppress(FileNotFoundError):
                remove(whole)

    def _steps_in_use(self) -> Mapping[str, set[int]] | None:
        """Checkpoints that pictures will be made with, by run; None when there are too many requests to tell."""
        steps: dict[str, set[int]] = defaultdict(set)
        kinds = (JobKind.GENERATE_IMAGES, JobKind.EVALUATE_CHECKPOINTS)
        waiting = self._queue.jobs(kinds=kinds, statuses=UNENDED, limit=REQUESTS)
        if len(waiting) == REQUESTS:
            return None
        for job in waiting:
            spec = job.payload.get("spec", {})
            for ref in spec.get("loras", ()):
                if ref.get("step") is not None:
                    steps[ref.get("lora", "")].add(int(ref["step"]))
            if job.kind is JobKind.EVALUATE_CHECKPOINTS:
                steps[spec.get("run", "")].update(spec.get("steps", ()))
        return steps

    def _checkpoints(
        self, job: Job, files: Sequence[File], old: float, used: Collection[int]
    ) -> Iterator[Item]:
        """Those between the first and the last of a training that succeeded: any other may still go on from one."""
        if job.status is not JobStatus.SUCCEEDED or (job.finished_at or old) > old:
            return
        sizes: dict[str, int] = defaultdict(int)
        for file in files:
            parts = file.path.split("/")
            if len(parts) > 4 and parts[2] == "checkpoints" and _step(parts[3]) is not None:
                sizes["/".join(parts[:4])] += file.size
        steps = {path: step for path in sizes if (step := _step(path)) is not None}
        stay = self._protected(job, set(used)) | {max(steps.values(), default=0)}
        paths = tuple(sorted(path for path, step in steps.items() if step not in stay))
        if paths:
            what = f"{len(paths)} checkpoints of {_name(job)} (those of steps {_listed(stay & set(steps.values()))} stay)"
            yield Item(
                policy=Policy.CHECKPOINTS,
                what=what,
                paths=paths,
                size=sum(sizes[path] for path in paths),
                job=job.id,
            )

    def _protected(self, job: Job, used: set[int]) -> set[int]:
        """The steps whose checkpoints stay, besides the last that is there."""
        result, folder = job.result or {}, self._folder / "runs" / job.id / "checkpoints"
        stay = {step for name in ("steps", "best_step") if isinstance(step := result.get(name), int)}
        for one in folder.glob("step-*"):
            if (one / "pinned").exists() or _reason(one) == "requested":
                stay.add(_step(one.name) or 0)
        comparison = self._comparisons.read(job.id)
        if comparison and comparison.verdict.recommended:
            stay.add(comparison.verdict.recommended.step)
        return stay | used


def _samples(job: Job, files: Sequence[File], old: float) -> Iterator[Item]:
    """All pictures but those of the last step."""
    if (job.finished_at or old) > old:
        return
    steps: dict[int, list[File]] = defaultdict(list)
    for file in files:
        parts = file.path.split("/")
        if len(parts) == 4 and parts[2] == "samples" and parts[3][:8].isdecimal():
            steps[int(parts[3][:8])].append(file)
    going = [file for step in steps if step != max(steps) for file in steps[step]]
    if going:
        what = f"{len(going)} sample pictures of {_name(job)}"
        yield _item(Policy.SAMPLES, what, going, job=job.id)


def _trash(files: Sequence[File], old: float) -> Iterator[Item]:
    entries: dict[str, list[File]] = defaultdict(list)
    for file in files:
        parts = file.path.split("/")
        if parts[0] == "trash" and len(parts) > 2 and PARTIAL not in parts[2]:
            entries["/".join(parts[:3])].append(file)
    for path, own in entries.items():
        kind, name = path.split("/")[1:]
        if _thrown_away_at(name, own) <= old:
            yield _item(
                Policy.TRASH, f"{kind.removesuffix('s')} {name.partition('-')[2] or name}", own, paths=[path]
            )


def _caches(files: Sequence[File], old: float) -> Iterator[Item]:
    for name in CACHES:
        unused = [file for file in files if file.path.startswith(f"cache/{name}/") and file.changed_at <= old]
        unused = [file for file in unused if PARTIAL not in file.path]
        if unused:
            yield _item(Policy.CACHE, f"{len(unused)} cached {name}", unused)


def _abandoned(files: Sequence[File], old: float, unended: Collection[str]) -> Iterator[Item]:
    """Writes that a killed process left, by what they would have become; downloads and uploads."""
    found: dict[str, list[File]] = defaultdict(list)
    for file in files:
        parts = file.path.split("/")
        if parts[0] == "runs" and parts[1] in unended:
            continue
        place = next((place for place, part in enumerate(parts) if _is_unfinished(part, parts[0])), None)
        if place is not None:
            found["/".join(parts[: place + 1])].append(file)
    for path, own in found.items():
        if max(file.changed_at for file in own) <= old:
            yield _item(Policy.ABANDONED, f"unfinished {path}", own, paths=[path])
    uploads = [file for file in files if file.path.startswith(UPLOADS) and file.changed_at <= old]
    if uploads:
        yield _item(Policy.ABANDONED, f"{len(uploads)} uploads that were taken over long ago", uploads)


def _is_unfinished(name: str, top: str) -> bool:
    left = top == "models" and (name.endswith(UNFINISHED) or (name[0] == "." and name.endswith(REMOVED)))
    return left or PARTIAL in name


def _item(
    policy: Policy, what: str, files: Sequence[File], *, paths: Sequence[str] = (), job: str = ""
) -> Item:
    return Item(
        policy=policy,
        what=what,
        paths=tuple(paths or (file.path for file in files)),
        size=sum(file.size for file in files),
        job=job,
    )


def _thrown_away_at(name: str, files: Sequence[File]) -> float:
    try:
        return datetime.strptime(f"{name.partition('-')[0]}+0000", "%Y%m%dT%H%M%SZ%z").timestamp()
    except ValueError:
        return max(file.changed_at for file in files)


def _step(path: str) -> int | None:
    name = path.rpartition("/")[2]
    return int(name[5:]) if name.startswith("step-") and name[5:].isdecimal() else None


def _reason(checkpoint: Path) -> str:
    try:
        about = json.loads((checkpoint / "about.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "requested"  # nothing is known of it: it stays
    return str(about.get("reason", ""))


def _name(job: Job) -> str:
    """The training, for a person."""
    return f"{job.payload.get('name') or 'a training'} ({job.id})"


def _listed(steps: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(steps))) or "none"

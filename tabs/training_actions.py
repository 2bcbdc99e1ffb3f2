"""What the buttons of the training tab do. Every id that comes from the browser is looked up before it is used."""

from collections.abc import Callable
from typing import Any

from isengard.domain.job import Job, JobStatus
from isengard.errors import InstallFailed, InvalidSpec
from isengard.services.ai_toolkit import Outcome
from isengard.services.training import read_payload
from tabs import training_fields
from tabs.common import Page
from tabs.training_live import remedies
from tabs.training_setup import Choice


class Actions:
    """One method for each button. Raises: the services' errors."""

    def __init__(self, page: Page) -> None:
        self._app = page.app

    def admitted(self, address: str, make: Callable[[], Job]) -> Job:
        """The job that ``make`` enqueues, when this address may have one more."""
        return self._app.admission.submit(address, make)

    def start(self, choice: Choice, form: Any) -> Job:
        """Queue a training of what is chosen, with what was changed in the form."""
        if not choice.character:
            raise InvalidSpec("choose a character first; new ones are made on the Characters tab")
        return self._app.training.submit(
            character_id=choice.character,
            base_model=choice.model,
            preset=choice.preset,
            overrides=training_fields.overrides(form),
        )

    def install_engine(self) -> None:
        """Install AI-Toolkit in the background."""
        self._app.ai_toolkit.start()

    def stop_installing(self) -> None:
        self._app.ai_toolkit.cancel()

    def installed_engine(self) -> bool:
        """Whether the last installation reached its end; False when it was cancelled. Raises: InstallFailed."""
        installation = self._app.ai_toolkit.installation()
        if installation.outcome is Outcome.FAILED:
            raise InstallFailed(installation.error)
        return installation.outcome is Outcome.INSTALLED

    def cancel(self, job_id: str) -> Job:
        return self._app.jobs.cancel(job_id)

    def pause(self, job_id: str) -> Job:
        return self._app.jobs.pause(job_id)

    def resume(self, job_id: str) -> Job:
        return self._app.jobs.resume(job_id)

    def save(self, job_id: str) -> Job:
        return self._app.jobs.save_now(job_id)

    def sample(self, job_id: str) -> Job:
        return self._app.jobs.sample_now(job_id)

    def move(self, job_id: str, before: str) -> Job:
        """In front of another waiting job, or to the end."""
        return self._app.jobs.move(job_id, before=before or None)

    def forget(self, job_id: str) -> None:
        """Remove an ended training from the history."""
        self._app.jobs.remove(job_id)

    def mend(self, job_id: str, number: int) -> Job:
        """Press one of the buttons that `remedies` gives for the job."""
        job = self._app.jobs.get(job_id)
        remedy = self._app.training.remedy(job.id)
        ways = remedies(job, tuple(self._app.jobs.checkpoints(job.id)), remedy)
        if not 0 <= number < len(ways):
            raise InvalidSpec("this is not offered any more; look at the job again")
        return self._app.training.resume(job_id, ways[number]["changes"])

    def more(self, job_id: str, steps: int) -> Job:
        """Go on with an ended training for further steps."""
        job = self._app.jobs.get(job_id)
        if steps < 1:
            raise InvalidSpec(f"further steps must be at least 1, got {steps}")
        total = int((job.result or {}).get("steps", read_payload(job)[0].steps)) + steps
        if job.status is JobStatus.SUCCEEDED:
            return self._app.training.extend(job_id, total)
        return self._app.training.resume(job_id, {"steps": total})

    def again(self, job_id: str) -> tuple[Choice, dict[str, Any]]:
        """The choices and changes that make a training like that one."""
        spec = read_payload(self._app.jobs.get(job_id))[0]
        choice = Choice(spec.character, spec.base_model, spec.preset)
        plan = self._app.training.plan(
            character_id=choice.character, base_model=choice.model, preset=choice.preset, overrides={}
        )
        base, wanted = training_fields.values(plan), training_fields.values(spec)
        return choice, training_fields.differing(base, wanted)

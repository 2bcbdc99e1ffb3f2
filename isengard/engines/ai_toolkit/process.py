"""The subclass of AI-Toolkit's trainer. Each hook leads to `Run`; what it would write or delete itself it does not."""

from typing import Any

from isengard.engines.ai_toolkit.run import Run


def process_class(trainer: Any, run: Run) -> Any:  # noqa: C901  # counts the methods
    """Derive from ``trainer``, AI-Toolkit's ``SDTrainer``, for one run."""

    class IsengardProcess(trainer):  # type: ignore[misc]  # known only at run time
        def hook_before_model_load(self) -> None:
            super().hook_before_model_load()
            run.attach(self)

        def hook_after_model_load(self) -> None:
            super().hook_after_model_load()
            run.model_loaded()

        def hook_add_extra_train_params(self, params: Any) -> Any:
            run.network_made()
            return super().hook_add_extra_train_params(params)

        def before_dataset_load(self) -> None:
            super().before_dataset_load()
            run.optimizer_made()

        def hook_before_train_loop(self) -> None:
            super().hook_before_train_loop()
            self.sd.set_device_state(self.train_device_state_preset)
            run.begin()

        def calculate_loss(self, *args: Any, **options: Any) -> Any:
            return run.share(super().calculate_loss(*args, **options))

        def hook_train_loop(self, batch: Any) -> Any:
            with run.training_step(batch if isinstance(batch, list) else [batch]):
                self._losses = super().hook_train_loop(batch)
            return self._losses

        def end_step_hook(self) -> None:
            super().end_step_hook()
            run.stepped(self._losses["loss"])

        def get_latest_save_path(self, *_: Any, **__: Any) -> None:
            """It would choose by file time."""

        def save(self, step: int | None = None) -> None:
            """Checkpoints are written by `Run.save`."""

        def clean_up_saves(self) -> None:
            """`Checkpoints.retain` decides what goes."""

    return IsengardProcess

"""Plans for the machine at hand, with what was measured on it."""

from collections.abc import Callable, Collection

from isengard.domain import image_planner, planner
from isengard.domain.generation import ImageSpec
from isengard.domain.image_planner import ImagePlan
from isengard.domain.job import Needs
from isengard.domain.memory import Corrections, Cost, Machine
from isengard.domain.model import ModelCard
from isengard.domain.performance import PerformanceChoices
from isengard.domain.planner import TrainingPlan
from isengard.domain.training import TrainingSpec
from isengard.domain.worker import GIB


class Planning:
    """Asks for the machine's facts and the measured peaks at each plan."""

    def __init__(self, *, machine: Callable[[], Machine], corrections: Callable[[], Corrections]) -> None:
        self._machine, self._corrections = machine, corrections

    def machine(self) -> Machine:
        return self._machine()

    def corrections(self) -> Corrections:
        return self._corrections()

    def training(self, card: ModelCard, wishes: TrainingSpec, *, fixed: Collection[str] = ()) -> TrainingPlan:
        return planner.plan_training(
            card, wishes, self._machine(), fixed=fixed, corrections=self._corrections()
        )

    def after_out_of_memory(self, card: ModelCard, tried: TrainingSpec) -> TrainingPlan:
        return planner.plan_after_out_of_memory(card, tried, self._machine(), corrections=self._corrections())

    def images(self, card: ModelCard, spec: ImageSpec) -> ImagePlan:
        return image_planner.plan_generation(card, spec, self._machine(), corrections=self._corrections())

    def training_needs(self, card: ModelCard, spec: TrainingSpec) -> Needs:
        """What just these settings ask of a worker; its memory as it is counted."""
        expected = 0
        if card.parts is not None:
            expected = Cost(card, card.parts, self._machine(), self._corrections()).training(spec)
        return Needs(memory_gb=expected // GIB, engine=spec.engine, model=card.name)

    def image_needs(self, card: ModelCard, spec: ImageSpec) -> Needs:
        """What a request asks of a worker, which holds the model in the smallest way if it has to."""
        none = self._machine().model_copy(update={"free_bytes": 0})
        smallest = image_planner.plan_generation(card, spec, none, corrections=self._corrections())
        return Needs(memory_gb=smallest.peak_bytes // GIB, model=card.name)

    def makes_images(self, card: ModelCard) -> ImagePlan:
        """The plan for one image of the size that the model was made for."""
        side = card.resolutions[-1]
        asked = ImageSpec(
            base_model=card.name, prompt="-", width=side, height=side, performance=PerformanceChoices()
        )
        return self.images(card, asked)

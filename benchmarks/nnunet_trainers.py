"""nnU-Net trainers whose schedule ends after a given number of steps; copy into nnunetv2/training/nnUNetTrainer/variants.

    NNUNET_STEPS=150 nnUNetv2_train 4 3d_fullres 0 -tr nnUNetTrainerSteps -device cpu

Everything else is nnU-Net's: its plan, losses, optimiser, polynomial schedule (over the steps given here), augmentation and
final whole-volume validation. Epochs have 10 steps and one validation step.
"""

import os

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoMirroring import (
    nnUNetTrainerNoMirroring,
)

STEPS_PER_EPOCH = 10


def _shorten(trainer):
    trainer.num_iterations_per_epoch = STEPS_PER_EPOCH
    trainer.num_val_iterations_per_epoch = 1
    trainer.num_epochs = int(os.environ["NNUNET_STEPS"]) // STEPS_PER_EPOCH


class nnUNetTrainerSteps(nnUNetTrainer):  # noqa: N801 - found by nnU-Net under its own kind of name
    """The default trainer."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        _shorten(self)


class nnUNetTrainerStepsNoMirroring(nnUNetTrainerNoMirroring):  # noqa: N801
    """The trainer without mirroring, in training and in prediction."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        _shorten(self)

"""nnU-Net trainers whose schedule ends after a given number of steps.

Copy this file into nnunetv2/training/nnUNetTrainer/variants of the environment of nnU-Net 2.8.1; then

    NNUNET_STEPS=150 nnUNetv2_train 4 3d_fullres 0 -tr nnUNetTrainerSteps -device cpu

Everything else is nnU-Net's: its plan, losses, optimiser, polynomial schedule (over the steps given here), augmentation
and final whole-volume validation. Epochs have 10 steps and one validation step.
"""

import os

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoMirroring import (
    nnUNetTrainerNoMirroring,
)

CPU = torch.device("cpu")
STEPS_PER_EPOCH = 10


def _shorten(trainer):
    trainer.num_iterations_per_epoch = STEPS_PER_EPOCH
    trainer.num_val_iterations_per_epoch = 1
    trainer.num_epochs = int(os.environ["NNUNET_STEPS"]) // STEPS_PER_EPOCH
    trainer.save_every = 5  # epochs between checkpoints to continue from


class nnUNetTrainerSteps(nnUNetTrainer):
    """The default trainer."""

    def __init__(self, plans, configuration, fold, dataset_json, device=CPU):
        super().__init__(plans, configuration, fold, dataset_json, device)
        _shorten(self)


class nnUNetTrainerStepsNoMirroring(nnUNetTrainerNoMirroring):
    """The trainer without mirroring, in training and in prediction."""

    def __init__(self, plans, configuration, fold, dataset_json, device=CPU):
        super().__init__(plans, configuration, fold, dataset_json, device)
        _shorten(self)

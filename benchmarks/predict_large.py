"""Peak RSS and seconds of predicting one 400 x 400 x 300 scan with 20 classes, here and in nnU-Net.

The network is one convolution with fixed weights, the same in both tools: what is measured is everything around it. It
smooths the scan over 5 x 5 x 5 voxels and scores 21 grey levels, so that its classes are connected shells about ten
voxels thick, smooth as anatomy is. Run once per tool, each in its own virtual environment, on an
otherwise idle machine:

    python benchmarks/predict_large.py medseg  FOLDER
    python benchmarks/predict_large.py nnunet  FOLDER      # with nnunetv2 installed

Each run prints one JSON line: seconds to read and prepare the scan, inside the network, and after it (blending windows,
back to the scan's grid, writing; medseg also reads back what it wrote and compares, as `medseg predict` does), wall and
processor time, and peak RSS in MiB.
The scan is int16 at 0.3 mm; the network grid is 0.4 mm; patch 96 x 96 x 96, overlap 0.5, no mirroring.
"""

import json
import resource
import sys
import time
from pathlib import Path

import numpy as np

SHAPE, SPACING_MM, GRID_MM, CLASSES, PATCH = (300, 400, 400), 0.3, 0.4, 20, 96


def make_scan(path: Path) -> None:
    """Nested ellipsoid shells with smooth texture and noise, seed 0."""
    import SimpleITK as sitk

    rng = np.random.default_rng(0)
    axes = [np.linspace(-1, 1, n, dtype=np.float32) for n in SHAPE]
    radius = np.sqrt(sum(a.reshape([-1 if i == j else 1 for j in range(3)]) ** 2 for i, a in enumerate(axes)))
    array = (1000 * np.sin(radius * 3) + rng.normal(0, 60, SHAPE).astype(np.float32)).astype(np.int16)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing([SPACING_MM] * 3)
    sitk.WriteImage(image, str(path), True)


def smoothing_network():
    """Scores 2cv - c^2 of 21 levels c for the smoothed value v: their largest is the level next to v."""
    import torch

    levels = torch.linspace(-1.5, 1.5, CLASSES + 1)
    network = torch.nn.Conv3d(1, CLASSES + 1, 5, padding=2)
    with torch.no_grad():
        network.weight.copy_((2 * levels / 125).reshape(-1, 1, 1, 1, 1).expand_as(network.weight))
        network.bias.copy_(-(levels**2))
    return network.eval().requires_grad_(False)


class Clock:
    """Wall and processor seconds per stage."""

    def __init__(self):
        self.stages = {name: np.zeros(2) for name in ("prepare", "network", "after")}
        self.begun = self.now()

    def now(self):
        return np.array([time.perf_counter(), time.process_time()])

    def finished(self):
        self.stages["after"] = self.now() - self.begun - self.stages["prepare"] - self.stages["network"]

    def network(self, function):
        def run(*args, **kwargs):
            start = self.now()
            if not self.stages["network"].any():
                self.stages["prepare"] = start - self.begun
            result = function(*args, **kwargs)
            self.stages["network"] += self.now() - start
            return result

        return run


def run_medseg(scan: Path, out: Path, clock: Clock) -> None:
    import torch

    from medseg.io.images import read_image
    from medseg.types.result import ModelBundle, Provenance
    from medseg.workflow.model import predict_image
    from medseg.workflow.write_back import write_checked

    plan, cpu = medseg_plan(), torch.device("cpu")
    network = smoothing_network()

    @clock.network
    def forward(windows):
        with torch.inference_mode():
            return network(windows)

    image = read_image([scan])
    result = predict_image(image, ModelBundle(out, plan, (), {}), (forward,), device=cpu, case_id="scan")
    write_checked(result, out, "medseg", ("nii.gz",), Provenance("large", "0" * 64))


def medseg_plan():
    from medseg.types.labels import Label, Labels
    from medseg.types.plan import (
        Budget,
        Inference,
        LossTerm,
        Network,
        Origin,
        Plan,
        Preprocess,
        Sampling,
        Step,
        Topology,
        Training,
    )

    topology = Topology(3, (8, 16, 32), ((1, 1, 1), (2, 2, 2), (2, 2, 2)), ((3, 3, 3),) * 3, (2, 2, 2))
    return Plan(
        schema="medseg.plan/1",
        name="large",
        channels=("MR",),
        labels=Labels(tuple(Label(f"class {k}", (k,)) for k in range(1, CLASSES + 1))),
        preprocess=Preprocess((GRID_MM,) * 3, (Step("z_score"),)),
        network=Network("unet", topology),
        sampling=Sampling((PATCH,) * 3, 2),
        training=Training((LossTerm(1.0, "dice_ce"),), Step("sgd"), Step("poly"), (), epochs=1, precision="fp32"),
        inference=Inference(),
        postprocess=(),
        origin=Origin("0", "0", Budget(8.0), "unet"),
        reasons={},
    )


def run_nnunet(scan: Path, out: Path, clock: Clock) -> None:
    import torch
    from nnunetv2.inference.export_prediction import export_prediction_from_logits
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans = PlansManager(nnunet_plans())
    configuration = plans.get_configuration("3d_fullres")
    dataset = {
        "channel_names": {"0": "MR"},
        "labels": {"background": 0, **{f"class {k}": k for k in range(1, CLASSES + 1)}},
        "file_ending": ".nii.gz",
        "numTraining": 1,
    }
    network = smoothing_network()
    network.forward = clock.network(network.forward)
    predictor = nnUNetPredictor(
        use_mirroring=False, perform_everything_on_device=False, device=torch.device("cpu"), allow_tqdm=False
    )
    predictor.manual_initialization(
        network, plans, configuration, [network.state_dict()], dataset, "nnUNetTrainer", None
    )
    preprocessor = configuration.preprocessor_class(verbose=False)
    data, _, properties = preprocessor.run_case([str(scan)], None, plans, configuration, dataset)
    logits = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(np.asarray(data))).cpu()
    export_prediction_from_logits(logits, properties, configuration, plans, dataset, str(out / "nnunet"))


def nnunet_plans() -> dict:
    resample = {"order": 1, "order_z": 0, "force_separate_z": None}
    configuration = {
        "data_identifier": "x",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [PATCH] * 3,
        "median_image_size_in_voxels": [225, 300, 300],
        "spacing": [GRID_MM] * 3,
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": {"is_seg": False, **resample, "order": 3},
        "resampling_fn_seg_kwargs": {"is_seg": True, **resample},
        "resampling_fn_probabilities_kwargs": {"is_seg": False, **resample},
        "batch_dice": False,
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": {
                "n_stages": 3,
                "features_per_stage": [8, 16, 32],
                "conv_op": "torch.nn.modules.conv.Conv3d",
                "kernel_sizes": [[3, 3, 3]] * 3,
                "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]],
                "n_conv_per_stage": [2, 2, 2],
                "n_conv_per_stage_decoder": [2, 2],
                "conv_bias": True,
                "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
                "norm_op_kwargs": {"eps": 1e-05, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
    }
    return {
        "dataset_name": "x",
        "plans_name": "x",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"3d_fullres": configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": {}},
    }


def main() -> None:
    tool, folder = sys.argv[1], Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    if tool == "medseg":
        import medseg  # noqa: F401  before torch, as the command does
    scan = folder / "scan.nii.gz"
    if not scan.exists():
        make_scan(scan)
    clock = Clock()
    {"medseg": run_medseg, "nnunet": run_nnunet}[tool](scan, folder, clock)
    clock.finished()
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    stages = {f"{name}_s": [round(float(value), 1) for value in pair] for name, pair in clock.stages.items()}
    print(json.dumps({"tool": tool, **stages, "peak_rss_mib": round(peak_mib)}))


if __name__ == "__main__":
    main()

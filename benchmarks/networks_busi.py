"""Breast ultrasound: U-Net, attention U-Net and GG-Net with boundary modules under one time budget.

    python benchmarks/networks_busi.py --data DATA --out RUNS --minutes 20 --seeds 0 1 2

DATA holds us-breast-busi. Near-duplicates are never split between folds. Images without a lesion count where something
was found in them. Prints Dice and HD95 (pixels) of whole images, and paired tests between the networks.
"""

from comparison import Design, arguments, chosen, overlap_table
from prepare_busi import prepare

DESIGNS = (
    Design("unet", "unet"),
    Design("attention_unet", "attention_unet"),
    Design("gg_net", "gg_net"),
    Design("unet+boundary", "unet", heads=("boundary",)),
)


def main() -> None:
    wanted = arguments(__doc__).parse_args()
    dataset = wanted.out / "data"
    if not (dataset / "dataset.json").exists():
        prepare(wanted.data / "us-breast-busi", dataset)
    overlap_table(chosen(DESIGNS, wanted), dataset, wanted, "Breast ultrasound")


if __name__ == "__main__":
    main()

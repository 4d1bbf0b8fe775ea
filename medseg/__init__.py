"""Plan, train and run medical image segmentation models under a budget of memory and time."""

__version__ = "0.1.0"

"""Command line: parse, call one workflow function, print its record."""

from medseg.cli.app import main

__all__ = ["main"]

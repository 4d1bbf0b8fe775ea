"""Every backbone, block and head in 3D and on anisotropic grids as one graph, as the default tests do in 2D."""

import battery
import pytest

pytestmark = pytest.mark.acceptance
SHAPES = ("3d", "anisotropic")


@pytest.mark.parametrize("entry", [entry for shape in SHAPES for entry in battery.graphs(shape)], ids=str)
def test_it_exports_and_the_export_computes_the_same(entry):
    battery.check_export(entry)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("table", ["backbones", "blocks", "heads"])
def test_networks_compile_as_one_graph(table, shape):
    battery.compile_apart(f'battery.{table}("{shape}")')

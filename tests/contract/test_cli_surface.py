import pytest

from medseg.cli.app import app, main

SURFACE = {
    "check": {"DATASET"},
    "plan": {"DATASET", "--vram", "--out", "-o", "--ram", "--hours", "--device", "--preset", "--option", "--head"},
    "inspect": {"PATH", "--json", "--keep-identifiers"},
    "train": {"PLAN", "DATASET", "--out", "-o", "--fold", "--device", "--tensorboard", "--teacher", "--trust"},
    "predict": {
        *("BUNDLE", "INPUTS", "--out", "-o", "--device", "--folds", "--tta", "--no-tta", "--overlap", "--resume"),
        *(
            "--save-probabilities",
            "--format",
            "--seg-kind",
            "--clean",
            "--no-clean",
            "--trust",
            "--workers",
            "--case-minutes",
            "--keep-identifiers",
            "--spacing",
            "--rater",
            "--temporal-median",
            "--directions",
            "--study",
            "--series",
            "--auth",
            "--ca",
        ),
    },
    "listen": {
        *("--bundle", "--port", "--peer", "--aet", "--out", "-o", "--host", "--allow", "--quiet", "--queue", "--disk"),
        *("--device", "--trust"),
    },
    "evaluate": {
        *("PREDICTIONS", "REFERENCES", "--labels", "--tolerance", "--ultrasound", "--second-reader", "--out", "-o")
    },
    "model show": {"BUNDLE", "--json"},
    "model export": {"BUNDLE", "--out", "-o", "--folds", "--batch", "--trust"},
    "convert": {"SOURCE", "--out", "-o", "--series", "--part", "--channels", "--spacing"},
    "report": {"RUN", "DATASET", "--out", "-o"},
    "networks": {"--kind", "--json"},
}


def leaves(node, path=()):
    names = [name for name in node if not name.startswith("-")]
    return {" ".join(path)} if not names else {leaf for name in names for leaf in leaves(node[name], (*path, name))}


def surface(command):
    node = app
    for word in command.split():
        node = node[word]
    return {name for argument in node.assemble_argument_collection() for name in argument.names}


def test_commands_change_on_purpose_only():
    assert leaves(app) == set(SURFACE)


@pytest.mark.parametrize("command", [*SURFACE, "model"])
def test_the_help_of_every_command_has_an_example(command, capsys):
    app([*command.split(), "--help"])
    assert f"Example: medseg {command} " in capsys.readouterr().out


def test_an_option_that_takes_the_scans_with_it_says_so(capsys):
    assert main(["predict", "B", "--format", "dicom-seg", "SCANS", "-o", "OUT"]) == 2
    assert "--format takes all words after it: put files and folders before it" in capsys.readouterr().err
    assert main(["predict", "B", "--folds", "0", "SCANS", "-o", "OUT"]) == 2
    assert "--folds takes all words" in capsys.readouterr().err
    assert main(["convert", "--series", "1.2", "-o", "OUT"]) == main(["predict", "-o", "OUT"]) == 2
    assert "takes all words" not in capsys.readouterr().err


def test_options_change_on_purpose_only():
    assert {command: surface(command) for command in SURFACE} == SURFACE
